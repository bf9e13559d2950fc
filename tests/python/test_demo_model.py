# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo model: its generated text, its tokenizer, and the shipped checkpoint's exact match."""

from __future__ import annotations

import itertools
import json
import random
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, AutoTokenizer

from slipstream.demo import demo_model_path, words
from slipstream.demo.corpus import (
    BOS,
    EOS,
    SMALL_TALK,
    USER,
    Conversation,
    documents,
    make_conversation,
)
from slipstream.demo.evaluation import IGNORED, exact_match, greedy_replies, make_labels
from slipstream.demo.packing import packed_rows
from slipstream.demo.stories import make_story
from slipstream.demo.tasks import TASKS, Example, held_out_examples, is_exact
from slipstream.demo.tokenizer import SPECIAL_TOKENS

MAX_CHECKPOINT_BYTES = 8_000_000
# Lower bounds on 20 prompts per task; the model card has the measured rates.
BOUNDS = {"copy": 0.9, "sort": 0.9, "arithmetic": 0.9, "extract": 0.9, "recall": 0.85}


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo_model_path())


@pytest.fixture(scope="module")
def model():
    loaded = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype=torch.float32)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # so small a model gains nothing from more, and loses on busy cores
    yield loaded.eval()
    torch.set_num_threads(threads)


def test_the_same_seed_gives_the_same_text_in_every_process():
    program = (
        "import itertools, zlib; from slipstream.demo.corpus import documents;"
        "print(zlib.crc32(''.join(itertools.islice(documents(5), 200)).encode()))"
    )
    sums = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": hash_seed, "PYTHONPATH": ":".join(sys.path)},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hash_seed in ("1", "2")
    }
    assert len(sums) == 1
    assert list(itertools.islice(documents(5), 20)) != list(itertools.islice(documents(6), 20))


def test_training_text_holds_no_held_out_prompt():
    assert all(example.held_out for task in TASKS for example in held_out_examples(task, 50))
    small_talk = {prompt for prompts, _ in SMALL_TALK for prompt in prompts}
    follow_up = re.compile(r"(Where|What) did \w+ put [^.]*\?")
    rng = random.Random(3)
    prompts = [
        prompt
        for _ in range(300)
        for prompt, _ in make_conversation(rng, 3).turns
        if prompt not in small_talk and not follow_up.fullmatch(prompt) and "story" not in prompt
    ]
    assert len(prompts) > 500
    assert not [prompt for prompt in prompts if Example(prompt, "").held_out]


def test_carries_and_borrows_lead_to_the_answer():
    for example in held_out_examples("arithmetic", 500):
        a, b = map(int, re.findall(r"\d+", example.prompt))
        result = a - b if " - " in example.prompt else a * b if " x " in example.prompt else a + b
        last_sentence = example.answer.removesuffix(".").rsplit(". ", 1)[1]
        assert int(re.findall(r"\d+", last_sentence)[-1]) == result
        written = re.findall(r"[Ww]rite (\d)", example.answer)
        assert int("".join(reversed(written))) == result
        for left, sign, right, stated in re.findall(
            r"(?<![-+x] )\b(\d+) ([-+x]) (\d+) = (\d+)", example.answer
        ):
            value = {"+": int.__add__, "-": int.__sub__, "x": int.__mul__}[sign]
            assert value(int(left), int(right)) == int(stated)


def test_answers_of_the_other_tasks_follow_from_their_prompts():
    for example in held_out_examples("copy", 200):
        assert example.prompt.endswith(f": {example.answer}")
        assert 3 <= len(example.answer.split()) <= 12
    for example in held_out_examples("sort", 200):
        given = example.prompt.rsplit(": ", 1)[1].split(", ")
        down = "largest to smallest" in example.prompt
        key = int if given[0].isdigit() else str
        assert example.answer.split(", ") == sorted(given, key=key, reverse=down)
        assert 3 <= len(set(given)) == len(given) <= 8
    for example in held_out_examples("extract", 200):
        record = json.loads(example.answer)
        assert len(record) >= 2
        assert all(key in example.prompt for key in record)
        assert all(str(value) in example.prompt for value in record.values())
    for example in held_out_examples("recall", 200):
        assert example.prompt.count(example.answer) == 1


def test_scoring_is_exact():
    assert is_exact("1, 2", " 1, 2\n")
    assert not is_exact("1, 2", "1, 2.")
    assert not is_exact("1, 2", "1,2")


def test_packed_rows_hold_whole_documents_and_little_padding():
    raw = Tokenizer.from_file(str(demo_model_path() / "tokenizer.json"))
    rows = packed_rows(raw, 7, rows=8, length=2048)
    assert np.array_equal(rows, packed_rows(raw, 7, rows=8, length=2048))
    assert rows.shape == (8, 2048)
    pad, bos, eos = (raw.token_to_id(token) for token in ("<pad>", BOS, EOS))
    assert (rows == pad).mean() < 0.02
    for row in rows:
        filled = row[row != pad]
        assert filled[0] == bos
        assert filled[-1] == eos


def test_labels_leave_out_what_the_user_says(tokenizer):
    chat = Conversation((("Hi", "Yes"), ("No", "Good")), "Sun")
    ids = tokenizer.encode(chat.text() + "<pad>", add_special_tokens=False)
    vocab = tokenizer.get_vocab()
    labels = make_labels(torch.tensor([ids]), {name: vocab[name] for name in SPECIAL_TOKENS})
    kept = [token for token in labels[0].tolist() if token != IGNORED]
    assert tokenizer.decode(kept) == f"{BOS} Yes{EOS} Good{EOS}"


@pytest.mark.parametrize(
    "text",
    [
        "Once upon a time",
        "  two  spaces and a tab\t",
        "line\n\nfeed\r\n",
        "naïve café, Ωmega, 日本語, \U0001f600\u200d\U0001f525",
        'JSON {"name": "Mia", "age": 7}',
        "1234567890",
        "",
    ],
)
def test_tokenizer_gives_back_any_text(tokenizer, text):
    ids = tokenizer.encode(text)
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_tokenizer_splits_digits_and_falls_back_to_bytes(tokenizer):
    pieces = tokenizer.tokenize("478 \u6c34")
    assert pieces == ["\u2581", "4", "7", "8", "\u2581", "<0xE6>", "<0xB0>", "<0xB4>"]
    assert [tokenizer.convert_tokens_to_ids(token) for token in SPECIAL_TOKENS] == list(range(7))


def test_chat_template_renders_what_the_model_was_trained_on(tokenizer):
    rng = random.Random(1)
    for turns in range(1, 12):
        chat = make_conversation(rng, turns)
        assert tokenizer.apply_chat_template(chat.messages(), tokenize=False) == chat.text()
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert prompt == f"{BOS}{USER}Hi<|assistant|>"
    with pytest.raises(Exception, match="Unknown role tool"):
        tokenizer.apply_chat_template([{"role": "tool", "content": "x"}], tokenize=False)


def test_checkpoint_is_small_and_in_the_form_of_llama():
    files = [path for path in demo_model_path().rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= MAX_CHECKPOINT_BYTES
    config = json.loads((demo_model_path() / "config.json").read_text())
    expected = {"model_type": "llama", "dtype": "bfloat16", "tie_word_embeddings": True}
    assert config.items() >= expected.items()
    assert config["num_key_value_heads"] < config["num_attention_heads"]


def test_checkpoint_keeps_its_type(tokenizer):
    loaded = AutoModelForCausalLM.from_pretrained(demo_model_path(), dtype="auto")
    assert loaded.dtype == torch.bfloat16
    assert loaded.config.vocab_size == len(tokenizer)


@pytest.mark.parametrize("task", TASKS)
def test_exact_match_on_held_out_prompts(model, tokenizer, task):
    assert exact_match(model, tokenizer, task, 20) >= BOUNDS[task]


def test_recall_after_a_long_conversation(model, tokenizer):
    assert exact_match(model, tokenizer, "recall", 8, history_tokens=1000) >= 0.75


def test_a_story_keeps_its_name_and_ends(model, tokenizer):
    asked = [("fox", "Mia"), ("girl", "Zoe"), ("rabbit", "Bulomi")]
    chats = [
        [{"role": "user", "content": f"Tell me a story about a {kind} named {name}."}]
        for kind, name in asked
    ]
    for (kind, name), reply in zip(
        asked, greedy_replies(model, tokenizer, chats, max_new_tokens=600), strict=True
    ):
        assert reply.ended
        assert kind in reply.text
        assert reply.text.count(name) >= 4


def test_a_plain_prompt_continues_as_a_story_and_ends(model, tokenizer):
    inputs = tokenizer("Once upon a time", return_tensors="pt")
    ids = model.generate(**inputs, do_sample=False, max_new_tokens=1500)[0].tolist()
    assert ids[-1] == tokenizer.eos_token_id
    text = tokenizer.decode(ids, skip_special_tokens=True)
    named = re.search(r"(?:named|called) (\w+)", text)
    assert named is not None
    assert text.count(named[1]) >= 4


def test_generated_stories_name_only_their_two_characters():
    rng = random.Random(11)
    known = {name: re.compile(rf"\b{name}\b") for name in words.NAMES}
    for _ in range(100):
        story = make_story(rng)
        assert "{" not in story
        assert sum(bool(pattern.search(story)) for pattern in known.values()) <= 2
