# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from slipstream.config import ConfigError, all_options, load_config, role_parameters, value_of

# Renaming or removing an option breaks configurations that people have: change this list with care.
OPTIONS = {
    "model": "model tokenizer revision dtype device load_format model_impl trust_remote_code "
    "max_seq_len num_threads cuda_graphs attention_backend deterministic seed",
    "scheduler": "max_num_seqs max_num_tokens scheduler_policy enable_chunked_prefill "
    "pipeline_depth max_queue_requests max_queue_tokens max_queue_bytes priority_ageing_ms "
    "max_logprobs "
    "wrap_out_of_vocab_ids",
    "kv_cache": "tokens_per_block kv_cache_dtype kv_cache_tokens kv_cache_bytes kv_cache_fraction "
    "enable_prefix_reuse enable_partial_reuse",
    "worker": "worker scripted python_executable watchdog_ms max_restarts restart_backoff_ms "
    "drain_timeout_ms exit_on_fatal",
    "text": "tokenizer_processes add_special_tokens allow_special skip_special_tokens "
    "exclude_input_in_output cancellation_check_period_ms stats_check_period_ms flow_window",
    "repository": "naming ensemble max_batch_size decoupled preprocessing_instances "
    "max_queue_delay_us accumulate_tokens logits_datatype encoder_input_features_data_type "
    "prompt_embedding_table_data_type",
    "server": "host http_port grpc_port metrics_port tritonserver start_timeout_s exit_timeout_s "
    "log_verbose",
}


def test_option_list_is_frozen() -> None:
    by_section: dict[str, list[str]] = {}
    for option in all_options().values():
        by_section.setdefault(option.section, []).append(option.name)
    assert {name: " ".join(options) for name, options in by_section.items()} == OPTIONS


def test_every_option_is_described() -> None:
    assert [option.name for option in all_options().values() if not option.help] == []


def test_flags_over_file_over_defaults(tmp_path: Path) -> None:
    file = tmp_path / "slipstream.yaml"
    file.write_text("scheduler:\n  max_num_seqs: 7\n  max_num_tokens: 99\n")
    config = load_config(file, {"max_num_seqs": 8})
    assert config.scheduler.max_num_seqs == 8
    assert config.scheduler.max_num_tokens == 99
    assert config.scheduler.pipeline_depth == 2


def test_a_step_may_be_left_to_the_worker(tmp_path: Path) -> None:
    config = load_config()
    assert (config.scheduler.max_num_seqs, config.scheduler.max_num_tokens) == (0, 0)
    assert load_config(None, {"max_num_seqs": 300}).scheduler.max_num_tokens == 0


def test_special_tokens_in_messages_are_not_allowed_by_a_default(tmp_path: Path) -> None:
    """Prompts and messages differ where nothing is set, so nothing must be written."""
    assert role_parameters(load_config(), "tokenize")["allow_special"] == ""
    for value in (True, False):
        config = load_config(None, {"allow_special": value})
        assert role_parameters(config, "tokenize")["allow_special"] == str(value).lower()


def test_how_a_server_ends_is_not_decided_by_a_default() -> None:
    assert role_parameters(load_config(), "llm")["exit_on_fatal"] == ""


def test_configuration_is_frozen() -> None:
    config = load_config()
    with pytest.raises(ValidationError):
        config.scheduler.max_num_seqs = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("scheduler: {max_num_sqs: 3}", "unknown key 'scheduler.max_num_sqs'; the nearest is "
         "'max_num_seqs'"),
        ("modle: {}", "unknown section 'modle'; the nearest is 'model'"),
        ("scheduler: {kv_cache_bytes: 3}", "kv_cache_bytes belongs to section kv_cache"),
        ("max_num_seqs: 3", "max_num_seqs belongs to section scheduler"),
        ("scheduler: {max_num_seqs: '3'}", "scheduler.max_num_seqs is '3'; must be a valid int"),
        ("scheduler: {max_num_seqs: -1}", "scheduler.max_num_seqs is -1; must be greater than or "
         "equal to 0"),
        ("scheduler: {max_num_seqs: true}", "scheduler.max_num_seqs is True; must be a valid int"),
        ("model: {dtype: fp8}", "model.dtype is 'fp8'; must be 'auto', 'float32', 'bfloat16' or "
         "'float16'"),
        ("model: {device: gpu}", "model.device is 'gpu'"),
        ("kv_cache: 5", "kv_cache is 5; expected a section with keys"),
        ("scheduler: {max_num_seqs: 8, max_num_tokens: 7}", "max_num_tokens is 7, must be at least "
         "max_num_seqs (8)"),
        ("- a", "expected sections"),
        ("a: [", "while parsing"),
    ],
)  # fmt: skip
def test_faults_are_named(tmp_path: Path, yaml: str, message: str) -> None:
    file = tmp_path / "slipstream.yaml"
    file.write_text(yaml)
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_every_fault_gets_a_line(tmp_path: Path) -> None:
    file = tmp_path / "slipstream.yaml"
    file.write_text("scheduler: {max_num_seqs: -1}\nmodle: {}\n")
    with pytest.raises(ConfigError) as caught:
        load_config(file)
    lines = str(caught.value).splitlines()
    assert len(lines) == 2
    assert all(line.startswith(f"{file}: ") for line in lines)


def test_missing_file() -> None:
    with pytest.raises(ConfigError, match=r"/nowhere\.yaml: No such file"):
        load_config(Path("/nowhere.yaml"))


def test_unknown_override_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="unknown option 'max_seqs'; the nearest is"):
        load_config(None, {"max_seqs": 3})


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_num_seqs", 9, "9"),
        ("kv_cache_fraction", 0.5, "0.5"),
        ("exit_on_fatal", True, "true"),
        ("scripted", {"b": 1, "a": "é"}, '{"a": "\\u00e9", "b": 1}'),
    ],
)
def test_values_as_parameters(name: str, value: Any, text: str) -> None:
    config = load_config(None, {name: value})
    assert value_of(config, name) == value
    assert role_parameters(config, "llm")[name] == text


def test_importing_the_configuration_is_cheap() -> None:
    code = "import sys, slipstream.config; print('torch' in sys.modules, 'grpc' in sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    assert result.stdout.split() == ["False", "False"]
