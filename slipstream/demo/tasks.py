# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkable tasks: each example is a prompt and the one right answer.

A prompt belongs to the held-out part when its CRC-32 is divisible by `HELD_OUT_ONE_IN`, whatever
the seed. Training never sees such a prompt and evaluation uses nothing else: no overlap.
"""

from __future__ import annotations

import json
import random
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from slipstream.demo import words

HELD_OUT_ONE_IN = 32


@dataclass(frozen=True)
class Example:
    """A user's prompt and the only answer that counts as right."""

    prompt: str
    answer: str

    @property
    def held_out(self) -> bool:
        return zlib.crc32(self.prompt.encode()) % HELD_OUT_ONE_IN == 0


def is_exact(answer: str, reply: str) -> bool:
    """Whether `reply` is `answer`, apart from white space at both ends."""
    return reply.strip() == answer


def make_copy(rng: random.Random) -> Example:
    """3 to 12 nouns, made-up words, digits or two-digit numbers, to be repeated."""
    count = rng.randint(3, 12)
    what, items = rng.choice(
        (
            lambda: ("words", rng.choices(words.NOUNS, k=count)),
            lambda: ("words", [words.make_up(rng) for _ in range(count)]),
            lambda: ("digits", rng.choices("0123456789", k=count)),
            lambda: ("numbers", [str(rng.randint(10, 99)) for _ in range(count)]),
        )
    )()
    form = rng.choice(("Copy these {0}: {1}", "Repeat these {0}: {1}", "Repeat after me: {1}"))
    listed = " ".join(items)
    return Example(form.format(what, listed), listed)


def make_sort(rng: random.Random) -> Example:
    """3 to 8 different nouns in alphabetical order, or numbers below 1000 in either order."""
    count = rng.randint(3, 8)
    if rng.random() < 0.5:
        nouns = rng.sample(words.NOUNS, count)
        form = rng.choice(("Sort these words: {}", "Put these words in alphabetical order: {}"))
        return Example(form.format(", ".join(nouns)), ", ".join(sorted(nouns)))
    numbers = rng.sample(range(rng.choice((20, 100, 1000))), count)
    down = rng.random() < 0.3
    form = rng.choice(("Sort these numbers from {}: {}", "Put these numbers in order, from {}: {}"))
    order = "largest to smallest" if down else "smallest to largest"
    answer = ", ".join(map(str, sorted(numbers, reverse=down)))
    return Example(form.format(order, ", ".join(map(str, numbers))), answer)


def _digits(number: int) -> list[int]:
    """Decimal digits, units first."""
    return [int(digit) for digit in reversed(str(number))]


def _write(column: int, carry: int, word: str) -> str:
    return f"write {column} {word} 1" if carry == 1 else f"write {column}"


def addition_steps(left: int, right: int) -> str:
    """Column by column from the right, with every carry written out."""
    steps, carry = [], 0
    first, second = _digits(left), _digits(right)
    for column in range(max(len(first), len(second))):
        a = first[column] if column < len(first) else 0
        b = second[column] if column < len(second) else 0
        total = a + b + carry
        plus = " + 1" if carry else ""
        carry = total // 10
        steps.append(f"{a} + {b}{plus} = {total}, {_write(total % 10, carry, 'carry')}.")
    if carry:
        steps.append("Write 1.")
    return " ".join(steps)


def subtraction_steps(left: int, right: int) -> str:
    """Like `addition_steps`, with every borrow written out; `left` is at least `right`."""
    steps, borrow = [], 0
    second = _digits(right)
    for column, a in enumerate(_digits(left)):
        b = second[column] if column < len(second) else 0
        minus = " - 1" if borrow else ""
        borrow_next = int(a - b - borrow < 0)
        top = a + 10 * borrow_next
        rest = top - b - borrow
        borrow = borrow_next
        steps.append(f"{top} - {b}{minus} = {rest}, {_write(rest, borrow, 'borrow')}.")
    return " ".join(steps)


def multiplication_steps(left: int, digit: int) -> str:
    """`left` times one digit, column by column from the right, with every carry written out."""
    steps, carry = [], 0
    for a in _digits(left):
        total = a * digit + carry
        plus = f" + {carry} = {total}" if carry else ""
        carry = total // 10
        tail = f" carry {carry}" if carry else ""
        steps.append(f"{a} x {digit} = {a * digit}{plus}, write {total % 10}{tail}.")
    if carry:
        steps.append(f"Write {carry}.")
    return " ".join(steps)


def _number(rng: random.Random, most_digits: int) -> int:
    return rng.randint(1, 10 ** rng.randint(1, most_digits) - 1)


def make_arithmetic(rng: random.Random) -> Example:
    """Sums and differences of up to four digits, products with one digit, word problems."""
    kind = rng.choice("++--xw")
    left, right = _number(rng, 4), _number(rng, 4)
    if kind == "-":
        left, right = max(left, right), min(left, right)
        steps, result = subtraction_steps(left, right), left - right
    elif kind == "x":
        left, right = _number(rng, 3), rng.randint(2, 9)
        steps, result = multiplication_steps(left, right), left * right
    else:
        if kind == "w":
            left, right = left % 1000 + 1, right % 1000 + 1
        steps, result = addition_steps(left, right), left + right
    if kind == "w":
        name, goods = rng.choice(words.NAMES), rng.choice(words.GOODS)
        given = f"{name} has {left} {goods} and gets {right} more."
        question = f"{given} How many {goods} does {name} have now?"
        return Example(question, f"{steps} {name} has {result} {goods} now.")
    question = rng.choice(("What is {}?", "Calculate {}.")).format(f"{left} {kind} {right}")
    return Example(question, f"{steps} The answer is {result}.")


Record = dict[str, str | int]


def _person(rng: random.Random) -> Record:
    return {
        "name": rng.choice(words.NAMES),
        "age": rng.randint(5, 99),
        "city": rng.choice(words.CITIES),
        "job": rng.choice(words.JOBS),
    }


def _order(rng: random.Random) -> Record:
    return {
        "name": rng.choice(words.NAMES),
        "quantity": rng.randint(2, 99),
        "item": rng.choice(words.GOODS),
        "day": rng.choice(words.DAYS),
    }


def _trip(rng: random.Random) -> Record:
    start, end = rng.sample(words.CITIES, 2)
    return {
        "name": rng.choice(words.NAMES),
        "from": start,
        "to": end,
        "day": rng.choice(words.DAYS),
        "hour": rng.randint(1, 12),
    }


# Kinds of record, each with the sentences that can hold one.
RECORDS: tuple[tuple[Callable[[random.Random], Record], tuple[str, ...]], ...] = (
    (
        _person,
        (
            "{name} is {age} years old, lives in {city} and works as a {job}.",
            "In {city} there lives a {job} named {name}, who is {age} years old.",
            "My friend {name}, a {job} from {city}, turned {age} last week.",
            "At the age of {age}, {name} moved to {city} to become a {job}.",
        ),
    ),
    (
        _order,
        (
            "On {day}, {name} ordered {quantity} {item}.",
            "{name} bought {quantity} {item} at the shop on {day}.",
            "Please send {quantity} {item} to {name} by {day}.",
            "The {quantity} {item} for {name} will arrive on {day}.",
        ),
    ),
    (
        _trip,
        (
            "{name} flies from {from} to {to} on {day} at {hour} o'clock.",
            "On {day} at {hour} o'clock, {name} takes the train to {to}, starting in {from}.",
            "The bus that brings {name} to {to} leaves {from} on {day} at {hour} o'clock.",
            "Leaving {from} at {hour} o'clock on {day}, {name} will travel to {to}.",
        ),
    ),
)


def make_extract(rng: random.Random) -> Example:
    """Two or more asked-for fields of a sentence, as JSON in the order asked."""
    make_record, sentences = rng.choice(RECORDS)
    record = make_record(rng)
    keys = rng.sample(list(record), rng.randint(2, len(record)))
    asked = f"{', '.join(keys[:-1])} and {keys[-1]}"
    form = rng.choice(("Extract {0} as JSON: {1}", "{1} Give me {0} as JSON."))
    sentence = rng.choice(sentences).format_map(record)
    return Example(form.format(asked, sentence), json.dumps({key: record[key] for key in keys}))


@dataclass(frozen=True)
class Fact:
    """Who put what where."""

    name: str
    thing: str
    spot: str

    def __str__(self) -> str:
        return f"{self.name} put the {self.thing} in the {self.spot}."


def make_notes(rng: random.Random) -> list[Fact]:
    """2 to 48 facts about different people."""
    count = rng.choice((rng.randint(2, 8), rng.randint(2, 48)))
    return [
        Fact(name, f"{rng.choice(words.COLORS)} {rng.choice(words.TOYS)}", rng.choice(words.SPOTS))
        for name in rng.sample(words.NAMES, count)
    ]


def ask(rng: random.Random, notes: list[Fact]) -> Example:
    """A question about one of the notes; the answer is that note."""
    fact = rng.choice(notes)
    if rng.random() < 0.5:
        question = f"Where did {fact.name} put the {fact.thing}?"
    else:
        question = f"What did {fact.name} put in the {fact.spot}?"
    return Example(question, str(fact))


def recall_example(rng: random.Random, notes: list[Fact]) -> Example:
    """Notes and a question about one of them, in one prompt."""
    example = ask(rng, notes)
    return Example(f"{' '.join(map(str, notes))} {example.prompt}", example.answer)


def make_recall(rng: random.Random) -> Example:
    """One fact out of 2 to 48 notes, so that the answer may be several hundred tokens back."""
    return recall_example(rng, make_notes(rng))


TASKS: dict[str, Callable[[random.Random], Example]] = {
    "copy": make_copy,
    "sort": make_sort,
    "arithmetic": make_arithmetic,
    "extract": make_extract,
    "recall": make_recall,
}


def make_example(task: str, rng: random.Random, *, held_out: bool = False) -> Example:
    """An example of `task` (a key of `TASKS`) from the training or the held-out part."""
    while True:
        example = TASKS[task](rng)
        if example.held_out == held_out:
            return example


def held_out_examples(task: str, count: int, seed: int = 0) -> list[Example]:
    """`count` examples of `task` whose prompts no training text contains as a turn."""
    rng = random.Random(f"held-out {task} {seed}")
    return [make_example(task, rng, held_out=True) for _ in range(count)]
