# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""C++ and NumPy agree on every byte of the step link."""

from __future__ import annotations

import numpy as np
import pytest

from slipstream import _core, link
from slipstream.worker import frames
from slipstream.worker.slots import SLOTS_PER_SEQ

DTYPES = {
    "FrameHeader": frames.FRAME_HEADER,
    "StepHeader": frames.STEP_HEADER,
    "ResultHeader": frames.RESULT_HEADER,
    "BlockCopy": frames.BLOCK_COPY,
    "AdmitRecord": frames.ADMIT_RECORD,
}


@pytest.mark.parametrize("name", DTYPES)
def test_every_field_has_the_same_offset_and_size(name):
    dtype = DTYPES[name]
    ours = {field: (offset, kind.itemsize) for field, (kind, offset) in dtype.fields.items()}
    assert _core.frame_layout()[name] == ours
    assert sum(size for _, size in ours.values()) == dtype.itemsize


def test_constants_agree():
    constants = _core.frame_layout()["constants"]
    assert constants == {
        "magic": frames.MAGIC,
        "version": frames.VERSION,
        "max_payload": frames.MAX_PAYLOAD,
        "token_from_slot": frames.TOKEN_FROM_SLOT,
        "slots_per_seq": SLOTS_PER_SEQ,
    }
    assert (link.MAGIC, link.VERSION, link.MAX_PAYLOAD) == (
        frames.MAGIC,
        frames.VERSION,
        frames.MAX_PAYLOAD,
    )
    assert {kind.name: kind.value for kind in link.FrameType}.items() <= {
        kind.name: kind.value for kind in frames.FrameType
    }.items()
    types = _core.frame_layout()["frame_types"]
    assert types == {kind.name: kind.value for kind in frames.FrameType}
    header = link.pack_header(link.FrameType.HELLO, 77)
    assert frames.parse_frame_header(header) == (frames.FrameType.HELLO, 77)


def make_engine(model):
    config = _core.ExecutorConfig()
    config.max_num_seqs = 4
    return _core.Engine(config, model.info)


def parse_step(payload):
    words = np.zeros((len(payload) + 7) // 8, np.uint64)
    words.view(np.uint8)[: len(payload)] = np.frombuffer(payload, np.uint8)
    return frames.parse_step(words.view(np.uint8)[: len(payload)])


def test_steps_arrive_as_they_were_sent():
    model = _core.ScriptedModel('{"vocab_size": 100, "tokens_per_block": 4}')
    engine = make_engine(model)
    seen = set()
    for number, prompt in enumerate([list(range(3, 12)), list(range(3, 10)), [5], [6], [7]]):
        engine.submit(
            number + 1,
            number,
            prompt=prompt,
            max_new_tokens=3,
            end_ids=[2],
            bad_words=[[1, 2]],
            logit_bias=[(4, -2.5)],
            num_logprobs=2,
            temperature=0.5,
        )
        while (plan := engine.build_step(100)) is not None:
            step = parse_step(_core.encode_step(plan))
            assert (step.step_id, step.num_groups) == (plan.step_id, plan.num_groups)
            for name in ("slot", "num_tokens", "first_position", "num_new_blocks", "flags",
                         "token_ids", "new_block_ids", "retired", "aux"):  # fmt: skip
                assert getattr(step, name).tolist() == getattr(plan, name), name
                seen.update([name] if getattr(plan, name) else [])
            assert step.admitted["slot"].tolist() == plan.admitted_slots
            assert [tuple(copy) for copy in step.copies.tolist()] == plan.copies
            seen.update(["copies"] if plan.copies else [])
            for record in step.admitted:
                history = step.aux[record["history_offset"] :][: record["history_len"]]
                assert history.tolist() == prompt
                assert record["temperature"] == np.float32(0.5)
                assert step.aux[record["end_ids_offset"]] == 2
                bias = step.aux[record["bias_offset"] :][: record["bias_len"]]
                assert bias.view(np.float32)[1] == -2.5
            engine.on_result(model.run(plan), 100)
    # Every array of the frame was there at least once.
    assert seen == {"slot", "num_tokens", "first_position", "num_new_blocks", "flags", "token_ids",
                    "new_block_ids", "retired", "aux", "copies"}  # fmt: skip


def make_result(rng, num_seqs):
    num_tokens = rng.integers(0, 2, num_seqs).astype(np.uint32)
    width = rng.integers(0, 4, num_seqs).astype(np.uint32)
    num_logprobs = int((num_tokens * width).sum())
    return frames.StepResult(
        step_id=int(rng.integers(1, 1 << 40)),
        start_ns=5,
        end_ns=1 << 50,
        slot=rng.permutation(num_seqs).astype(np.uint32),
        status=rng.integers(0, 2, num_seqs).astype(np.uint32),
        num_tokens=num_tokens,
        logprob_width=width,
        context_rows=np.zeros(num_seqs, np.uint32),
        generation_rows=num_tokens,
        tokens=rng.integers(0, 1000, int(num_tokens.sum())).astype(np.int32),
        logprob_ids=rng.integers(0, 1000, num_logprobs).astype(np.int32),
        logprob_values=rng.random(num_logprobs).astype(np.float32),
        logits=rng.random(7 * int(num_tokens.sum())).astype(np.float32),
    )


@pytest.mark.parametrize("seed", range(20))
def test_results_arrive_as_they_were_sent(seed):
    rng = np.random.default_rng(seed)
    result = make_result(rng, seed)
    payload = b"".join(frames.encode_result(result))
    decoded = _core.decode_result(payload, result.step_id, result.slot.tolist())
    assert (decoded.step_id, decoded.start_ns, decoded.end_ns) == (result.step_id, 5, 1 << 50)
    for name, _, _ in frames.RESULT_ARRAYS:
        assert getattr(decoded, name) == getattr(result, name).tolist(), name
    if len(payload) > 48:
        with pytest.raises(RuntimeError, match=f"answer to step {result.step_id} is malformed"):
            _core.decode_result(payload[:-8], result.step_id, result.slot.tolist())


def test_a_scripted_model_echoes_through_the_engine():
    model = _core.ScriptedModel('{"emit": "echo", "end_after": 5, "vocab_size": 50}')
    engine = make_engine(model)
    for number in range(1, 9):
        engine.submit(number, 0, prompt=[10 + number, 20 + number], max_new_tokens=9, end_ids=[2])
    events = []
    while (plan := engine.build_step(0)) is not None:
        engine.on_result(model.run(plan), 0)
        assert engine.check_integrity() == ""
        events += engine.take_events()
    tokens = {event["request"]: event["tokens"] for event in events}
    # The fifth is the end id, which is not part of the output.
    assert tokens == {n: [10 + n, 20 + n, 10 + n, 20 + n] for n in range(1, 9)}
    assert model.counters() == {"live_slots": 4, "steps": 10, "tokens": 40, "max_seqs": 4}


def test_a_wrong_script_names_the_key():
    with pytest.raises(ValueError, match="unknown key 'emitt'"):
        _core.ScriptedModel('{"emitt": "echo"}')
