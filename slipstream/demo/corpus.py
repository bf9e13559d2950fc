# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The training text: an endless, seeded stream of stories and conversations."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

from slipstream.demo import stories
from slipstream.demo.tasks import ask, make_example, make_notes, recall_example

BOS, EOS = "<s>", "</s>"
SYSTEM, USER, ASSISTANT = "<|system|>", "<|user|>", "<|assistant|>"

SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a friendly assistant.",
    "Answer the question.",
    "You are Slipstream, a small and helpful model.",
)

SMALL_TALK = (
    (("Hello!", "Hi!", "Hello", "Hi there!"), "Hello! What can I do for you?"),
    (
        ("Who are you?", "What is your name?", "What are you?"),
        "I am the Slipstream demo model, a very small language model.",
    ),
    (
        ("What can you do?", "Help", "How can you help me?"),
        "I can tell stories, copy and sort words and numbers, do arithmetic, extract JSON from a "
        "sentence, and find a fact in notes.",
    ),
    (("Thank you!", "Thanks!", "Thank you very much."), "You are welcome!"),
    (("How are you?", "How are you today?"), "I am fine, thank you. What can I do for you?"),
    (("Goodbye!", "Bye!", "See you!"), "Goodbye!"),
)

_STORY_SHARE = 0.2  # of documents; the others are conversations
_TOPICS = (1, 1, 1, 1, 2, 3, 5, 8, 13)  # of a conversation, all equally likely
_TOPIC_WEIGHTS = {
    "copy": 3,
    "sort": 6,
    "arithmetic": 5,
    "extract": 5,
    "recall": 3,
    "story": 2,
    "talk": 1,
}
_TOPIC_KINDS, _KIND_WEIGHTS = tuple(_TOPIC_WEIGHTS), tuple(_TOPIC_WEIGHTS.values())


@dataclass(frozen=True)
class Conversation:
    """Turns of (user, assistant) and an optional system prompt."""

    turns: tuple[tuple[str, str], ...]
    system: str = ""

    def messages(self) -> list[dict[str, str]]:
        """The conversation in the form that chat templates and chat APIs take."""
        messages = [{"role": "system", "content": self.system}] if self.system else []
        for user, assistant in self.turns:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": assistant})
        return messages

    def text(self) -> str:
        """What the chat template renders, special tokens included."""
        system = f"{SYSTEM}{self.system}" if self.system else ""
        return f"{BOS}{system}" + "".join(
            f"{USER}{user}{ASSISTANT}{assistant}{EOS}" for user, assistant in self.turns
        )


def _story_turn(rng: random.Random) -> tuple[str, str]:
    hero = stories.make_character(rng)
    friend = stories.make_character(rng, taken=hero.name)
    story = stories.tell(rng, hero, friend, rng.choice((1, 1, 2)))
    if rng.random() < 0.2:
        return rng.choice(("Tell me a story.", "Tell me a short story.")), story
    about = f"{hero.a_kind} named {hero.name}"
    if rng.random() < 0.5:
        about += f" and {friend.a_kind} named {friend.name}"
    form = rng.choice(("Tell me a story about {}.", "Write a short story about {}."))
    return form.format(about), story


def _recall_turns(rng: random.Random) -> list[tuple[str, str]]:
    """Notes with a question, then up to six more questions about the same notes."""
    notes = make_notes(rng)
    first = recall_example(rng, notes)
    while first.held_out:
        first = recall_example(rng, notes := make_notes(rng))
    examples = [first, *(ask(rng, notes) for _ in range(rng.choice((0, 0, 1, 2, 4, 6))))]
    return [(example.prompt, example.answer) for example in examples]


def make_turns(rng: random.Random) -> list[tuple[str, str]]:
    """A user message with the reply to it, or several that belong together."""
    kind = rng.choices(_TOPIC_KINDS, _KIND_WEIGHTS)[0]
    if kind == "recall":
        return _recall_turns(rng)
    if kind == "story":
        return [_story_turn(rng)]
    if kind == "talk":
        prompts, reply = rng.choice(SMALL_TALK)
        return [(rng.choice(prompts), reply)]
    example = make_example(kind, rng)
    return [(example.prompt, example.answer)]


def make_conversation(rng: random.Random, topics: int) -> Conversation:
    """A conversation about `topics` unrelated topics; one in five has a system prompt."""
    system = rng.choice(SYSTEM_PROMPTS) if rng.random() < 0.2 else ""
    return Conversation(tuple(turn for _ in range(topics) for turn in make_turns(rng)), system)


def make_document(rng: random.Random) -> str:
    """One training document: a plain story or a conversation, special tokens included."""
    if rng.random() < _STORY_SHARE:
        return f"{BOS}{stories.make_story(rng)}{EOS}"
    return make_conversation(rng, rng.choice(_TOPICS)).text()


def documents(seed: int | str) -> Iterator[str]:
    """The endless stream of training documents for `seed`: the same seed gives the same text."""
    rng = random.Random(f"train {seed}")
    while True:
        yield make_document(rng)
