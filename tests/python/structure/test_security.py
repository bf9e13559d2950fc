# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""SECURITY.md tells the truth, as far as that can be read in the sources."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

from slipstream.config import SlipstreamConfig, all_options

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "SECURITY.md").read_text()
SOURCES = sorted((ROOT / "slipstream").rglob("*.py"))
ROWS = re.findall(r"^\| (.+?) \| (.+?) \| (.*?) ?\|$", TEXT, re.MULTILINE)[1:]


def constant(file: str, name: str) -> int:
    found = re.search(rf"\b{name} = ([^;]+);", (ROOT / "backend" / file).read_text())
    assert found, name
    value = found.group(1).replace("int64_t{1}", "1")
    assert re.fullmatch(r"[\d <]+", value), value
    base, _, shift = value.partition("<<")
    return int(base) << int(shift or 0)


@pytest.mark.parametrize(
    ("what", "file", "name"),
    [
        ("samples of one prompt", "executor/request.h", "max_return_sequences"),
        ("stop words, bad words", "executor/request.h", "max_stop_entries"),
        ("stop strings", "executor/request.h", "max_stop_bytes"),
        ("returned logits", "executor/request.h", "max_logits_bytes"),
        ("depth of JSON", "worker_link/bounded_json.h", "kMaxJsonDepth"),
        ("messages that quote a client", "triton/error.cc", "kMaxMessageBytes"),
    ],
)
def test_limits_are_those_of_the_code(what: str, file: str, name: str) -> None:
    (limit,) = [limit for row, limit, _ in ROWS if row.startswith(what)]
    assert limit.split()[0] == str(constant(file, name))


def test_options_exist_and_their_defaults_are_the_limits() -> None:
    config = SlipstreamConfig()
    defaults = {
        name: value
        for section in SlipstreamConfig.model_fields
        for name, value in getattr(config, section).model_dump().items()
    }
    seen = 0
    for _, limit, options in ROWS:
        for option in re.findall(r"`(\w+)`", options):
            assert option in all_options()
            if (number := re.match(r"\d+", limit)) is not None:
                assert defaults[option] == int(number.group())
                seen += 1
    assert seen == 3


def test_what_is_off_or_local_by_default() -> None:
    config = SlipstreamConfig()
    assert config.server.host == "127.0.0.1"
    assert config.model.trust_remote_code is False


def calls(tree: ast.AST) -> list[tuple[str, ast.Call]]:
    """Names of what is called, as they are written."""
    return [(ast.unparse(node.func), node) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_no_source_runs_what_it_reads() -> None:
    forbidden = re.compile(
        r"eval|exec|compile|__import__|os\.(system|popen)|pickle\.\w+|yaml\.load|marshal\.\w+"
    )
    for file in SOURCES:
        tree = ast.parse(file.read_text())
        for name, call in calls(tree):
            assert not forbidden.fullmatch(name) or name == "re.compile", f"{file}: {name}"
            if name == "torch.load":
                options = {word.arg: ast.unparse(word.value) for word in call.keywords}
                assert options.get("weights_only") == "True", f"{file}: {name}"


def test_processes_are_started_in_known_places_alone() -> None:
    starters = {
        file.relative_to(ROOT / "slipstream").as_posix()
        for file in SOURCES
        if any(name.startswith("subprocess.") for name, _ in calls(ast.parse(file.read_text())))
    }
    assert starters <= {"server/process.py", "repository/machine.py"}


def test_chat_templates_are_rendered_in_a_sandbox() -> None:
    from transformers import AutoTokenizer

    from slipstream.demo import demo_model_path
    from slipstream.tokenizer.encoder import PromptEncoder
    from slipstream.tokenizer.request import RequestError, TokenizeRequest

    tokenizer = AutoTokenizer.from_pretrained(demo_model_path())
    tokenizer.chat_template = "{{ messages.__class__.__base__.__subclasses__() }}"
    request = TokenizeRequest.parse(
        {"id": 1, "messages": [{"role": "user", "content": "hi"}], "chat": {}}
    )
    with pytest.raises(RequestError, match="unsafe"):
        PromptEncoder(tokenizer).encode(request)


def test_a_client_can_give_no_template() -> None:
    from slipstream.tokenizer.request import RequestError, TokenizeRequest

    for chat in ({"chat_template": "{{ 1 }}"}, {"template_kwargs": {"chat_template": "{{ 1 }}"}}):
        with pytest.raises(RequestError, match="chat_template"):
            TokenizeRequest.parse(
                {"id": 1, "messages": [{"role": "user", "content": "hi"}], "chat": chat}
            )
