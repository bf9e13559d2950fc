# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What happens in the stories: openings, events and an ending, as rows of beats.

A beat is a tuple of sentences of which one is told. Fields: H the hero, F the friend, their
pronouns (he him his, fhe fhim fhis; He and His start a sentence), and what the event is about.
"""

OPENINGS = (
    (
        (
            "Once upon a time, there was a {feeling} {kind} named {H}.",
            "There was once a {feeling} {kind} called {H}.",
            "{H} was a {feeling} {kind}.",
        ),
        (
            "{He} lived in a {color} house by the {home}.",
            "{His} home was a {color} house close to the {home}.",
        ),
        (
            "{His} best friend was {a_fkind} named {F}.",
            "{He} had a good friend, {a_fkind} named {F}.",
            "{F}, {a_fkind}, was {his} best friend.",
        ),
    ),
    (
        (
            "One day, {a_kind} named {H} was walking near the {home}.",
            "Once, {a_kind} named {H} was sitting by the {home}.",
            "Long ago, {a_kind} named {H} came to the {home}.",
        ),
        (
            "There {he} met {a_fkind} named {F}, and they became friends.",
            "{He} saw {a_fkind} who was called {F}, and soon they were good friends.",
        ),
        (
            "They both lived in a {color} house, and {H} was always {feeling}.",
            "Everybody knew {H}, the {feeling} {kind} from the {color} house.",
        ),
    ),
    (
        (
            "{H} and {F} were best friends.",
            "This is a story about {H} and {F}.",
        ),
        (
            "{H} was a {feeling} {kind}, and {F} was {a_fkind}.",
            "{F} was {a_fkind}, and {H} was a {feeling} {kind}.",
        ),
        (
            "{H} had a {color} house by the {home}.",
            "They often met at the {color} house of {H} near the {home}.",
        ),
    ),
    (
        (
            "In a {color} house by the {home} lived {a_kind} named {H}.",
            "Near the {home}, in a {color} house, there lived {a_kind} called {H}.",
        ),
        (
            "{H} was very {feeling}, and {his} best friend was {a_fkind} named {F}.",
            "{He} was {feeling} and had a friend named {F}, who was {a_fkind}.",
        ),
    ),
)

EVENTS = (
    (  # something is lost
        (
            "{When}, {H} could not find {his} {thing}.",
            "{When}, {H} lost {his} {thing}.",
            "{When}, {H} saw that {his} {thing} was gone.",
        ),
        (
            "{He} looked under the bed and behind the door, but it was not there.",
            "{He} looked in every room, but {he} did not see it.",
            "{He} felt sad, because {he} loved the {thing} very much.",
        ),
        (
            '"Have you seen my {thing}?" {he} asked {F}.',
            '{H} went to {F} and asked, "Do you know where my {thing} is?"',
        ),
        (
            '"No," said {F}, "but I will help you look for it."',
            '"I saw it at the {place}," said {F}. "Let us go there!"',
            '"Let us look for it at the {place}," said {F}.',
        ),
        (
            "Together they walked to the {place}.",
            "{H} and {F} ran to the {place} as fast as they could.",
        ),
        (
            "There, under a tree, lay the {thing}!",
            "At the {place} they found the {thing} next to a big stone.",
            "{F} looked behind a wall and found the {thing}.",
        ),
        (
            "{H} was so happy that {he} hugged {F}.",
            '"Thank you, {F}!" said {H}, and {he} smiled.',
            "{H} took the {thing} home and never lost it again.",
        ),
    ),
    (  # something is made
        (
            "{When}, {H} wanted to make a {thing} for {F}.",
            "{When}, {H} had an idea: {he} would make a {thing} for {F}.",
        ),
        (
            "{He} worked all morning, but the {thing} broke.",
            "It was hard work, and the first {thing} fell apart.",
        ),
        (
            "{H} did not give up. {He} tried again, very slowly.",
            '"I will try one more time," {he} said.',
            "{He} wanted to cry, but then {he} tried again.",
        ),
        (
            "At last the {thing} was ready, and it was beautiful.",
            "This time it worked, and the {thing} looked wonderful.",
        ),
        (
            "{H} carried it to the {place}, where {F} was waiting.",
            "{He} met {F} at the {place} and gave it to {fhim}.",
        ),
        (
            '"I love this {thing}!" said {F}. "Thank you, {H}."',
            "{F} was very happy and thanked {H} many times.",
            "{F} laughed and held the {thing} in the air.",
        ),
    ),
    (  # food is shared
        (
            "{When}, {H} had a basket full of {food}.",
            "{When}, {H} found some {food} in the kitchen.",
            "{When}, {H} went to the market and bought {food}.",
        ),
        (
            "{He} took the {food} to the {place} and sat down on the grass.",
            "{He} wanted to eat the {food} at the {place}.",
        ),
        (
            "There {he} saw {F}, who looked hungry.",
            "{F} was there too, but {fhe} had nothing to eat.",
        ),
        (
            '"Do you want some of my {food}?" asked {H}.',
            '{H} said, "I will share my {food} with you, {F}."',
            "At first {H} wanted to keep all the {food}, but then {he} gave half to {F}.",
        ),
        (
            '"Yes, please!" said {F}. "You are so kind, {H}."',
            "{F} smiled and said thank you.",
        ),
        (
            "They ate the {food} together and told funny stories.",
            "The {food} tasted even better because they shared.",
        ),
    ),
    (  # the weather turns
        (
            "{When}, {H} and {F} went to the {place} to play with a {thing}.",
            "{When}, {H} took {his} {thing} to the {place} and met {F}.",
        ),
        (
            "Suddenly the sky turned dark and it began to rain.",
            "Then big clouds came, and the wind began to blow.",
            "After a while they heard thunder.",
        ),
        (
            '{F} was afraid. "What shall we do?" {fhe} asked.',
            '"I am scared," said {F}.',
        ),
        (
            '"Do not worry," said {H}. "Take my hand."',
            "{H} was not afraid. {He} took {F} by the hand.",
        ),
        (
            "They ran into an old barn and waited.",
            "They hid under the bridge until the rain stopped.",
            "They sat down under a big roof and sang a song.",
        ),
        (
            "Soon the sun came out again, and they saw a rainbow over the {place}.",
            "When the storm was over, the {thing} was wet, but {H} and {F} were safe.",
            "Later they played with the {thing} again until the evening.",
        ),
    ),
    (  # somebody is helped
        (
            "{When}, {H} heard a small voice at the {place}.",
            "{When}, {H} walked to the {place} and heard somebody cry.",
        ),
        (
            "It was a little {other} who could not find the way home.",
            "A little {other} sat there all alone.",
        ),
        (
            '"Why are you sad?" asked {H}.',
            '"Can I help you?" {he} asked.',
        ),
        (
            '"I lost my mother," said the {other}.',
            '"I want to go home," said the little {other}.',
        ),
        (
            "{H} called {F}, and together they looked for the mother of the {other}.",
            "{H} and {F} took the little {other} with them and asked everybody they met.",
        ),
        (
            "In the evening they found the mother at the {place2}.",
            "They found the mother near the {place2}, and she was very glad.",
        ),
        (
            "The mother gave them a {thing} to say thank you.",
            '"You are good friends," she said to {H} and {F}.',
        ),
    ),
    (  # a race
        (
            "{When}, {H} and {F} had a race from the {place} to the {place2}.",
            '{When}, {H} said to {F}, "Let us have a race from the {place} to the {place2}!"',
        ),
        (
            "{H} was fast, but {F} was faster.",
            "At first {F} was in front, and {H} ran behind {fhim}.",
        ),
        (
            "Near the {place2}, {F} fell and hurt {fhis} leg.",
            "Then {F} fell over a stone and could not get up.",
        ),
        (
            "{H} could win now, but {he} stopped and went back.",
            "{H} did not think about the race anymore. {He} stopped at once.",
        ),
        (
            '"Are you hurt?" {he} asked, and {he} helped {F} to stand up.',
            '{He} said, "A friend is more important than a race."',
        ),
        (
            "They walked to the {place2} together, and both of them won.",
            "Slowly they went on to the {place2}, and nobody asked who was first.",
        ),
    ),
)

ENDING = (
    (
        "In the evening, {H} went back to the {color} house by the {home}.",
        "When it got dark, {H} went home to the {color} house.",
        "That night, {H} lay in bed in the {color} house near the {home}.",
    ),
    (
        "{He} was glad to have a friend like {F}.",
        "{H} and {F} stayed friends forever.",
        '"Good night, {F}," {he} said, and fell asleep.',
        "{H} was a {feeling} {kind}, and everybody knew it.",
    ),
)
