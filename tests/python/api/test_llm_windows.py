# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Models with windows, through Executor, step link and worker process, against transformers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from slipstream.api import LLM, SamplingParams

VOCAB = 160
WINDOW = 24
GREEDY = SamplingParams(max_tokens=40, ignore_eos=True)

FAMILIES = {
    "gemma3_text": {
        "head_dim": 16,
        "sliding_window": WINDOW,
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "query_pre_attn_scalar": 16,
    },
    "mistral": {"sliding_window": WINDOW},  # no layer sees everything
}


def make_model(name: str) -> PreTrainedModel:
    torch.manual_seed(5)
    config = AutoConfig.for_model(
        name,
        vocab_size=VOCAB,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.2,
        dtype="float32",
        **FAMILIES[name],
    )
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


class Windowed:
    """A checkpoint, and prompts of which several begin alike, with their greedy tokens."""

    def __init__(self, name: str, path: Path) -> None:
        self.name = name
        self.path = path
        model = make_model(name)
        model.save_pretrained(path)
        rng = random.Random(1)
        shared = [rng.randrange(VOCAB) for _ in range(90)]
        tails = [[rng.randrange(VOCAB) for _ in range(rng.randint(1, 30))] for _ in range(6)]
        lengths = [1, 16, 30, 64, 90]
        self.prompts = [shared[:n] for n in lengths] + [shared + tail for tail in tails] + tails
        self.expected = [self._greedy(model, prompt) for prompt in self.prompts]

    def _greedy(self, model: PreTrainedModel, prompt: list[int]) -> list[int]:
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=GREEDY.max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        return ids[0, len(prompt) :].tolist()


@pytest.fixture(scope="module", params=FAMILIES)
def windowed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Windowed:
    return Windowed(request.param, tmp_path_factory.mktemp("windowed"))


def tokens(llm: LLM, prompts: list[list[int]]) -> list[list[int]]:
    return [list(out.completions[0].token_ids) for out in llm.generate(prompts, GREEDY)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_num_tokens": 7, "max_num_seqs": 3, "tokens_per_block": 4},
        {"max_num_tokens": 32, "max_num_seqs": 4, "policy": "max_utilization"},
        {"max_num_tokens": 32, "max_num_seqs": 4, "enable_prefix_reuse": False},
    ],
    ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "defaults",
)
def test_greedy_tokens_equal_transformers(windowed: Windowed, options: dict[str, object]) -> None:
    settings = {"kv_cache_tokens": 2048, "tokens_per_block": 8} | options
    with LLM(windowed.path, dtype="float32", **settings) as llm:  # type: ignore[arg-type]
        assert tokens(llm, windowed.prompts) == windowed.expected
        assert tokens(llm, windowed.prompts) == windowed.expected  # with whatever the caches kept
        metrics = llm.metrics()
        assert metrics["kv_blocks_used"] == metrics["kv_bytes_used"] == 0
        assert (metrics["kv_hit_tokens"] > 0) == options.get("enable_prefix_reuse", True)


def test_greedy_tokens_when_preempted(windowed: Windowed) -> None:
    """Pools that cannot hold what max_utilization starts, whichever group runs out first."""
    small = {"kv_cache_tokens": 176, "tokens_per_block": 8, "max_num_tokens": 16}
    with LLM(windowed.path, dtype="float32", policy="max_utilization", **small) as llm:
        assert tokens(llm, windowed.prompts) == windowed.expected
        metrics = llm.metrics()
        assert metrics["preemptions"] > 0
        assert metrics["kv_blocks_used"] == metrics["kv_bytes_used"] == 0


def test_a_window_takes_less_memory_than_the_sequence(windowed: Windowed) -> None:
    """Four sequences at most, each with a window of 4 blocks and one to go on in; 2 for a step."""
    small = {"max_num_seqs": 4, "max_num_tokens": 16, "tokens_per_block": 8}
    with LLM(windowed.path, dtype="float32", kv_cache_tokens=4096, **small) as llm:
        layer_block = 2 * 2 * 8 * 16 * 4
        blocks = 512 * 4 if windowed.name == "mistral" else 512 * 2 + (4 * 5 + 2) * 2
        assert llm.metrics()["kv_bytes"] == blocks * layer_block
        assert tokens(llm, windowed.prompts) == windowed.expected
