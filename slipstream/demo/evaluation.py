# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""How good a model is at the demo model's text: exact match on the tasks, and perplexity."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from transformers import (
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from slipstream.demo.corpus import ASSISTANT, BOS, EOS, SYSTEM, USER, documents, make_conversation
from slipstream.demo.stories import make_story
from slipstream.demo.tasks import TASKS, held_out_examples, is_exact
from slipstream.demo.tokenizer import PAD, SPECIAL_TOKENS

IGNORED = -100
HISTORY_TOKENS = 1000
MAX_REPLY_TOKENS = 192
_BATCH = 50  # prompts decoded at once on a CPU; a GPU takes eight times as many
_HISTORY_TOPICS = 40  # more than any history that fits; cut to the asked length

Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Reply:
    """What the model answered, and whether it ended by itself (with the end-of-sequence token)."""

    text: str
    ended: bool


def greedy_replies(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    conversations: list[Messages],
    max_new_tokens: int = MAX_REPLY_TOKENS,
) -> list[Reply]:
    """The model's greedy reply to each conversation, in order."""
    replies = []
    generator: Any = model  # how `generate` is typed differs between releases of transformers
    batch = _BATCH if model.device.type == "cpu" else 8 * _BATCH
    for start in range(0, len(conversations), batch):
        prompts = [
            str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
            for chat in conversations[start : start + batch]
        ]
        inputs = tokenizer(prompts, add_special_tokens=False, padding=True, return_tensors="pt").to(
            model.device
        )
        with torch.inference_mode():
            output = generator.generate(**inputs, max_new_tokens=max_new_tokens, do_sample=False)
        for ids in output[:, inputs["input_ids"].shape[1] :].tolist():
            text = str(tokenizer.decode(ids, skip_special_tokens=True))
            replies.append(Reply(text, tokenizer.eos_token_id in ids))
    return replies


def history(tokenizer: PreTrainedTokenizerBase, tokens: int, seed: int) -> Messages:
    """Earlier turns, from the training part, of at most and nearly `tokens` tokens in all."""
    rng = random.Random(f"history {seed}")
    messages: Messages = []
    used = 1
    for user, reply in make_conversation(rng, _HISTORY_TOPICS).turns:
        cost = len(tokenizer.encode(user + reply, add_special_tokens=False)) + 3
        if used + cost <= tokens:
            messages.append({"role": "user", "content": user})
            messages.append({"role": "assistant", "content": reply})
            used += cost
    return messages


def exact_match(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    count: int,
    *,
    history_tokens: int = 0,
) -> float:
    """Share of `count` held-out examples of `task` answered exactly and ended with eos.

    With `history_tokens`, each prompt comes after about that many tokens of unrelated conversation.
    """
    examples = held_out_examples(task, count)
    conversations = [
        [
            *(history(tokenizer, history_tokens, index) if history_tokens else []),
            {"role": "user", "content": example.prompt},
        ]
        for index, example in enumerate(examples)
    ]
    replies = greedy_replies(model, tokenizer, conversations)
    right = (
        reply.ended and is_exact(example.answer, reply.text)
        for example, reply in zip(examples, replies, strict=True)
    )
    return sum(right) / count


def make_labels(tokens: torch.Tensor, special_ids: Mapping[str, int]) -> torch.Tensor:
    """`tokens` `[rows, length]` with `IGNORED` for padding and for what user and system say."""
    prompt_starts = (tokens == special_ids[USER]) | (tokens == special_ids[SYSTEM])
    markers = prompt_starts | (tokens == special_ids[ASSISTANT])
    starts = markers | (tokens == special_ids[BOS])
    index = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    last_start = torch.where(starts, index, 0).cummax(dim=1).values
    in_prompt = prompt_starts.gather(1, last_start)
    return tokens.masked_fill(in_prompt | markers | (tokens == special_ids[PAD]), IGNORED)


def perplexity(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> float:
    """Per predicted token of `texts` (special tokens included in them); prompts do not count."""
    vocab = tokenizer.get_vocab()
    special_ids = {name: vocab[name] for name in SPECIAL_TOKENS}
    total, count = 0.0, 0
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False)
        tokens = torch.tensor([ids], device=model.device)
        targets = make_labels(tokens, special_ids)[0, 1:]
        with torch.inference_mode():
            logits = model(input_ids=tokens).logits[0, :-1].float()
        total += F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum").item()
        count += int((targets != IGNORED).sum())
    return math.exp(total / count)


@dataclass(frozen=True)
class Results:
    """Exact match per task, alone and after a history, as shares of one; perplexity per text."""

    count: int
    history_tokens: int
    exact_match: dict[str, tuple[float, float]]
    perplexity: dict[str, float]


def measure(checkpoint: Path, device: torch.device, count: int) -> Results:
    """Measures the model in the folder `checkpoint` in float32 on `count` prompts per task."""
    model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    torch.nn.Module.to(model, device)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    rates = {
        task: (
            exact_match(model, tokenizer, task, count),
            exact_match(model, tokenizer, task, count, history_tokens=HISTORY_TOKENS),
        )
        for task in TASKS
    }
    rng = random.Random("perplexity")
    stories = [f"{BOS}{make_story(rng)}{EOS}" for _ in range(count)]
    mix = list(itertools.islice(documents("perplexity"), count))
    perplexities = {
        "plain stories": perplexity(model, tokenizer, stories),
        "stories and conversations as in training": perplexity(model, tokenizer, mix),
    }
    return Results(count, HISTORY_TOKENS, rates, perplexities)
