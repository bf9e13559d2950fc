# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The whole path below Triton (Executor, step link, worker process) against transformers."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from api_checkpoints import prompts_with_a_prefix_in_common, save_llama
from transformers import AutoModelForCausalLM

from slipstream.api import LLM, SamplingParams
from slipstream.demo import demo_model_path
from slipstream.errors import RequestError

GREEDY = SamplingParams(max_tokens=24, ignore_eos=True)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("llama"), initializer_range=0.2)


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return prompts_with_a_prefix_in_common([1, 5, 31, 32, 33, 64, 70])


@pytest.fixture(scope="module")
def expected(checkpoint: Path, prompts: list[list[int]]) -> list[list[int]]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    outputs = []
    for prompt in prompts:
        with torch.no_grad():
            ids = model.generate(
                torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=GREEDY.max_tokens,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
            )
        outputs.append(ids[0, len(prompt) :].tolist())
    return outputs


def tokens(llm: LLM, prompts: list[list[int]], params: SamplingParams = GREEDY) -> list[list[int]]:
    return [list(out.completions[0].token_ids) for out in llm.generate(prompts, params)]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"enable_prefix_reuse": False},
        {"max_num_tokens": 1, "max_num_seqs": 1},
        {"max_num_tokens": 7, "max_num_seqs": 5},
        {"tokens_per_block": 8, "max_num_tokens": 50},
        {"kv_cache_tokens": 320, "policy": "max_utilization", "tokens_per_block": 8},
        {"kv_cache_tokens": 160, "tokens_per_block": 4},
    ],
    ids=lambda o: ",".join(f"{k}={v}" for k, v in o.items()) or "defaults",
)
def test_greedy_tokens_equal_transformers(
    checkpoint: Path,
    prompts: list[list[int]],
    expected: list[list[int]],
    options: dict[str, object],
) -> None:
    settings = {"kv_cache_tokens": 8192} | options
    with LLM(checkpoint, dtype="float32", **settings) as llm:  # type: ignore[arg-type]
        assert tokens(llm, prompts) == expected
        assert tokens(llm, prompts) == expected  # now with whatever the cache kept
        metrics = llm.metrics()
        assert metrics["kv_blocks_used"] == 0
        if options.get("policy") == "max_utilization":
            assert metrics["preemptions"] > 0
        if options.get("enable_prefix_reuse") is False:
            assert metrics["kv_hit_tokens"] == 0
        else:
            assert metrics["kv_hit_tokens"] > 0


def worker_process() -> psutil.Process:
    """The worker started last."""
    children = psutil.Process().children()
    workers = [c for c in children if "slipstream.worker" in " ".join(c.cmdline())]
    return max(workers, key=psutil.Process.create_time)


def test_streams_survive_the_death_of_the_worker(
    checkpoint: Path, prompts: list[list[int]]
) -> None:
    greedy = SamplingParams(max_tokens=200, ignore_eos=True)
    sampled = SamplingParams(max_tokens=200, ignore_eos=True, temperature=1.0, seed=11)
    with LLM(checkpoint, dtype="float32", kv_cache_tokens=8192) as llm:
        undisturbed = [
            llm.generate(prompt, params)[0].completions[0].token_ids
            for prompt in prompts[:4]
            for params in (greedy, sampled)
        ]
        results: dict[int, list[int]] = {}
        begun = threading.Barrier(9)

        def follow(index: int, prompt: list[int], params: SamplingParams) -> None:
            got: list[int] = []
            for chunk in llm.stream(prompt, params):
                if not got:
                    begun.wait(timeout=60)
                got += chunk.token_ids
            results[index] = got

        jobs = [(prompt, params) for prompt in prompts[:4] for params in (greedy, sampled)]
        threads = [threading.Thread(target=follow, args=(i, *job)) for i, job in enumerate(jobs)]
        for thread in threads:
            thread.start()
        begun.wait(timeout=60)
        os.kill(worker_process().pid, signal.SIGKILL)
        for thread in threads:
            thread.join(timeout=120)
        assert [results[i] for i in range(len(jobs))] == undisturbed
        assert llm.metrics()["worker_restarts"] == 1


@pytest.fixture(scope="module")
def demo() -> Iterator[LLM]:
    with LLM(demo_model_path(), kv_cache_tokens=16384) as llm:
        yield llm


def test_streamed_text_equals_the_whole(demo: LLM) -> None:
    params = SamplingParams(max_tokens=60)
    whole = demo.generate("Once upon a time", params)[0]
    chunks = list(demo.stream("Once upon a time", params))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert [t for c in chunks for t in c.token_ids] == whole.completions[0].token_ids
    assert [c.finish_reason for c in chunks[:-1]] == [""] * (len(chunks) - 1)
    assert chunks[-1].finish_reason == whole.completions[0].finish_reason


def test_stop_strings_cut_the_text(demo: LLM) -> None:
    whole = demo.generate("Once upon a time", SamplingParams(max_tokens=60))[0].text
    stop = whole[20:26]
    cut = whole.index(stop)
    completion = demo.generate("Once upon a time", SamplingParams(max_tokens=60, stop=(stop,)))[
        0
    ].completions[0]
    assert completion.text == whole[:cut]
    assert (completion.finish_reason, completion.stop_reason) == ("stop_sequence", stop)


def test_a_tokenizer_apart_from_the_weights_makes_the_text(demo: LLM, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(demo_model_path(), bare, ignore=shutil.ignore_patterns("tokenizer*"))
    plain = SamplingParams(max_tokens=40)
    expected = demo.generate("Once upon a time", plain)[0].text
    assert len(expected) > 40
    stop = expected[20:26]
    with LLM(bare, tokenizer=demo_model_path(), kv_cache_tokens=16384) as llm:
        assert llm.generate("Once upon a time", plain)[0].text == expected
        cut = llm.generate("Once upon a time", SamplingParams(max_tokens=40, stop=(stop,)))[0]
    assert cut.text == expected[: expected.index(stop)]


def test_same_seed_same_tokens_alone_and_among_others(demo: LLM) -> None:
    params = SamplingParams(max_tokens=20, temperature=1.2, seed=5, ignore_eos=True)
    alone = demo.generate("Once upon", params)[0].completions[0].token_ids
    crowd = ["Once upon"] + [f"There was a {i}" for i in range(30)]
    assert demo.generate(crowd, params)[0].completions[0].token_ids == alone
    unseeded = SamplingParams(max_tokens=20, temperature=1.5, ignore_eos=True, n=8)
    distinct = {tuple(c.token_ids) for c in demo.generate("Once", unseeded)[0].completions}
    assert len(distinct) > 1


def test_logprobs_belong_to_the_tokens(demo: LLM) -> None:
    completion = demo.generate("Once upon a time", SamplingParams(max_tokens=8, logprobs=3))[
        0
    ].completions[0]
    assert [lp.token_id for lp in completion.logprobs] == completion.token_ids
    for logprob in completion.logprobs:
        assert len(logprob.top) == 3
        assert logprob.logprob == pytest.approx(max(logprob.top.values()), abs=1e-5)  # greedy
    total = sum(lp.logprob for lp in completion.logprobs)
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-4)


def test_attention_backends_reach_the_worker() -> None:
    path = demo_model_path()
    with LLM(path, device="cpu", kv_cache_tokens=512, attention_backend="sdpa") as llm:
        assert llm.generate([300], SamplingParams(max_tokens=1))
    message = "attention_backend is 'flashinfer': device is 'cpu', an NVIDIA GPU of"
    with pytest.raises(RuntimeError, match=message):
        LLM(path, device="cpu", kv_cache_tokens=512, attention_backend="flashinfer")


def test_wrong_requests_name_the_field(demo: LLM) -> None:
    with pytest.raises(RequestError, match=r"top_p\): 1.5 is outside"):
        demo.generate("x", SamplingParams(top_p=1.5))
    with pytest.raises(RequestError, match="input_ids: token id 999999"):
        demo.generate([999999])
    with pytest.raises(RequestError, match="tempreture: Extra inputs are not permitted"):
        SamplingParams(tempreture=1.0)
    with pytest.raises(RequestError, match="max_new_tokens: 10000000000 is not an integer in"):
        demo.generate("x", SamplingParams(max_tokens=10**10))
    with pytest.raises(RequestError, match=r"seed: -1 is not an integer in \[0, 184"):
        demo.generate("x", SamplingParams(seed=-1))
    assert demo.metrics()["running"] == 0


@pytest.mark.parametrize(
    ("prompts", "message"),
    [
        (None, "prompt: None is neither"),
        (5, "prompt: 5 is neither"),
        (b"abc", "prompt: b'abc' is neither"),
        (["a", 5], "prompt: 5 is neither"),
        ([[1, "x"]], "prompt: element 1 is 'x', not a token id"),
        ("\ud800", "is not valid Unicode: surrogates not allowed"),
    ],
)
def test_wrong_prompts_are_named(demo: LLM, prompts: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        demo.generate(prompts)


def test_a_refused_prompt_leaves_none_of_its_batch_behind(demo: LLM) -> None:
    with pytest.raises(RequestError, match="token id 999999"):
        demo.generate([[300, 301], [999999]], SamplingParams(max_tokens=1500, ignore_eos=True))
    assert not demo._queues
    deadline = time.monotonic() + 20
    while demo.metrics()["running"] + demo.metrics()["waiting"] > 0:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_worker_comes_back_with_the_cache_it_had() -> None:
    """Whatever memory is free at the time of the restart."""
    prompt = list(range(300, 340))
    with LLM(demo_model_path(), device="cpu", kv_cache_fraction=0.2) as llm:
        first = llm.generate([prompt], GREEDY)[0].completions[0].token_ids
        blocks = llm.metrics()["kv_blocks_total"]
        hog = bytearray(3 << 30)
        hog[::4096] = b"x" * len(hog[::4096])  # so that less is free than before
        os.kill(worker_process().pid, signal.SIGKILL)
        assert llm.generate([prompt], GREEDY)[0].completions[0].token_ids == first
        assert llm.metrics()["kv_blocks_total"] == blocks
        assert llm.metrics()["worker_restarts"] == 1
        del hog


def test_the_package_itself_offers_the_api_without_importing_it() -> None:
    code = (
        "import sys, slipstream; assert not [m for m in sys.modules if m.startswith("
        "('torch', 'pydantic', 'slipstream.api', 'slipstream._core'))]; "
        "from slipstream.api import LLM; assert slipstream.LLM is LLM; "
        "from slipstream import SamplingParams"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
