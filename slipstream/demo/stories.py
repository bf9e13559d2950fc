# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Short English stories with a consistent cast, written from a table of events.

A story is an opening, one or more events and an ending (`plots`). Names, pronouns, the thing and
the places stay the same throughout, so a later sentence can be right or wrong given an earlier one.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from slipstream.demo import plots, words

_PRONOUNS = {
    "girl": ("she", "her", "her"),
    "boy": ("he", "him", "his"),
}


@dataclass(frozen=True)
class Character:
    """Somebody in a story. `pronouns` are subject, object and possessive."""

    name: str
    kind: str
    pronouns: tuple[str, str, str]

    @property
    def a_kind(self) -> str:
        return f"a {self.kind}"


def _make_name(rng: random.Random, gender: str) -> str:
    """Usually a known name; sometimes a made-up one, so that names are copied and not guessed."""
    if rng.random() < 0.15:
        return words.make_up(rng).capitalize()
    return rng.choice(words.GIRLS if gender == "girl" else words.BOYS)


def make_character(rng: random.Random, taken: str = "") -> Character:
    """A girl, a boy or an animal whose name is not `taken`."""
    gender = rng.choice(("girl", "boy"))
    name = taken
    while name == taken:
        name = _make_name(rng, gender)
    kind = gender if rng.random() < 0.5 else rng.choice(words.ANIMALS)
    return Character(name, kind, _PRONOUNS[gender])


_FIRST = ("One day", "One morning", "One sunny day", "One afternoon")
_LATER = ("The next day", "The next morning", "A week later", "A few days later", "Some time later")


def _cast_fields(hero: Character, friend: Character) -> dict[str, str]:
    he, him, his = hero.pronouns
    fhe, fhim, fhis = friend.pronouns
    return {
        "H": hero.name,
        "kind": hero.kind,
        "a_kind": hero.a_kind,
        "he": he,
        "him": him,
        "his": his,
        "He": he.capitalize(),
        "His": his.capitalize(),
        "F": friend.name,
        "a_fkind": friend.a_kind,
        "fhe": fhe,
        "fhim": fhim,
        "fhis": fhis,
    }


def _event_fields(rng: random.Random, when: str) -> dict[str, str]:
    place, place2 = rng.sample(words.PLACES, 2)
    adjective = rng.choice(words.COLORS if rng.random() < 0.6 else words.SIZES)
    return {
        "When": when,
        "place": place,
        "place2": place2,
        "food": rng.choice(words.FOODS),
        "thing": f"{adjective} {rng.choice(words.TOYS)}",
        "other": rng.choice(words.ANIMALS),
    }


def tell(rng: random.Random, hero: Character, friend: Character, events: int) -> str:
    """A story of `events` events (at most `len(plots.EVENTS)`): one paragraph per event."""
    cast = _cast_fields(hero, friend)
    cast |= {"feeling": rng.choice(words.FEELINGS), "color": rng.choice(words.COLORS)}
    cast["home"] = rng.choice(words.PLACES)
    opening = " ".join(rng.choice(beat).format_map(cast) for beat in rng.choice(plots.OPENINGS))
    paragraphs = []
    for index, event in enumerate(rng.sample(plots.EVENTS, events)):
        fields = cast | _event_fields(rng, rng.choice(_LATER if index else _FIRST))
        paragraphs.append(" ".join(rng.choice(beat).format_map(fields) for beat in event))
    paragraphs[0] = f"{opening} {paragraphs[0]}"
    paragraphs[-1] += " " + " ".join(rng.choice(beat).format_map(cast) for beat in plots.ENDING)
    return "\n".join(paragraphs)


def make_story(rng: random.Random) -> str:
    """A story about a random cast: mostly one event, sometimes as many as there are."""
    hero = make_character(rng)
    friend = make_character(rng, taken=hero.name)
    events = rng.choice((1, 1, 1, 2, 2, 3, len(plots.EVENTS)))
    return tell(rng, hero, friend, events)
