# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib.util
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest

from slipstream.repository import lint_repository
from slipstream.repository.render import NAMING, parse_text
from slipstream.repository.templates import render_fused_templates, render_templates

from .conftest import ROOT

TEMPLATES = ROOT / "model_repo_templates"


def load_tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill_template", ROOT / "tools/fill_template.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool = load_tool()
LLM = "tensorrt_llm/tensorrt_llm/config.pbtxt"
MANDATORY = "engine_dir:/m,triton_max_batch_size:4,decoupled_mode:true"


@pytest.mark.parametrize("naming", list(NAMING))
def test_templates_are_in_sync(naming: str) -> None:
    """Run tools/make_templates.py after a change of the tables."""
    for folder, rendered in (
        (TEMPLATES / naming, render_templates(naming)),
        (TEMPLATES / f"{naming}_fused", render_fused_templates(naming)),
    ):
        texts = {file.parent.name: file.read_text() for file in folder.glob("*/config.pbtxt")}
        assert texts == rendered
        assert all((folder / model / "1").is_dir() for model in texts)


def fill_all(naming: str, tmp_path: Path, values: dict[str, str], *, fused: bool) -> Path:
    """Fills every template with those of ``values`` that it has."""
    folder = tmp_path / "filled"
    shutil.copytree(TEMPLATES / naming, folder)
    if fused:
        shutil.copytree(TEMPLATES / f"{naming}_fused", folder, dirs_exist_ok=True)
    for file in folder.glob("*/config.pbtxt"):
        text = file.read_text()
        mine = [f"{key}:{value}" for key, value in values.items() if f"${{{key}}}" in text]
        assert tool.main(["-i", str(file), ",".join(mine)]) == 0
    return folder


@pytest.mark.parametrize(
    ("naming", "values"),
    [
        ("slipstream", {"model": "/m", "tokenizer": "/m"}),
        (
            "tensorrt_llm",
            {
                "engine_dir": "/m",
                "tokenizer_dir": "/m",
                "triton_max_batch_size": "8",
                "decoupled_mode": "True",
            },
        ),
    ],
)
@pytest.mark.parametrize("fused", [False, True])
def test_mandatory_keys_are_enough(
    naming: str, values: dict[str, str], fused: bool, tmp_path: Path
) -> None:
    folder = fill_all(naming, tmp_path, values, fused=fused)
    assert ('platform: "ensemble"' in (folder / "ensemble/config.pbtxt").read_text()) != fused
    for file in folder.glob("*/config.pbtxt"):
        assert "${" not in file.read_text()
    findings = lint_repository(folder)
    assert [str(f) for f in findings if f.severity == "error"] == []
    if naming == "tensorrt_llm":
        assert findings == []


def test_a_typical_deploy_script(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    shutil.copy(TEMPLATES / LLM, file)
    arguments = (
        "triton_backend:tensorrtllm,triton_max_batch_size:64,decoupled_mode:False,max_beam_width:1,"
        "engine_dir:/engines/gpt,max_tokens_in_paged_kv_cache:,max_attention_window_size:,"
        "kv_cache_free_gpu_mem_fraction:0.5,exclude_input_in_output:True,"
        "enable_kv_cache_reuse:False,batching_strategy:inflight_fused_batching,"
        "max_queue_delay_microseconds:0,encoder_input_features_data_type:TYPE_FP16,"
        "logits_datatype:TYPE_FP32"
    )
    assert tool.main(["--in_place", str(file), arguments]) == 0
    message = parse_text(file.read_text())
    parameters = {key: value.string_value for key, value in message.parameters.items()}
    assert parameters["gpt_model_path"] == "/engines/gpt"
    assert parameters["gpt_model_type"] == "inflight_fused_batching"
    assert parameters["max_tokens_in_paged_kv_cache"] == ""
    assert parameters["lora_prefetch_dir"] == ""
    assert message.max_batch_size == 64
    assert not message.model_transaction_policy.decoupled


def test_a_deploy_script_for_bls(tmp_path: Path) -> None:
    """It fills in no tokenizer, and often no names of models."""
    file = tmp_path / "config.pbtxt"
    shutil.copy(TEMPLATES / "tensorrt_llm/tensorrt_llm_bls/config.pbtxt", file)
    arguments = (
        "triton_max_batch_size:64,decoupled_mode:True,bls_instance_count:3,accumulate_tokens:True,"
        "logits_datatype:TYPE_FP16"
    )
    assert tool.main(["-i", str(file), arguments]) == 0
    message = parse_text(file.read_text())
    parameters = {key: v.string_value for key, v in message.parameters.items() if v.string_value}
    assert parameters == {
        "accumulate_tokens": "True",
        "llm_model_name": "tensorrt_llm",
        "max_queue_requests": "0",
        "role": "pipeline",
    }
    assert [group.count for group in message.instance_group] == [3]
    assert message.model_transaction_policy.decoupled


def test_a_second_call_changes_a_value(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    shutil.copy(TEMPLATES / LLM, file)
    assert tool.main(["-i", str(file), MANDATORY]) == 0
    assert parse_text(file.read_text()).parameters["max_queue_requests"].string_value == "0"
    assert tool.main(["-i", str(file), "max_queue_size:6"]) == 0
    message = parse_text(file.read_text())
    assert message.parameters["max_queue_requests"].string_value == "6"
    assert message.parameters["gpt_model_path"].string_value == "/m"
    assert message.max_batch_size == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (MANDATORY + ",max_queue_siz:1", "unknown key 'max_queue_siz'; the nearest is "
         "'max_queue_size'"),
        (MANDATORY + ",queue:1", "unknown key 'queue'; the nearest is"),
        ("engine_dir:/m", "mandatory keys are not given: decoupled_mode, triton_max_batch_size"),
        ("engine_dir:,triton_max_batch_size:4,decoupled_mode:true", "mandatory keys are not given: "
         "engine_dir"),
        ("triton_max_batch_size:four,engine_dir:/m,decoupled_mode:true", "triton_max_batch_size is "
         "'four'; must be a whole number"),
        ("triton_max_batch_size:4,engine_dir:/m,decoupled_mode:yes", "decoupled_mode is 'yes'; "
         "must be true or false"),
        (MANDATORY + ",logits_datatype:FP32", "logits_datatype is 'FP32'; must be a type such as "
         "TYPE_FP32"),
        ("engine_dir:/a,b", "'b' is not key:value (write a comma in a value as '\\,')"),
        ("engine_dir:/a,engine_dir:/b", "engine_dir is given twice, as '/a' and '/b'"),
    ],
)  # fmt: skip
def test_faults_are_named_and_change_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: str, message: str
) -> None:
    file = tmp_path / "config.pbtxt"
    shutil.copy(TEMPLATES / LLM, file)
    before = file.read_text()
    assert tool.main(["-i", str(file), arguments]) == 1
    captured = capsys.readouterr()
    assert captured.err.startswith(f"{file}: {message}")
    assert captured.err.count("\n") == 1
    assert file.read_text() == before


@pytest.mark.parametrize(
    ("written", "value"),
    [
        (r"/a\,b", "/a,b"),
        ("hf:org/name", "hf:org/name"),
        (r"hf\:org/name", "hf:org/name"),
        (r"C:\\models", "C:\\models"),
        ('a "quoted" # path', 'a "quoted" # path'),
        ("/modèles/é", "/modèles/é"),
    ],
)
def test_difficult_values(tmp_path: Path, written: str, value: str) -> None:
    file = tmp_path / "config.pbtxt"
    shutil.copy(TEMPLATES / LLM, file)
    rest = "triton_max_batch_size:4,decoupled_mode:true"
    assert tool.main(["-i", str(file), f"engine_dir:{written},{rest}"]) == 0
    assert parse_text(file.read_text()).parameters["gpt_model_path"].string_value == value
    assert tool.main(["-i", str(file), "max_queue_size:6"]) == 0
    assert parse_text(file.read_text()).parameters["gpt_model_path"].string_value == value


def test_partial_filling(tmp_path: Path) -> None:
    file = tmp_path / "config.pbtxt"
    shutil.copy(TEMPLATES / LLM, file)
    assert tool.main(["-i", "--partial", str(file), "engine_dir:/m"]) == 0
    assert set(re.findall(r"\$\{(\w+)\}", file.read_text())) == {
        "triton_max_batch_size",
        "decoupled_mode",
    }
    assert tool.main(["-i", str(file), "triton_max_batch_size:4,decoupled_mode:true"]) == 0
    assert parse_text(file.read_text()).parameters["gpt_model_path"].string_value == "/m"


def test_without_in_place_the_result_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    before = (TEMPLATES / LLM).read_text()
    assert tool.main([str(TEMPLATES / LLM), MANDATORY]) == 0
    assert parse_text(capsys.readouterr().out).max_batch_size == 4
    assert (TEMPLATES / LLM).read_text() == before


def test_keys_without_effect_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main([str(TEMPLATES / LLM), MANDATORY + ",triton_backend:python"]) == 0
    assert "triton_backend has no effect: this configuration names" in capsys.readouterr().err


def test_files_without_a_header() -> None:
    text = 'max_batch_size: ${n}\nparameters { key: "a" value { string_value: "${a}" } }\n'
    assert tool.fill(text, {"n": "3"}).startswith("max_batch_size: 3")
    with pytest.raises(tool.TemplateError, match="mandatory keys are not given: n"):
        tool.fill(text, {"a": "x"})


def test_missing_file(capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["/no/such", "a:b"]) == 1
    assert capsys.readouterr().err == "/no/such: No such file or directory\n"
