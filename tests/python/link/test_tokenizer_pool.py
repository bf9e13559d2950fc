# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Tokenizer processes, through the C++ pool that supervises them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from link_tokenizers import save
from transformers import AutoTokenizer

from slipstream import _core
from slipstream.link import VERSION, FrameType, Link


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save("byte_level", tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="module")
def reference(folder):
    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="module")
def pool(folder):
    pool = _core.TokenizerPool(str(folder), python=sys.executable, num_processes=2)
    yield pool
    pool.stop()


def children() -> list[int]:
    """Tokenizer processes of ours."""
    task = Path(f"/proc/{os.getpid()}/task")
    pids = [int(p) for t in task.iterdir() for p in (t / "children").read_text().split()]
    return [p for p in pids if b"slipstream.tokenizer" in Path(f"/proc/{p}/cmdline").read_bytes()]


def test_hello(pool, reference):
    assert pool.vocab_size == len(reference)
    assert pool.eos_id == reference.eos_token_id
    assert pool.pad_id == reference.eos_token_id  # it has no padding token
    assert pool.bos_id == reference.bos_token_id
    assert pool.has_chat_template
    assert len(_core.TokenTable.from_msgpack(pool.token_table)) == len(reference)


def test_texts_chats_and_words(pool, reference):
    text = "the quick <|im_end|> Größe 你好 👍"
    reply = pool.tokenize(text=text, words={"stop": ["the", ""], "bad": []})
    assert reply["ids"] == reference(text)["input_ids"]
    the = reference("the", add_special_tokens=False)["input_ids"]
    assert reply["words"] == {"stop": [the, []], "bad": []}
    messages = [{"role": "user", "content": "hello"}]
    expected = reference.apply_chat_template(messages, tokenize=True, return_dict=False)
    reply = pool.tokenize(
        messages_json=json.dumps(messages), chat_json='{"add_generation_prompt": false}'
    )
    assert reply["ids"] == expected


def test_the_callers_mistakes_are_value_errors(pool):
    with pytest.raises(ValueError, match="exactly one of text and messages must be given"):
        pool.tokenize()
    with pytest.raises(ValueError, match=r"messages\[0\].role is None, expected 1 to 64 letters"):
        pool.tokenize(messages_json='[{"content": "x"}]')


def test_many_threads_share_the_processes(pool, reference):
    texts = [f"the fox {n} " * (n % 7) for n in range(200)]
    with ThreadPoolExecutor(16) as threads:
        replies = list(threads.map(lambda text: pool.tokenize(text=text)["ids"], texts))
    assert replies == [reference(text)["input_ids"] for text in texts]


def test_killed_processes_are_started_again_and_no_request_fails(pool, reference):
    victims = children()
    assert len(victims) == 2
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    texts = ["the", "quick", "brown", "fox"]
    with ThreadPoolExecutor(4) as threads:
        replies = list(threads.map(lambda text: pool.tokenize(text=text)["ids"], texts))
    assert replies == [reference(text)["input_ids"] for text in texts]
    assert not set(victims) & set(children())


def test_a_process_that_hangs_is_replaced(folder, reference):
    pool = _core.TokenizerPool(str(folder), python=sys.executable, request_timeout_ms=10000)
    hung = set(children())
    pool.tokenize(text="x")
    others = _core.TokenizerPool(str(folder), python=sys.executable, request_timeout_ms=300)
    (victim,) = set(children()) - hung
    os.kill(victim, signal.SIGSTOP)
    with pytest.raises(RuntimeError, match="did not answer within 300 ms"):
        others.tokenize(text="x")
    assert victim not in children()
    pool.stop()
    with pytest.raises(RuntimeError, match="the tokenizer is stopped"):
        pool.tokenize(text="x")


def test_a_failed_start_says_why(tmp_path):
    with pytest.raises(RuntimeError, match=f"cannot load the tokenizer .{tmp_path}.: "):
        _core.TokenizerPool(str(tmp_path), python=sys.executable)
    with pytest.raises(RuntimeError, match="could not start 'no-such-python'"):
        _core.TokenizerPool(str(tmp_path), python="no-such-python")


@pytest.fixture
def process(folder):
    ours, theirs = socket.socketpair()
    arguments = [sys.executable, "-m", "slipstream.tokenizer", "--fd", str(theirs.fileno())]
    with theirs:
        child = subprocess.Popen(arguments, pass_fds=[theirs.fileno()], stderr=subprocess.PIPE)
    link = Link(ours)
    yield link, child
    link.close()
    child.kill()
    child.communicate()


def config_of(folder, **changes):
    return {"version": "0", "frame_version": VERSION, "tokenizer": str(folder), **changes}


def test_bytes_that_are_not_utf8_are_an_error_of_their_field(process, folder):
    link, child = process
    link.send(FrameType.CONFIG, config_of(folder))
    assert link.receive()[0] is FrameType.HELLO
    # The socket's own view: a msgpack str with a stray byte.
    payload = b"\x82\xa2id\x05\xa4text\xa3a\xffb"
    from slipstream.link import pack_header

    link._sock.sendall(pack_header(FrameType.REQUEST, len(payload)) + payload)
    kind, reply = link.receive()
    assert kind is FrameType.REPLY
    assert reply["id"] == 5
    assert reply["error"]["message"].startswith("text is not valid UTF-8")
    link.send(FrameType.SHUTDOWN, {})
    assert child.wait(30) == 0


def test_torch_is_not_imported(process, folder):
    link, child = process
    link.send(FrameType.CONFIG, config_of(folder))
    assert link.receive()[0] is FrameType.HELLO
    assert "torch" not in Path(f"/proc/{child.pid}/maps").read_text()


def test_the_end_of_the_connection_ends_the_process(process, folder):
    link, child = process
    link.send(FrameType.CONFIG, config_of(folder))
    link.receive()
    link.close()
    assert child.wait(30) == 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokeniser": "x"}, "unknown key 'tokeniser', nearest 'tokenizer'"),
        ({"frame_version": 9}, "frame_version is 9, this side speaks 3"),
        ({"tokenizer": ""}, "tokenizer must name a directory or a hub id"),
    ],
)
def test_a_wrong_configuration_is_refused(process, folder, changes, message):
    link, child = process
    link.send(FrameType.CONFIG, config_of(folder, **changes))
    kind, error = link.receive()
    assert kind is FrameType.ERROR
    assert message in error["message"]
    assert "Traceback" in error["traceback"]
    assert child.wait(30) == 1
