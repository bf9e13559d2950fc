# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What runs beside a request decides at most what rounding decides; with ``deterministic`` not even
that. Through Executor, step link and worker process, on the CPU."""

from __future__ import annotations

import os
import random
import signal
from itertools import islice
from pathlib import Path

import psutil
import pytest
from api_checkpoints import VOCAB, save_latents, save_llama, save_mixture
from company import EPSILON, answers, check, first_difference, gap, in_any_company

from slipstream.api import LLM, SamplingParams, TokenLogprobs
from slipstream.demo import demo_model_path
from slipstream.demo.corpus import documents
from slipstream.demo.words import NOUNS

SHORT = SamplingParams(max_tokens=8, ignore_eos=True, logprobs=4)
LONG = SamplingParams(max_tokens=48, ignore_eos=True, logprobs=4)
CANARIES = range(90, VOCAB)  # tokens that random prompts do not have otherwise
MODELS = [  # by their fixtures
    "llama",
    pytest.param("mixture", marks=pytest.mark.slow),
    pytest.param("latents", marks=pytest.mark.slow),
]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"), initializer_range=0.2)


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_mixture(tmp_path_factory.mktemp("mixture"), initializer_range=0.2)


@pytest.fixture(scope="module")
def latents(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_latents(tmp_path_factory.mktemp("latents"), initializer_range=0.2)


def random_prompts() -> list[list[int]]:
    """64 prompts, each a beginning of the same text, its own canary, and more of its own."""
    rng = random.Random(0)
    shared = [rng.randrange(CANARIES[0]) for _ in range(100)]
    return [
        [*shared[: rng.randint(1, 100)], CANARIES[i], *rng.choices(shared, k=rng.randint(1, 30))]
        for i in range(64)
    ]


def prompts_of_demo(count: int) -> list[list[int]]:
    """Beginnings of texts such as the model was trained on, many with a beginning in common."""
    rng = random.Random(0)
    with LLM(demo_model_path(), device="cpu", kv_cache_tokens=512) as llm:
        texts = [llm.tokenizer(text)["input_ids"] for text in islice(documents("gpu"), 24)]
    chosen = [rng.choice(texts) for _ in range(count)]
    return [ids[: rng.randint(1, min(len(ids), 200))] for ids in chosen]


def parts_only_where_close(
    dtype: str, one: list[TokenLogprobs], other: list[TokenLogprobs]
) -> bool:
    where = first_difference(one, other)
    return where is None or gap(one, where) < EPSILON[dtype]


def check_company(
    path: Path, prompts: list[list[int]], params: SamplingParams, dtype: str, deterministic: bool
) -> None:
    lone, found = in_any_company(path, prompts, params, dtype=dtype, deterministic=deterministic)
    differing = 0
    for others in found.values():
        if deterministic:
            check(lone, others, lambda one, other: one == other)
        else:
            alike = lambda one, other: parts_only_where_close(dtype, one, other)  # noqa: E731
            differing += check(lone, others, alike)
    # What deterministic promises is no matter of course: so this test can fail.
    assert deterministic or differing > 0


def cases(*fast: tuple[str, bool]) -> list[object]:
    """Of dtype and ``deterministic``; all but those of ``fast`` are slow."""
    return [
        pytest.param(
            dtype,
            deterministic,
            id=f"{dtype}{'-deterministic' * deterministic}",
            marks=() if (dtype, deterministic) in fast else pytest.mark.slow,
        )
        for dtype in EPSILON
        for deterministic in (False, True)
    ]


@pytest.mark.parametrize(("dtype", "deterministic"), cases(("bfloat16", False), ("bfloat16", True)))
def test_company_of_a_random_llama(llama: Path, dtype: str, deterministic: bool) -> None:
    check_company(llama, random_prompts(), SHORT, dtype, deterministic)


@pytest.mark.parametrize(
    ("model", "dtype"),
    [
        ("mixture", "bfloat16"),
        pytest.param("mixture", "float32", marks=pytest.mark.slow),
        pytest.param("latents", "bfloat16", marks=pytest.mark.slow),
        pytest.param("latents", "float32", marks=pytest.mark.slow),
    ],
)
def test_company_of_random_experts(model: str, dtype: str, request: pytest.FixtureRequest) -> None:
    """Who shares an expert with whom is another thing in another company."""
    check_company(request.getfixturevalue(model), random_prompts()[::2], SHORT, dtype, True)


@pytest.mark.slow
def test_company_of_the_demo_model_with_experts() -> None:
    check_company(demo_model_path("demo-moe"), prompts_of_demo(64), LONG, "bfloat16", True)


@pytest.mark.slow
@pytest.mark.parametrize(("dtype", "deterministic"), cases())
def test_company_of_the_demo_model(dtype: str, deterministic: bool) -> None:
    check_company(demo_model_path(), prompts_of_demo(64), LONG, dtype, deterministic)


@pytest.mark.parametrize("model", MODELS)
def test_no_canary_crosses_to_another_request(model: str, request: pytest.FixtureRequest) -> None:
    """One prompt's canary becomes another: every other request answers as before, to the bit."""
    prompts = random_prompts()
    changed = [list(prompt) for prompt in prompts]
    where = changed[17].index(CANARIES[17])
    changed[17][where] = CANARIES[64]
    options = {"kv_cache_tokens": 1 << 15, "max_num_tokens": 64, "deterministic": True}
    found = []
    for batch in (prompts, changed):
        path = request.getfixturevalue(model)
        with LLM(path, device="cpu", **options) as llm:  # type: ignore[arg-type]
            found.append(answers(llm, batch, SHORT))
    before, after = found
    assert before[17] != after[17], "the canary is not felt"
    assert [i for i in range(64) if before[i] != after[i]] == [17]


@pytest.mark.slow
def test_requests_recall_their_own_words_and_no_others() -> None:
    """In any mode: 48 requests together, each with words that no other has."""
    own = [NOUNS[i : i + 3] for i in range(0, 3 * 48, 3)]
    with LLM(demo_model_path(), device="cpu", kv_cache_tokens=1 << 14) as llm:
        prompts = []
        for words in own:
            asked = [{"role": "user", "content": f"Repeat these words: {' '.join(words)}"}]
            prompts.append(
                llm.tokenizer.apply_chat_template(
                    asked, add_generation_prompt=True, tokenize=True, return_dict=False
                )
            )
        outputs = llm.generate(prompts, SamplingParams(max_tokens=24))
    replies = [output.completions[0].text.split() for output in outputs]
    everybody = {word for words in own for word in words}
    for words, reply in zip(own, replies, strict=True):
        assert everybody & set(reply) <= set(words)
    right = sum(list(words) == reply for words, reply in zip(own, replies, strict=True))
    assert right >= 40, "the model is to recall, or nothing could cross"


def test_what_it_is_not_served_for_is_refused_at_start() -> None:
    message = "deterministic is true: .* kv_cache_dtype is 'fp8'; set false"
    with pytest.raises(RuntimeError, match=message):
        LLM(demo_model_path(), device="cpu", deterministic=True, kv_cache_dtype="fp8")


def worker_process() -> psutil.Process:
    """The worker started last."""
    children = psutil.Process().children()
    workers = [c for c in children if "slipstream.worker" in " ".join(c.cmdline())]
    return max(workers, key=psutil.Process.create_time)


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("deaths", [1, pytest.param(5, marks=pytest.mark.slow)])
def test_the_death_of_the_worker_changes_no_bit(
    model: str, deaths: int, request: pytest.FixtureRequest
) -> None:
    """What a new worker computes again, with other company, are the keys and values it had."""
    prompts = random_prompts()
    params = SamplingParams(max_tokens=120, ignore_eos=True, logprobs=4, temperature=0.8, seed=3)
    path = request.getfixturevalue(model)
    with LLM(path, device="cpu", kv_cache_tokens=1 << 14, deterministic=True) as llm:
        undisturbed = answers(llm, prompts[:1], params)[0]
        for death in range(deaths):
            found: list[TokenLogprobs] = []
            killed = False
            for chunk in llm.stream(prompts[0], params):
                found += chunk.logprobs
                if not killed and len(found) > 10 * (death + 1):
                    os.kill(worker_process().pid, signal.SIGKILL)
                    killed = True
            assert found == undisturbed
        assert llm.metrics()["worker_restarts"] == deaths
