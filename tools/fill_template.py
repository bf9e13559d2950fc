#!/usr/bin/env python3
# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Fills the ``${key}`` placeholders of a model configuration.

    fill_template.py [-i] FILE key:value,key:value

A backslash keeps a comma or a backslash in a value: ``engine_dir:/a\\,b``. A value ends at the next
bare comma, so it may hold colons. Without ``-i`` the result goes to standard output.

Strict: an unknown key, a key given twice, a malformed value, or a mandatory key left out is an
error, and the file stays as it was. Optional keys that are left out take the template's default, or
"not set". What was filled is remembered in a comment on the line, so that a later call can change a
value. ``--partial`` allows mandatory keys to be left for a later call.

Needs nothing but Python's standard library.
"""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path

_PLACEHOLDER = re.compile(r"\$\{(\w+)\}")
# The remembered form of a filled line; "@{key}" so that no "${" is left in the file.
_REMEMBERED = re.compile(r"^(?P<filled>.*?)  # from: (?P<template>.*@\{\w+\}.*)$")
_NUMBER_FIELD = re.compile(r"^\s*(max_\w+|count|preferred_batch_size|\w+_microseconds|\w+_size):")
_FIELD_RULES = (
    (_NUMBER_FIELD, re.compile(r"^[0-9]+$"), "a whole number"),
    (re.compile(r"^\s*decoupled:"), re.compile(r"^(true|false|True|False|1|0)$"), "true or false"),
    (re.compile(r"^\s*data_type:"), re.compile(r"^TYPE_[A-Z0-9]+$"), "a type such as TYPE_FP32"),
)


class TemplateError(ValueError):
    """A substitution that cannot be made; the message names the key."""


@dataclass(frozen=True)
class Template:
    """A file as a template: lines with their placeholders back in place."""

    lines: list[str]
    current: dict[str, str]  # placeholder -> what it was filled with before, as written
    keys: set[str]
    mandatory: set[str]
    defaults: dict[str, str] = field(default_factory=dict)
    no_effect: dict[str, str] = field(default_factory=dict)


def parse_substitutions(text: str) -> dict[str, str]:
    """``key:value,key:value`` as a dictionary. Raises TemplateError."""
    values: dict[str, str] = {}
    for item in _split(text):
        key, colon, value = item.partition(":")
        key = key.strip()
        if not colon:
            raise TemplateError(f"{item!r} is not key:value (write a comma in a value as '\\,')")
        if not re.fullmatch(r"\w+", key):
            raise TemplateError(f"{key!r} is not the name of a key")
        if key in values and values[key] != value:
            raise TemplateError(f"{key} is given twice, as {values[key]!r} and {value!r}")
        values[key] = value
    return values


def _split(text: str) -> list[str]:
    """Splits at bare commas and removes the backslashes that protect ``,`` ``:`` and ``\\``."""
    items, current, position = [], "", 0
    while position < len(text):
        char = text[position]
        if char == "\\" and text[position + 1 : position + 2] in (",", ":", "\\"):
            position += 1
            current += text[position]
        elif char == ",":
            items.append(current)
            current = ""
        else:
            current += char
        position += 1
    items.append(current)
    return [item for item in items if item.strip()]


def read_template(text: str) -> Template:
    """Finds placeholders, those filled before, and what the header says of them."""
    lines, current = [], {}
    mandatory: set[str] | None = None
    defaults = {"max_queue_size": "0", "max_queue_delay_microseconds": "0"}
    no_effect: dict[str, str] = {}
    for line in text.splitlines():
        if line.startswith("# mandatory: "):
            mandatory = (mandatory or set()) | set(line.split()[2:])
        elif line.startswith("# default: "):
            defaults.update(pair.split("=", 1) for pair in line.split()[2:])
        elif match := re.match(r"# no effect: (\w+) \((.*)\)", line):
            no_effect[match[1]] = match[2]
        if match := _REMEMBERED.match(line):
            template = match["template"].replace("@{", "${")
            current.update(_values_of(template, match["filled"]))
            line = template
        lines.append(line)
    keys = {name for line in lines for name in _PLACEHOLDER.findall(line)}
    if mandatory is None:  # no header: what is not a string has no way of being "not set"
        mandatory = {
            name
            for line in lines
            for name in _PLACEHOLDER.findall(line)
            if f'"${{{name}}}"' not in line
        }
    return Template(lines, current, keys, mandatory - defaults.keys(), defaults, no_effect)


def _values_of(template: str, filled: str) -> dict[str, str]:
    names = _PLACEHOLDER.findall(template)
    pattern = "(.*)".join(re.escape(part) for part in _PLACEHOLDER.split(template)[::2])
    match = re.fullmatch(pattern, filled)
    return dict(zip(names, match.groups(), strict=True)) if match else {}


def fill(text: str, values: dict[str, str], *, partial: bool = False) -> str:
    """The text with its placeholders filled. Raises TemplateError."""
    template = read_template(text)
    known = template.keys | template.no_effect.keys()
    for key in values:
        if key not in known:
            close = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)
            nearest = f"; the nearest is {close[0]!r}" if close else ""
            raise TemplateError(f"unknown key {key!r}{nearest}")
    missing = {
        key
        for key in template.mandatory & template.keys
        if not values.get(key, "").strip() and not template.current.get(key, "").strip()
    }
    if missing and not partial:
        raise TemplateError(f"mandatory keys are not given: {', '.join(sorted(missing))}")
    lines = [_fill_line(line, values, template, missing) for line in template.lines]
    return "\n".join(lines) + "\n"


def _fill_line(line: str, values: dict[str, str], template: Template, missing: set[str]) -> str:
    names = _PLACEHOLDER.findall(line)
    if not names or line.lstrip().startswith("#") or missing.intersection(names):
        return line

    def replace(match: re.Match[str]) -> str:
        name = match[1]
        quoted = line[match.start() - 1 : match.start()] == '"'
        if name not in values:
            return template.current.get(name, template.defaults.get(name, ""))
        value = values[name]
        if not quoted and not value.strip():
            value = template.defaults.get(name, "")
        if not quoted:
            _check(name, value, line)
            return value.strip()
        return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

    return f"{_PLACEHOLDER.sub(replace, line)}  # from: {line.replace('${', '@{')}"


def _check(key: str, value: str, line: str) -> None:
    for place, form, expected in _FIELD_RULES:
        if place.match(line) and not form.match(value.strip()):
            raise TemplateError(f"{key} is {value!r}; must be {expected}")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Fills the placeholders of a config.pbtxt.")
    parser.add_argument("-i", "--in_place", action="store_true", help="change FILE itself")
    parser.add_argument("--partial", action="store_true", help="allow mandatory keys to be missing")
    parser.add_argument("file", help="a template, or a file filled before")
    parser.add_argument("substitutions", help="key:value,key:value; '\\' keeps ',' ':' and '\\'")
    options = parser.parse_args(arguments)
    try:
        text = Path(options.file).read_text(encoding="utf-8")
        values = parse_substitutions(options.substitutions)
        filled = fill(text, values, partial=options.partial)
        for key in sorted(values.keys() & read_template(text).no_effect.keys()):
            why = read_template(text).no_effect[key]
            print(f"{options.file}: {key} has no effect: {why}", file=sys.stderr)
        if options.in_place:
            Path(options.file).write_text(filled, encoding="utf-8")
        else:
            sys.stdout.write(filled)
    except TemplateError as error:
        print(f"{options.file}: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"{options.file}: {error.strerror}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
