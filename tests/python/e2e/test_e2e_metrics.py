# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What /metrics shows, against a schedule whose every number is known."""

from __future__ import annotations

import pytest
from e2e_client import ask, prompt
from e2e_metrics import Metrics, wait_for
from e2e_server import END_ID, Server

TENSORRT_LLM = {
    "nv_trt_llm_request_metrics": (
        "gauge",
        "request_type",
        {"active", "max", "scheduled", "context", "waiting"},
    ),
    "nv_trt_llm_runtime_memory_metrics": ("gauge", "memory_type", {"cpu", "gpu", "pinned"}),
    "nv_trt_llm_kv_cache_block_metrics": (
        "gauge",
        "kv_cache_block_type",
        {"max", "free", "used", "tokens_per", "reused", "fraction"},
    ),
    "nv_trt_llm_disaggregated_serving_metrics": (
        "counter",
        "disaggregated_serving_type",
        {"kv_cache_transfer_ms", "request_count"},
    ),
    "nv_trt_llm_inflight_batcher_metrics": (
        "gauge",
        "inflight_batcher_specific_metric",
        {"total_context_tokens", "generation_requests", "micro_batch_id", "paused_requests"},
    ),
    "nv_trt_llm_general_metrics": ("gauge", "general_type", {"timestamp", "iteration_counter"}),
}
GAUGES = {
    "slipstream_ready": None,
    "slipstream_running": None,
    "slipstream_waiting": None,
    "slipstream_waiting_tokens": None,
    "slipstream_kv_tokens": ("state", {"used", "cached", "free"}),
}
COUNTERS = {
    "slipstream_steps_total": None,
    "slipstream_requests_accepted_total": None,
    "slipstream_requests_rejected_total": None,
    "slipstream_requests_displaced_total": None,
    "slipstream_requests_finished_total": (
        "reason",
        {"stop", "stop_sequence", "length", "cancelled", "deadline", "error"},
    ),
    "slipstream_prompt_tokens_total": None,
    "slipstream_generated_tokens_total": None,
    "slipstream_kv_hit_tokens_total": None,
    "slipstream_kv_lookup_tokens_total": None,
    "slipstream_kv_evicted_blocks_total": None,
    "slipstream_preemptions_total": None,
    "slipstream_worker_restarts_total": None,
}
# Of models that tokenize; the first of them alone, the others beside `llm`.
TOKENIZING = {
    "slipstream_tokenizing": None,
    "slipstream_requests_rejected_total": None,
    "slipstream_requests_displaced_total": None,
    "slipstream_requests_finished_total": ("reason", {"cancelled", "deadline", "error"}),
}
HISTOGRAMS = {
    "slipstream_time_to_first_token_seconds": None,
    "slipstream_inter_token_latency_seconds": None,
    "slipstream_queue_time_seconds": None,
    "slipstream_request_latency_seconds": None,
    "nv_llm_input_token_len": ("response_metric_type", "total_input_tokens"),
    "nv_llm_output_token_len": ("response_metric_type", "total_output_tokens"),
}


def expected_labels(model: str, label: str, values: set[str]) -> set[frozenset[tuple[str, str]]]:
    base = {("model", model), ("version", "1")}
    return {frozenset(base | {(label, value)}) for value in values}


@pytest.mark.parametrize("family", TENSORRT_LLM)
def test_families_of_tensorrt_llm(scripted: Server, family: str) -> None:
    kind, label, values = TENSORRT_LLM[family]
    metrics = scripted.metrics()
    assert metrics.types[family] == kind
    assert metrics.label_sets(family, "llm") == expected_labels("llm", label, values)


def test_no_other_family_of_theirs(scripted: Server) -> None:
    families = {name for name in scripted.metrics().types if name.startswith("nv_trt_llm_")}
    assert families == TENSORRT_LLM.keys()


def test_own_families(scripted: Server) -> None:
    metrics = scripted.metrics()
    for kind, families in (("gauge", GAUGES), ("counter", COUNTERS)):
        for family, labelled in families.items():
            assert metrics.types[family] == kind, family
            base = {frozenset({("model", "llm"), ("version", "1")})}
            wanted = expected_labels("llm", *labelled) if labelled else base
            assert metrics.label_sets(family, "llm") == wanted, family
    for model in ("ensemble", "preprocessing"):
        base = {frozenset({("model", model), ("version", "1")})}
        for family, labelled in TOKENIZING.items():
            wanted = expected_labels(model, *labelled) if labelled else base
            assert metrics.label_sets(family, model) == wanted, family
    assert metrics.types["slipstream_tokenizing"] == "gauge"
    assert not metrics.label_sets("slipstream_tokenizing", "llm")
    for family in HISTOGRAMS:
        assert metrics.types[family] == "histogram"
    known = GAUGES.keys() | COUNTERS.keys() | TOKENIZING.keys() | HISTOGRAMS.keys()
    assert {name for name in metrics.types if name.startswith("slipstream_")} <= known


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.value(name, model="counted", **labels)


def histogram(metrics: Metrics, family: str, part: str, **more: str) -> float:
    extra = HISTOGRAMS[family]
    labels = dict([extra]) if extra else {}
    return value(metrics, f"{family}_{part}", **labels, **more)


def test_counters_of_a_known_schedule(scripted: Server) -> None:
    """One request after the other, on a model that serves nothing else."""
    long = list(range(1000, 1070))
    schedule = [
        # (request, generated tokens of all sequences, prompt tokens found in the cache)
        (prompt(long, 10), 10, 0),
        (prompt(long, 5), 5, 64),  # two whole blocks
        (prompt(long[:40], 3), 3, 39),  # one whole block, and 7 tokens of another by copy
        (prompt(long, 4, cache_salt="other"), 4, 0),
        (prompt([1200, 1201, END_ID], 50), 3, 0),
        (prompt([1300, 1301], 50, stop_words_list=[[1301], [1]]), 2, 0),
        (prompt([1400], 6, num_return_sequences=2), 12, 0),
        (prompt(list(range(1500, 1620)), 30), 30, 0),
    ]
    cached = []
    for fields, _, _ in schedule:
        replies = ask(scripted.grpc, "counted", fields | {"return_usage": True})
        assert {reply.error for reply in replies} == {""}
        cached.append(max(r.one("cached_tokens") for r in replies if r.outputs))
    assert cached == [hit for _, _, hit in schedule]
    [refused] = ask(scripted.grpc, "counted", prompt([1], 5000))
    assert refused.error
    generated = sum(count for _, count, _ in schedule)
    wait_for(
        lambda: scripted.settled("slipstream_kv_tokens", "counted", state="used") == 0,
        5,
        "the last step has ended",
    )
    metrics = scripted.settled_metrics("counted")
    assert value(metrics, "slipstream_generated_tokens_total") == generated == 69
    assert value(metrics, "slipstream_requests_accepted_total") == 8
    assert value(metrics, "slipstream_requests_rejected_total") == 0
    finished = {"length": 7, "stop": 1, "stop_sequence": 1}
    for reason in ("stop", "stop_sequence", "length", "cancelled", "deadline", "error"):
        name = "slipstream_requests_finished_total"
        assert value(metrics, name, reason=reason) == finished.get(reason, 0), reason
    prompts = [70, 70, 40, 70, 3, 2, 1, 120]
    assert value(metrics, "slipstream_prompt_tokens_total") == sum(prompts) + 1  # two sequences
    assert value(metrics, "slipstream_kv_lookup_tokens_total") == sum(prompts) + 1
    assert value(metrics, "slipstream_kv_hit_tokens_total") == 64 + 39
    for name in ("preemptions", "kv_evicted_blocks", "worker_restarts"):
        assert value(metrics, f"slipstream_{name}_total") == 0
    assert value(metrics, "nv_trt_llm_kv_cache_block_metrics", kv_cache_block_type="reused") == 3
    check_gauges(metrics)
    check_histograms(metrics, prompts, [10, 5, 3, 4, 3, 2, 6, 6, 30])


def check_gauges(metrics: Metrics) -> None:
    """Nothing runs."""
    for name in ("slipstream_running", "slipstream_waiting", "slipstream_waiting_tokens"):
        assert value(metrics, name) == 0
    assert value(metrics, "slipstream_ready") == 1
    tokens = {
        s: value(metrics, "slipstream_kv_tokens", state=s) for s in ("used", "cached", "free")
    }
    assert tokens["used"] == 0
    assert tokens["cached"] + tokens["free"] == 4096 * 32
    # Whole blocks that hold computed tokens: 79 and 73 (another salt), 149 of the last request.
    assert tokens["cached"] == (2 + 2 + 4) * 32
    for kind, expected in {"max": 4096, "used": 0, "free": 4096, "tokens_per": 32}.items():
        name = "nv_trt_llm_kv_cache_block_metrics"
        assert value(metrics, name, kv_cache_block_type=kind) == expected
    for kind, expected in {"active": 0, "max": 64, "waiting": 0}.items():
        assert value(metrics, "nv_trt_llm_request_metrics", request_type=kind) == expected
    name = "nv_trt_llm_runtime_memory_metrics"
    assert value(metrics, name, memory_type="cpu") == 4096 * 1024
    assert value(metrics, name, memory_type="gpu") == 0
    steps = value(metrics, "slipstream_steps_total")
    name = "nv_trt_llm_general_metrics"
    assert value(metrics, name, general_type="iteration_counter") == steps


def check_histograms(metrics: Metrics, prompts: list[int], outputs: list[int]) -> None:
    for family, lengths in (("input", prompts), ("output", outputs)):
        name = f"nv_llm_{family}_token_len"
        assert histogram(metrics, name, "count") == len(lengths)
        assert histogram(metrics, name, "sum") == sum(lengths)
        for bound in (10, 50, 100, 500, 1000):
            within = sum(length <= bound for length in lengths)
            assert histogram(metrics, name, "bucket", le=str(bound)) == within
        assert histogram(metrics, name, "bucket", le="+Inf") == len(lengths)
    counts = {
        "time_to_first_token": len(outputs),
        "queue_time": len(outputs),
        "request_latency": len(outputs),
        "inter_token_latency": sum(outputs) - len(outputs),
    }
    for name, count in counts.items():
        assert histogram(metrics, f"slipstream_{name}_seconds", "count") == count, name
    latency = histogram(metrics, "slipstream_request_latency_seconds", "sum")
    assert latency >= sum(outputs) / 1000 * 0.6  # a step takes a millisecond
