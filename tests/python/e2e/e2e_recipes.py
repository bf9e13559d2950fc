# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What the shared servers serve."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from e2e_server import Recipe, Variant

from slipstream.demo import demo_model_path

# Slow enough for the server's own races (cancelled gRPC streams, flooded HTTP streams).
PACED_STEP_US = 20_000
_QUICK_STATISTICS = {"stats_check_period_ms": 10, "cancellation_check_period_ms": 10}

SCRIPTED = Recipe(
    key="scripted",
    overrides=_QUICK_STATISTICS,
    scripted={"emit": "echo", "step_us": 1000, "bytes_per_block": 1024},
    variants=(
        Variant("paced", scripted={"step_us": PACED_STEP_US}),
        Variant("unary", {"decoupled": False}),
        Variant("unary_fp16", {"decoupled": False, "logits_datatype": "FP16"}, ensemble=False),
        # One runs, one waits, the third is refused.
        Variant(
            "narrow",
            {"max_num_seqs": 1, "max_queue_requests": 1},
            {"step_us": PACED_STEP_US},
        ),
        # 12 blocks of 4 tokens, handed out until they run out.
        Variant(
            "cramped",
            {"scheduler_policy": "max_utilization", "enable_prefix_reuse": False},
            {"num_blocks": 12, "tokens_per_block": 4, "step_us": 2000},
        ),
        Variant("short", scripted={"max_seq_len": 24}),
        Variant("counted"),
        Variant("keeping", {"skip_special_tokens": False}),
        Variant(
            "failing", {"max_restarts": 0}, {"fail_at_step": 4, "fault_count": 1000}, at_start=False
        ),
        Variant("leaving", {}, {"step_us": PACED_STEP_US}, at_start=False),
        Variant("unstartable", {}, {"fail_starts": 1000}, ensemble=False, at_start=False),
        Variant(
            "broken",
            {"worker": "process", "model": str(Path(__file__).parent)},
            ensemble=False,
            at_start=False,
        ),
    ),
)

DEMO = Recipe(
    key="demo",
    overrides=_QUICK_STATISTICS
    | {
        "model": str(demo_model_path()),
        "dtype": "float32",
        "kv_cache_tokens": 16384,
        "max_num_seqs": 16,
        "restart_backoff_ms": 50,
    },
)

TENSORRT_LLM = Recipe(
    key="tensorrt_llm",
    overrides=_QUICK_STATISTICS | {"naming": "tensorrt_llm", "max_batch_size": 8},
    scripted={"emit": "echo", "step_us": 1000},
    models=("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "steps"),
)

BLS = replace(
    DEMO,
    key="bls",
    overrides=DEMO.overrides | {"naming": "tensorrt_llm", "max_restarts": 0},
    models=("preprocessing", "tensorrt_llm", "postprocessing", "ensemble", "tensorrt_llm_bls"),
)

# For tests in which clients leave. A prompt of a few hundred tokens takes half a second here, and
# of three requests one waits.
LEFT = Recipe(
    key="left",
    overrides=_QUICK_STATISTICS | {"max_num_seqs": 2, "max_num_tokens": 16},
    scripted={"emit": "echo", "step_us": PACED_STEP_US, "bytes_per_block": 1024},
    variants=(Variant("unary", {"decoupled": False}),),
)
# Slower: so many gRPC streams are cancelled that the server's race needs more room.
CROWDED = replace(
    LEFT,
    key="crowded",
    overrides=_QUICK_STATISTICS | {"max_num_seqs": 16},
    scripted=dict(LEFT.scripted or {}) | {"step_us": 50_000},
)

# For tests that end the server.
DRAINED = Recipe(
    key="drained",
    overrides=_QUICK_STATISTICS,
    scripted={"emit": "echo", "step_us": PACED_STEP_US},
    variants=(Variant("late", scripted={"start_ms": 3000}, ensemble=False, at_start=False),),
)

DRAINED_SHORTLY = replace(
    DRAINED, key="shortly", overrides=_QUICK_STATISTICS | {"drain_timeout_ms": 1000}, variants=()
)

# For tests that ask for more than there is.
OVERLOADED = Recipe(
    key="overloaded",
    overrides=_QUICK_STATISTICS | {"max_queue_requests": 16},
    scripted={"emit": "echo", "step_us": 5000},
    variants=(
        # One runs, in chunks of 16 tokens; the others wait.
        Variant(
            "single",
            {"max_num_seqs": 1, "max_num_tokens": 16, "enable_prefix_reuse": False},
            {"step_us": PACED_STEP_US},
        ),
        Variant("bounded", {"max_num_seqs": 1, "max_queue_tokens": 40}, {"step_us": PACED_STEP_US}),
        Variant("sluggish", {"max_num_seqs": 2}, {"step_us": 700_000}, ensemble=False),
        Variant("yielding", {"max_num_seqs": 4, "scheduler_policy": "max_utilization"}),
    ),
)

# For tests with more connections than can be served: 64 run, 256 wait.
CONNECTED = Recipe(
    key="connected",
    overrides=_QUICK_STATISTICS | {"max_num_seqs": 64, "max_queue_requests": 256},
    scripted={"emit": "echo", "step_us": PACED_STEP_US, "bytes_per_block": 1024},
    models=("preprocessing", "llm", "ensemble"),
)

# Models that die at their fourth step and are not restarted.
MORTAL = Recipe(
    key="mortal",
    overrides=_QUICK_STATISTICS | {"max_restarts": 0},
    scripted={"emit": "echo", "step_us": 1000, "fail_at_step": 4, "fault_count": 1000},
    variants=(Variant("late", scripted={"start_ms": 1500}, at_start=False),),
)
MORTAL_UNCONTROLLED = replace(MORTAL, key="uncontrolled", variants=(), control="none")
MORTAL_STAYING = replace(
    MORTAL_UNCONTROLLED, key="staying", overrides=MORTAL.overrides | {"exit_on_fatal": False}
)
MORTAL_PAIR = replace(
    MORTAL_UNCONTROLLED,
    key="pair",
    variants=(Variant("other", scripted={"fail_at_step": 60}, ensemble=False),),
)
MORTAL_EXITING = replace(
    MORTAL, key="exiting", variants=(), overrides=MORTAL.overrides | {"exit_on_fatal": True}
)
MORTAL_DEMO = replace(DEMO, key="mortal_demo", overrides=DEMO.overrides | {"max_restarts": 0})

# For tests that make the worker fail while 64 streams run or wait.
FAULTY = replace(
    DEMO,
    key="faulty",
    overrides=DEMO.overrides | {"max_num_seqs": 24, "watchdog_ms": 3000},
    variants=(Variant("mortal", {"max_restarts": 1}, at_start=False),),
)

DETERMINISTIC = Recipe(
    key="deterministic",
    overrides=_QUICK_STATISTICS
    | {
        "model": str(demo_model_path()),
        "device": "cpu",
        "kv_cache_tokens": 16384,
        "max_num_tokens": 100,
        "deterministic": True,
    },
    models=("llm",),
)

# For tests that end the worker.
MIXTURE = Recipe(
    key="mixture",
    overrides=_QUICK_STATISTICS
    | {
        "model": str(demo_model_path("demo-moe")),
        "dtype": "float32",
        "kv_cache_tokens": 4096,
        "max_num_seqs": 4,
    },
    models=("llm",),
)
