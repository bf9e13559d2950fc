# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from slipstream.config import SlipstreamConfig
from slipstream.repository import build_repository, lint_repository

from .mutants import mutants

Configure = Callable[..., SlipstreamConfig]


def change(repository: Path, model: str, old: str, new: str) -> None:
    file = repository / model / "config.pbtxt"
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("model", "old", "new", "expected"),
    [
        ("llm", 'name: "beam_width"', 'name: "beam_with"',
         "input[beam_with]: no such tensor; the nearest is 'beam_width'"),
        ("llm", "max_batch_size: 64", "max_batch_siz: 64",
         "line 2: max_batch_siz: ModelConfig has no such field; the nearest is 'max_batch_size'"),
        ("llm", "optional: true", "optionl: true",
         "optionl: ModelInput has no such field; the nearest is 'optional'"),
        ("llm", "max_batch_size: 64", "max_batch_size: ${n}",
         "line 2: max_batch_size: placeholder ${n} is not filled"),
        ("llm", "data_type: TYPE_INT32", "data_type: TYPE_INT64",
         "input[input_ids].data_type: must be TYPE_INT32"),
        ("llm", "dims: -1", "dims: 3", "input[input_ids].dims: [3], must be [-1]"),
        ("llm", 'key: "max_num_seqs"', 'key: "max_num_seq"',
         "parameters[max_num_seq]: unknown; the nearest is 'max_num_seqs'"),
        ("llm", 'string_value: "guaranteed_no_evict"', 'string_value: "evict"',
         "parameters[scheduler_policy]: is 'evict'; must be 'guaranteed_no_evict' or"),
        ("llm", 'string_value: "0.0"', 'string_value: "1.9"',
         "parameters[kv_cache_fraction]: is '1.9'; must be less than or equal to 1"),
        ("llm", 'string_value: "auto"', 'string_value: "${dtype}"',
         "placeholder left in '${dtype}'"),
        ("llm", 'string_value: "{}"', 'string_value: "{"', "parameters[scripted]: is not JSON"),
        ("llm", 'string_value: "llm"', 'string_value: "lm"',
         "parameters[role]: 'lm' is none of llm, tokenize, detokenize, pipeline; the nearest is "
         "'llm'"),
        ("llm", 'name: "llm"', 'name: "other"', "name: 'other' differs from the folder's name"),
        ("postprocessing", "count: 1", "count: 2", "instance_group.count: 2: must be 1"),
        ("postprocessing", "kind: KIND_CPU", "kind: KIND_GPU",
         "instance_group[0].kind: must be KIND_CPU: role detokenize uses no GPU"),
        ("llm", "kind: KIND_CPU", "kind: KIND_AUTO",
         "instance_group[0].kind: must be KIND_CPU: the parameter device chooses, or KIND_GPU"),
        ("llm", "kind: KIND_CPU", "kind: KIND_GPU",
         "instance_group[0].gpus: not set: the server lists all GPUs, which must be 1; name it"),
        ("llm", "kind: KIND_CPU", "kind: KIND_GPU gpus: [0, 1]",
         "instance_group[0].gpus: [0, 1]: must be 1, one executor per model"),
        ("llm", "count: 1", "count: 2", "instance_group.count: 2: must be 1, one executor"),
        ("llm", "kind: KIND_CPU", "kind: KIND_CPU passive: true",
         "instance_group[0].passive: is not supported, must be left out"),
        ("preprocessing", "kind: KIND_CPU", "kind: KIND_CPU rate_limiter { priority: 2 }",
         "instance_group[0].rate_limiter: is not supported, must be left out"),
        ("ensemble", 'key: "llm_model_name"', 'key: "lm_model_name"',
         "parameters[lm_model_name]: unknown; the nearest is 'llm_model_name'"),
        ("ensemble", 'key: "llm_model_name"', 'key: "tokenizer_type"',
         "parameters[llm_model_name]: missing; 'llm' applies"),
        ("ensemble", 'string_value: "llm"', 'string_value: "postprocessing"',
         "parameters[llm_model_name]: 'postprocessing' is no model of role llm; the nearest is "
         "'llm'"),
        ("ensemble", "max_batch_size: 64", "max_batch_size: 128",
         "max_batch_size: 128, but llm takes batches of 64"),
        ("ensemble", "decoupled: true", "decoupled: false",
         "model_transaction_policy.decoupled: false, but llm has true"),
        ("ensemble", 'key: "tokenizer"\n  value {\n    string_value: "',
         'key: "tokenizer"\n  value {\n    string_value: "/other',
         "parameters[tokenizer]: has tokenizer '/other"),
        ("ensemble", 'name: "top_k"', 'name: "runtime_top_k"',
         "input[runtime_top_k]: no such tensor; the nearest is 'top_k'"),
    ],
)  # fmt: skip
def test_faults_are_named(repository: Path, model: str, old: str, new: str, expected: str) -> None:
    check_fault(repository, model, old, new, expected)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('model_name: "llm"', 'model_name: "lm"',
         "step[lm]: no such model; the nearest is 'llm'"),
        ('key: "QUERY"', 'key: "QUERIES"',
         "step[preprocessing].input_map[QUERIES]: preprocessing has no such input; the nearest is "
         "'QUERY'"),
        ('value: "_input_ids"', 'value: "_inputs"',
         "step[llm].input_map[input_ids]: nothing makes '_input_ids'; the nearest is"),
        ('value: "temperature"', 'value: "top_k"',
         "step[llm].input_map[temperature]: is TYPE_FP32, but the client makes TYPE_INT32"),
        ('value: "bad_words"', 'value: "text_input"',
         "tensor[bad_words]: made by the client, but never used"),
        ("max_batch_size: 64", "max_batch_size: 128", "takes batches of 64"),
        ('platform: "ensemble"', 'platform: "ensembl"',
         "'ensembl', must be 'ensemble'"),
    ],
)  # fmt: skip
def test_faults_of_steps_are_named(
    steps_repository: Path, old: str, new: str, expected: str
) -> None:
    check_fault(steps_repository, "ensemble", old, new, expected)


@pytest.mark.parametrize("model", ["preprocessing", "postprocessing"])
def test_steps_with_another_tokenizer_than_the_llm_are_named(
    steps_repository: Path, model: str
) -> None:
    key = 'key: "tokenizer"\n  value {\n    string_value: "'
    change(steps_repository, model, key, f"{key}/other")
    [finding] = lint_repository(steps_repository)
    assert finding.file == steps_repository / "ensemble" / "config.pbtxt"
    assert (finding.key, finding.severity) == (f"step[{model}]", "warning")
    assert finding.message.startswith("has tokenizer '/other/")
    assert "but llm makes text with" in finding.message


def check_fault(repository: Path, model: str, old: str, new: str, expected: str) -> None:
    change(repository, model, old, new)
    lines = [str(finding) for finding in lint_repository(repository)]
    assert any(expected in line for line in lines), "\n".join(lines)
    assert all("\n" not in line for line in lines)
    assert any(f"{model}/config.pbtxt" in line for line in lines)


@pytest.mark.parametrize(
    ("device", "expected"),
    [
        ("auto", []),
        ("cuda", []),
        ("cuda:1", []),
        ("cuda:0", ["[1] means cuda:1, but parameter device means 'cuda:0'"]),
        ("cpu", ["[1] means cuda:1, but parameter device means 'cpu'"]),
    ],
)
def test_the_gpu_of_an_llm(repository: Path, device: str, expected: list[str]) -> None:
    key = 'key: "device"\n  value {\n    string_value: "'
    change(repository, "llm", "kind: KIND_CPU", "kind: KIND_GPU gpus: 1")
    change(repository, "llm", f"{key}auto", f"{key}{device}")
    findings = lint_repository(repository)
    assert [finding.message for finding in findings] == expected
    assert all(finding.key == "instance_group[0].gpus" for finding in findings)


BLS = "tensorrt_llm_bls"


@pytest.fixture
def bls_repository(tmp_path: Path, configure: Configure) -> Path:
    folder = tmp_path / "bls_repository"
    build_repository(configure(naming="tensorrt_llm"), folder)
    return folder


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ('name: "num_draft_tokens"', 'name: "num_draft_token"',
         "input[num_draft_token]: no such tensor; the nearest is 'num_draft_tokens'"),
        ('key: "accumulate_tokens"\n  value {\n    string_value: "false"',
         'key: "accumulate_tokens"\n  value {\n    string_value: "maybe"',
         "parameters[accumulate_tokens]: is 'maybe'; must be a valid boolean"),
        ('key: "llm_model_name"', 'key: "tensorrt_llm_draft_model_name"',
         "parameters[tensorrt_llm_draft_model_name]: leave it out (no support for draft tokens)"),
        ('key: "llm_model_name"', 'key: "multimodal_encoders_name"',
         "parameters[multimodal_encoders_name]: leave it out (no support for multimodal inputs)"),
        ('key: "llm_model_name"\n  value {\n    string_value: "tensorrt_llm"',
         'key: "tensorrt_llm_model_name"\n  value {\n    string_value: "ensemble"',
         "parameters[tensorrt_llm_model_name]: 'ensemble' is no model of role llm; the nearest is "
         "'tensorrt_llm'"),
        ('key: "tokenizer"', 'key: "tokenizer_type"',
         "parameters[tokenizer]: not set; the llm's applies"),
    ],
)  # fmt: skip
def test_faults_of_bls_are_named(bls_repository: Path, old: str, new: str, expected: str) -> None:
    check_fault(bls_repository, BLS, old, new, expected)


def test_bls_may_name_its_llm_as_upstream_does(bls_repository: Path) -> None:
    old = 'key: "llm_model_name"\n  value {\n    string_value: "tensorrt_llm"'
    change(bls_repository, BLS, old, old.replace("llm_model_name", "tensorrt_llm_model_name"))
    assert lint_repository(bls_repository) == []


def test_max_tokens_of_bls_is_required(bls_repository: Path) -> None:
    required = 'name: "max_tokens"\n  data_type: TYPE_INT32\n  dims: 1\n'
    change(bls_repository, BLS, required, required + "  optional: true\n")
    assert [finding.key for finding in lint_repository(bls_repository)] == [
        "input[max_tokens].optional"
    ]


def test_first_outputs_keep_their_order(repository: Path) -> None:
    change(repository, "llm", 'name: "output_ids"', 'name: "was_first"')
    change(repository, "llm", 'name: "sequence_length"', 'name: "output_ids"')
    change(repository, "llm", 'name: "was_first"', 'name: "sequence_length"')
    lines = [str(finding) for finding in lint_repository(repository)]
    assert any("the first must be output_ids and sequence_length" in line for line in lines)


def test_version_folder_is_needed(repository: Path) -> None:
    (repository / "llm" / "1").rmdir()
    assert [str(f).split(": ")[-1] for f in lint_repository(repository)] == [
        "llm has no version folder; create llm/1"
    ]


def test_other_backends_are_left_alone(repository: Path) -> None:
    (repository / "mine" / "1").mkdir(parents=True)
    (repository / "mine" / "config.pbtxt").write_text('name: "mine"\nbackend: "python"\n')
    assert [f.severity for f in lint_repository(repository)] == ["warning"]


def test_a_broken_model_does_not_flood_the_report(repository: Path, steps_repository: Path) -> None:
    for folder, key in (
        (repository, "parameters[llm_model_name]"),
        (steps_repository, "step[llm]"),
    ):
        (folder / "llm" / "config.pbtxt").write_text("name: {")
        findings = [str(finding) for finding in lint_repository(folder)]
        assert len(findings) == 2
        assert f"{key}: not checked: llm/config.pbtxt cannot be read" in findings[0]


def test_not_a_repository(tmp_path: Path) -> None:
    assert [f.severity for f in lint_repository(tmp_path)] == ["error"]


def missed(files: list[Path], every: int) -> tuple[int, list[str]]:
    """How many mutants of these files were tried, and those that lint did not find."""
    tried, escaped = 0, []
    for file in files:
        text = file.read_text()
        for number, (what, damaged) in enumerate(mutants(text)):
            if number % every:
                continue
            file.write_text(damaged)
            tried += 1
            if not lint_repository(file.parent.parent):
                escaped.append(f"{file.parent.name}: {what}")
        file.write_text(text)
    return tried, escaped


@pytest.fixture
def mutable_files(repository: Path, steps_repository: Path, bls_repository: Path) -> list[Path]:
    """Each kind of model once."""
    others = (steps_repository / "ensemble", bls_repository / BLS)
    return [*sorted(repository.glob("*/config.pbtxt")), *(f / "config.pbtxt" for f in others)]


def test_lint_finds_a_sample_of_mutants(mutable_files: list[Path]) -> None:
    tried, escaped = missed(mutable_files, every=17)
    assert tried > 200
    assert len(escaped) <= 0.01 * tried, escaped


@pytest.mark.slow
def test_lint_finds_mutants(mutable_files: list[Path]) -> None:
    tried, escaped = missed(mutable_files, every=1)
    assert tried > 3000
    assert len(escaped) <= 0.01 * tried, escaped
