# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The demo model with experts: trained by one formula, saved and served by others."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import torch
from safetensors import safe_open
from transformers import Qwen3MoeForCausalLM

from slipstream.api import LLM, SamplingParams
from slipstream.demo import demo_model_path
from slipstream.demo.mixture import EXPERTS, make_mixture, unevenness
from slipstream.demo.tasks import TASKS, held_out_examples, is_exact
from slipstream.models.checkpoint import Checkpoint
from slipstream.models.loader import load_decoder

MAX_WEIGHT_BYTES = 7_500_000


@pytest.fixture(scope="module")
def model() -> Qwen3MoeForCausalLM:
    torch.manual_seed(1)
    sizes = {"vocab_size": 2560, "num_hidden_layers": 6, "max_position_embeddings": 2048}
    return make_mixture(**sizes, tie_word_embeddings=True)


def gradients(model: Qwen3MoeForCausalLM, how: str) -> dict[str, torch.Tensor]:
    tokens = torch.randint(0, 2560, (2, 30), generator=torch.Generator().manual_seed(2))
    model.set_experts_implementation(how)
    model.zero_grad()
    logits = model(input_ids=tokens, use_cache=False).logits
    loss = logits.logsumexp(-1).mean() + unevenness(model)
    loss.backward()
    return {"loss": loss.detach()} | {
        name: parameter.grad.clone() for name, parameter in model.named_parameters()
    }


def test_training_through_all_experts_is_training_through_the_chosen(model):
    ours, eager = gradients(model, "every_expert"), gradients(model, "eager")
    assert ours.keys() == eager.keys()
    for name, gradient in ours.items():
        torch.testing.assert_close(gradient, eager[name], rtol=1e-3, atol=1e-6, msg=name)
    assert any(gradient.abs().max() > 1e-4 for name, gradient in ours.items() if "gate.w" in name)


def test_unevenness_is_1_for_an_even_load_and_4_for_two_of_8_experts(model):
    router = model.model.layers[0].mlp.gate
    weight = router.weight.detach().clone()
    with torch.no_grad():
        router.weight.copy_(torch.eye(EXPERTS, 192) * 1000)
        pairs = torch.eye(EXPERTS, 192) + torch.eye(EXPERTS, 192).roll(1, dims=0) * 0.9
        router(pairs)
        assert router.unevenness.item() == pytest.approx(1.0)
        router(pairs[:1].expand(5, -1))
        assert router.unevenness.item() == pytest.approx(EXPERTS / 2)
        router.weight.copy_(weight)


def test_the_worker_reads_what_training_saves(model, tmp_path):
    model.set_experts_implementation("every_expert")
    saved = Qwen3MoeForCausalLM(model.config)
    saved.load_state_dict(model.state_dict())
    saved.to(torch.bfloat16).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    assert file.stat().st_size < MAX_WEIGHT_BYTES
    decoder = load_decoder(Checkpoint(tmp_path), torch.bfloat16, torch.device("cpu"))
    with safe_open(file, framework="pt") as tensors:
        stored = tensors.get_tensor("model.layers.5.mlp.experts.7.up_proj.weight")
    experts = decoder.layers[5].mlp.experts
    assert experts.gate_up.shape == (EXPERTS, 160, 192)
    assert torch.equal(experts.gate_up[7, 80:], stored)


@pytest.fixture(scope="module")
def served() -> Iterator[LLM]:
    with LLM(demo_model_path("demo-moe"), dtype="float32", kv_cache_tokens=32768) as llm:
        yield llm


@pytest.mark.parametrize("task", TASKS)
def test_the_shipped_mixture_answers_exactly_when_served(served, task):
    """Through the executor and the worker's own experts; the card reports at least 99 %."""
    examples = held_out_examples(task, 20)
    tokenizer = served.tokenizer
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": example.prompt}],
            add_generation_prompt=True,
            return_dict=False,
        )
        for example in examples
    ]
    outputs = served.generate(prompts, SamplingParams(max_tokens=400))
    exact = [
        output.completions[0].finish_reason == "stop" and is_exact(example.answer, output.text)
        for example, output in zip(examples, outputs, strict=True)
    ]
    assert sum(exact) >= 18


def test_the_load_of_experts_is_among_the_metrics(served):
    def computed() -> int:
        return sum(served.metrics()["expert_tokens"][3])

    served.generate([[5, 6, 7]], SamplingParams(max_tokens=2, ignore_eos=True))
    deadline = time.monotonic() + 30
    while (before := computed()) == 0:  # the worker tells about once a second
        assert time.monotonic() < deadline
        time.sleep(0.01)
    metrics = served.metrics()
    assert list(metrics["expert_tokens"]) == list(metrics["expert_imbalance"]) == list(range(6))
    *others, last = (sum(tokens) for tokens in metrics["expert_tokens"].values())
    assert others == [before] * 5
    assert 0 < last < before, "of a prompt the last layer computes the last token alone"
    tokens = metrics["expert_tokens"][3]
    assert metrics["expert_imbalance"][3] == pytest.approx(max(tokens) / (before / EXPERTS))


def test_the_shipped_mixture_is_small_and_has_the_same_tokenizer():
    dense, mixture = demo_model_path(), demo_model_path("demo-moe")
    assert sum(file.stat().st_size for file in mixture.iterdir()) <= 8_000_000
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (mixture / name).read_bytes() == (dense / name).read_bytes()
