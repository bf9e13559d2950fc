# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slipstream.config import ConfigError, SlipstreamConfig, load_config, role_parameters
from slipstream.repository import RepositoryError, build_repository, lint_repository, resolve
from slipstream.repository.render import NAMING, parse_text, type_number
from slipstream.repository.tensors import BLS_INTERFACE, INTERFACES

Configure = Callable[..., SlipstreamConfig]


def read(folder: Path, model: str) -> Any:
    return parse_text((folder / model / "config.pbtxt").read_text())


@pytest.mark.parametrize("naming", list(NAMING))
@pytest.mark.parametrize("ensemble", ["fused", "steps"])
def test_repository_is_complete_and_clean(
    tmp_path: Path, configure: Configure, naming: str, ensemble: str
) -> None:
    files = build_repository(configure(naming=naming, ensemble=ensemble), tmp_path / "r")
    assert {file.parent.name for file in files} == set(NAMING[naming].values())
    assert all((file.parent / "1").is_dir() for file in files)
    assert all("${" not in file.read_text() for file in files)
    assert lint_repository(tmp_path / "r") == []


@pytest.mark.parametrize("role", ["llm", "tokenize", "detokenize", "pipeline"])
def test_tensors_are_declared_as_in_the_table(repository: Path, role: str) -> None:
    message = read(repository, NAMING["slipstream"][role])
    assert message.max_batch_size == 64
    assert [entry.name for entry in message.input] == [t.name for t in INTERFACES[role].inputs]
    assert [entry.name for entry in message.output] == [t.name for t in INTERFACES[role].outputs]
    for entry, tensor in zip(message.input, INTERFACES[role].inputs, strict=True):
        assert entry.data_type == type_number(tensor.type_name({}))
        assert tuple(entry.dims) == tensor.dims
        assert entry.optional == tensor.optional
        assert entry.allow_ragged_batch == tensor.ragged
        assert entry.HasField("reshape") == tensor.scalar


@pytest.mark.parametrize("ensemble", ["fused", "steps"])
def test_bls_is_a_second_pipeline(tmp_path: Path, configure: Configure, ensemble: str) -> None:
    options = {"naming": "tensorrt_llm", "ensemble": ensemble, "accumulate_tokens": True}
    build_repository(configure(**options), tmp_path / "r")
    bls = read(tmp_path / "r", "tensorrt_llm_bls")
    assert [entry.name for entry in bls.input] == [t.name for t in BLS_INTERFACE.inputs]
    assert [entry.name for entry in bls.output] == [t.name for t in BLS_INTERFACE.outputs]
    assert [entry.name for entry in bls.input if not entry.optional] == ["max_tokens"]
    parameters = {key: v.string_value for key, v in bls.parameters.items()}
    # Else it would not share the tokenizer's processes.
    pipeline = role_parameters(configure(**options), "pipeline")
    own = {"llm_model_name": "tensorrt_llm", "accumulate_tokens": "true"}
    assert parameters == pipeline | own
    if ensemble == "fused":
        fused = read(tmp_path / "r", "ensemble").parameters
        assert {key: v.string_value for key, v in fused.items()} == {
            key: value for key, value in parameters.items() if key != "accumulate_tokens"
        }


def test_our_naming_has_no_bls(repository: Path) -> None:
    assert not (repository / "tensorrt_llm_bls").exists()


def test_wire_details_that_clients_rely_on(repository: Path) -> None:
    llm = {entry.name: entry for entry in read(repository, "llm").input}
    assert llm["early_stopping"].data_type == type_number("INT32")
    assert list(llm["stop_words_list"].dims) == [2, -1]
    assert list(llm["lora_config"].dims) == [-1, 3]
    assert not llm["input_lengths"].optional
    assert len(INTERFACES["llm"].inputs) == len({t.name for t in INTERFACES["llm"].inputs})


def test_parameters_are_written_in_full(repository: Path, checkpoint: Path) -> None:
    llm = {key: v.string_value for key, v in read(repository, "llm").parameters.items()}
    assert set(llm) == set(role_parameters(SlipstreamConfig(), "llm"))
    assert llm["model"] == str(checkpoint)
    post = {key: v.string_value for key, v in read(repository, "postprocessing").parameters.items()}
    assert post["tokenizer"] == llm["tokenizer"] == str(checkpoint)
    assert post["role"] == "detokenize"


def test_difficult_values_survive(tmp_path: Path, configure: Configure) -> None:
    value = 'a "b" \\ # é ${x'.replace("${", "$ {")
    build_repository(configure(python_executable=value), tmp_path / "r")
    assert read(tmp_path / "r", "llm").parameters["python_executable"].string_value == value


@pytest.mark.parametrize("ensemble", ["fused", "steps"])
def test_types_are_chosen_in_both_models(
    tmp_path: Path, configure: Configure, ensemble: str
) -> None:
    build_repository(configure(logits_datatype="FP16", ensemble=ensemble), tmp_path / "r")
    for model in ("llm", "ensemble"):
        outputs = {entry.name: entry for entry in read(tmp_path / "r", model).output}
        assert outputs["context_logits"].data_type == type_number("FP16")
    assert lint_repository(tmp_path / "r") == []


def test_both_ensembles_have_one_interface(repository: Path, steps_repository: Path) -> None:
    fused, steps = read(repository, "ensemble"), read(steps_repository, "ensemble")
    assert list(fused.input) == list(steps.input)
    assert list(fused.output) == list(steps.output)
    assert fused.max_batch_size == steps.max_batch_size


@pytest.mark.parametrize("naming", list(NAMING))
def test_fused_ensemble(tmp_path: Path, configure: Configure, naming: str) -> None:
    config = configure(naming=naming, preprocessing_instances=3, decoupled=False)
    build_repository(config, tmp_path / "r")
    message = read(tmp_path / "r", "ensemble")
    assert (message.backend, message.platform) == ("slipstream", "")
    assert not message.HasField("ensemble_scheduling")
    assert not message.HasField("dynamic_batching")
    assert not message.model_transaction_policy.decoupled
    assert [group.count for group in message.instance_group] == [3]
    assert message.parameters["role"].string_value == "pipeline"
    assert message.parameters["llm_model_name"].string_value == NAMING[naming]["llm"]
    tokenize = read(tmp_path / "r", "preprocessing").parameters
    for key in tokenize.keys() - {"role"}:
        assert message.parameters[key].string_value == tokenize[key].string_value, key


def test_wiring_of_the_steps(steps_repository: Path) -> None:
    repository = steps_repository
    steps = {s.model_name: s for s in read(repository, "ensemble").ensemble_scheduling.step}
    llm = steps["llm"]
    assert llm.input_map["runtime_top_k"] == "top_k"
    assert llm.input_map["stop_strings"] == "stop_words"
    assert llm.input_map["end_id"] == "end_id"
    assert "stop_words_list" not in llm.input_map
    post = steps["postprocessing"]
    # One tensor a response, and the output whose name comes first from the last step: see wiring.
    assert dict(post.input_map) == {
        "FLOW": llm.output_map["flow"],
        "ACCEPTANCE_RATE": llm.output_map["acceptance_rate"],
    }
    assert dict(post.output_map) == {
        "OUTPUT": "text_output",
        "ACCEPTANCE_RATE": min(output.name for output in read(repository, "ensemble").output),
    }


def test_postprocessing_keeps_the_order(repository: Path) -> None:
    message = read(repository, "postprocessing")
    assert [group.count for group in message.instance_group] == [1]
    assert not message.HasField("dynamic_batching")


def test_same_again_changes_nothing(repository: Path, configure: Configure) -> None:
    before = {file: file.read_text() for file in repository.rglob("config.pbtxt")}
    build_repository(configure(), repository)
    assert {file: file.read_text() for file in repository.rglob("config.pbtxt")} == before


def test_a_different_repository_is_refused_with_the_difference(
    repository: Path, configure: Configure
) -> None:
    with pytest.raises(RepositoryError) as caught:
        build_repository(configure(max_num_seqs=8), repository)
    assert '-    string_value: "0"' in str(caught.value)
    assert '+    string_value: "8"' in str(caught.value)
    build_repository(configure(max_num_seqs=8), repository, force=True)
    assert read(repository, "llm").parameters["max_num_seqs"].string_value == "8"


def test_foreign_models_are_refused(repository: Path, configure: Configure) -> None:
    (repository / "other").mkdir()
    (repository / "other" / "config.pbtxt").write_text('name: "other"')
    with pytest.raises(RepositoryError, match="also holds other"):
        build_repository(configure(), repository)
    build_repository(configure(), repository, force=True)


def test_missing_directory_is_refused() -> None:
    with pytest.raises(ConfigError, match="model is '/no/such'; there is no such directory"):
        resolve(load_config(None, {"model": "/no/such"}))


def test_hub_ids_are_kept() -> None:
    section = resolve(load_config(None, {"model": "org/name"})).model
    assert (section.model, section.tokenizer) == ("org/name", "org/name")


def test_demo_model_is_the_default() -> None:
    from slipstream.demo import demo_model_path

    assert resolve(load_config()).model.model == str(demo_model_path())
