# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Writing a model repository."""

from __future__ import annotations

import difflib
from pathlib import Path

from slipstream.config import ConfigError, SlipstreamConfig
from slipstream.errors import SlipstreamError
from slipstream.repository.render import render_repository, to_text

CONFIG_NAME = "config.pbtxt"
VERSION = "1"


class RepositoryError(SlipstreamError, ValueError):
    """A repository that cannot be written or used; the message says what to do."""


def resolve(config: SlipstreamConfig) -> SlipstreamConfig:
    """Fills in what depends on the machine: the demo model, absolute paths, the tokenizer.

    Raises:
        ConfigError: the model or tokenizer is a path that does not exist.
    """
    from slipstream.demo import DEMO_MODELS, demo_model_path

    section = config.model
    name = section.model
    if not name and (config.worker.worker == "process" or not section.tokenizer):
        name = "demo"
    if name in DEMO_MODELS and not Path(name).is_dir():
        try:
            model = str(demo_model_path(name))
        except FileNotFoundError as error:
            raise ConfigError(f"model: {error}") from None
    else:
        model = _resolve_path("model", name)
    tokenizer = _resolve_path("tokenizer", section.tokenizer) or model
    resolved = section.model_copy(update={"model": model, "tokenizer": tokenizer})
    return config.model_copy(update={"model": resolved})


def build_repository(config: SlipstreamConfig, folder: Path, *, force: bool = False) -> list[Path]:
    """Writes the repository of a resolved configuration; returns the files written or unchanged.

    A file that exists and would change is left alone unless ``force``.

    Raises:
        RepositoryError: existing files differ (the message holds the difference), or the folder
            holds other models, or cannot be written.
    """
    texts = {name: to_text(message) for name, message in render_repository(config).items()}
    if not force:
        _refuse_changes(folder, texts)
    files = []
    try:
        for name, text in texts.items():
            (folder / name / VERSION).mkdir(parents=True, exist_ok=True)
            file = folder / name / CONFIG_NAME
            file.write_text(text, encoding="utf-8")
            files.append(file)
    except OSError as error:
        raise RepositoryError(f"{error.filename}: {error.strerror}") from None
    return files


def _resolve_path(name: str, value: str) -> str:
    """A directory as an absolute path; a hub id as it is."""
    if not value:
        return ""
    path = Path(value).expanduser()
    if path.is_dir():
        return str(path.resolve())
    if value.startswith((".", "/", "~")) or value.count("/") > 1:
        raise ConfigError(f"{name} is {value!r}; there is no such directory")
    return value


def _refuse_changes(folder: Path, texts: dict[str, str]) -> None:
    differences: list[str] = []
    for name, text in texts.items():
        file = folder / name / CONFIG_NAME
        if not file.is_file():
            continue
        old = file.read_text(encoding="utf-8")
        if old != text:
            differences += difflib.unified_diff(
                old.splitlines(), text.splitlines(), str(file), "new", lineterm="", n=2
            )
    present = {file.parent.name for file in folder.glob(f"*/{CONFIG_NAME}")}
    others = sorted(present - texts.keys())
    if differences:
        raise RepositoryError(
            f"{folder} holds a repository that differs; --force replaces it:\n"
            + "\n".join(differences)
        )
    if others:
        raise RepositoryError(
            f"{folder} also holds {', '.join(others)}, which this repository would not "
            "contain; use an empty folder, or --force to keep them beside it"
        )
