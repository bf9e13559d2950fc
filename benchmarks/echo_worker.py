# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A worker without a model: answers every step at once. For benchmarks/worker_roundtrip.cc."""

from __future__ import annotations

import argparse
import os
import time

import numpy as np

from slipstream.worker.channel import Channel
from slipstream.worker.frames import FrameType, StepResult, encode_result, parse_step

HELLO = {
    "vocab_size": 32000,
    "max_seq_len": 1 << 20,
    "tokens_per_block": 32,
    "max_num_seqs": 64,
    "max_num_tokens": 2048,
    "kv_groups": [{"kind": "full", "window": 0, "num_blocks": 1 << 16, "bytes_per_block": 0}],
    "end_ids": [2],
    "pad_id": -1,
    "wants_history": False,
    "token_table": b"",
    "model_name": "echo",
    "device": "none",
    "weight_bytes": 0,
    "expert_layers": [],
    "num_experts": 0,
    "pid": os.getpid(),
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    channel = Channel.from_fd(parser.parse_args().fd)
    channel.receive()  # CONFIG
    channel.send_map(FrameType.HELLO, HELLO)
    while (frame := channel.receive()) is not None and frame.type is FrameType.STEP:
        start_ns = time.monotonic_ns()
        plan = parse_step(frame.payload)
        n = plan.slot.size
        zeros = np.zeros(n, np.uint32)
        result = StepResult(
            step_id=plan.step_id,
            start_ns=start_ns,
            end_ns=time.monotonic_ns(),
            slot=plan.slot,
            status=zeros,
            num_tokens=np.ones(n, np.uint32),
            logprob_width=zeros,
            context_rows=zeros,
            generation_rows=zeros,
            tokens=plan.slot.astype(np.int32),
        )
        channel.send(FrameType.RESULT, encode_result(result))


if __name__ == "__main__":
    main()
