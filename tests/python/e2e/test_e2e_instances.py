# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a model's ``instance_group`` asks for is done or refused, never ignored."""

from __future__ import annotations

import re

import grpc
import pytest
import torch
from e2e_client import ask, load, prompt, stub, unload
from e2e_metrics import wait_for
from e2e_server import Server
from tritonclient.grpc import service_pb2

ON_CPU = "instance_group { kind: KIND_CPU }\n"
GROUPS = re.compile(r"^instance_group \{\n.*?^\}\n", re.M | re.S)
KEY = 'key: "device"\n  value {\n    string_value: "auto"'
with_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without GPUs")


def write(server: Server, name: str, groups: str, device: str = "auto", copy: str = "llm") -> None:
    """A model of the server's repository with other groups of instances."""
    text = (server.repository / copy / "config.pbtxt").read_text()
    text, count = GROUPS.subn(groups, text)
    assert count == 1
    text = text.replace(KEY, KEY.replace("auto", device))
    text = text.replace(f'name: "{copy}"', f'name: "{name}"', 1)
    (server.repository / name / "1").mkdir(parents=True, exist_ok=True)
    (server.repository / name / "config.pbtxt").write_text(text)


def refusal(server: Server, name: str) -> str:
    with pytest.raises(grpc.RpcError) as caught:
        load(server.grpc, name)
    return str(caught.value.details())


def kinds(server: Server, name: str) -> list[str]:
    """The kinds of a model's instances, as the server completed them."""
    request = service_pb2.ModelConfigRequest(name=name)
    config = stub(server.grpc).ModelConfig(request, timeout=10).config
    return [type(group).Kind.Name(group.kind) for group in config.instance_group]


def assert_serves(server: Server, name: str) -> None:
    assert ask(server.grpc, name, prompt([9], 2))[0].ids() == [9, 9, 9]


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("count: 2 kind: KIND_CPU", "instance_group: 2 instances; "),
        ("count: 1 kind: KIND_CPU } instance_group { kind: KIND_MODEL",
         "instance_group: 2 instances; "),
        ("kind: KIND_CPU passive: true", "instance_group.passive true: is not supported"),
        ('kind: KIND_CPU host_policy: "node_0"',
         'instance_group.host_policy "node_0": is not supported'),
        ("kind: KIND_CPU rate_limiter { priority: 2 }", "instance_group.rate_limiter "),
        ("kind: KIND_CPU secondary_devices { device_id: 1 }", "instance_group.secondary_devices "),
        ('kind: KIND_CPU profile: "a"', "profile"),  # by the server
    ],
)  # fmt: skip
def test_what_is_not_served_is_refused(scripted: Server, groups: str, message: str) -> None:
    write(scripted, "refused", f"instance_group {{ {groups} }}\n")
    assert message in refusal(scripted, "refused")
    assert not scripted.is_ready("refused")
    assert_serves(scripted, "llm")


def test_a_passive_model_that_tokenizes_is_refused_too(scripted: Server) -> None:
    group = "instance_group { kind: KIND_CPU passive: true }\n"
    write(scripted, "refused_text", group, copy="preprocessing")
    assert "instance_group.passive true: is not supported" in refusal(scripted, "refused_text")


@pytest.mark.parametrize("groups", ["", ON_CPU])
def test_without_a_kind_the_device_is_the_workers_choice(scripted: Server, groups: str) -> None:
    """On machines with GPUs, too, where the server would else make an instance on each."""
    name = "grouped" if groups else "ungrouped"
    write(scripted, name, groups, device="cpu")
    load(scripted.grpc, name)
    assert kinds(scripted, name) == ["KIND_CPU"]
    assert_serves(scripted, name)
    unload(scripted.grpc, name)


@without_gpu
@pytest.mark.parametrize(
    ("gpus", "message"),
    [("", "has kind KIND_GPU but no GPUs are available"),
     ("gpus: 1", "specifies invalid or unsupported gpu id 1")],
)  # fmt: skip
def test_the_server_refuses_gpus_that_it_does_not_see(
    scripted: Server, gpus: str, message: str
) -> None:
    write(scripted, "on_gpu", f"instance_group {{ kind: KIND_GPU {gpus} }}\n")
    assert message in refusal(scripted, "on_gpu")


@with_gpu
def test_a_gpu_is_the_workers_device(scripted: Server) -> None:
    group = "instance_group { kind: KIND_GPU gpus: 0 }\n"
    for device in ("auto", "cuda", "cuda:0"):
        name = f"on_gpu_{device.replace(':', '_')}"
        write(scripted, name, group, device)
        load(scripted.grpc, name)
        assert_serves(scripted, name)
        unload(scripted.grpc, name)
    for device in ("cpu", "cuda:1"):
        write(scripted, "on_gpu", group, device)
        expected = "instance_group.gpus: [0] of KIND_GPU means cuda:0, but parameter device (or "
        assert f"{expected}gpu_device_ids) means '{device}'" in refusal(scripted, "on_gpu")


def test_a_change_under_a_loaded_model_is_refused(scripted: Server) -> None:
    """The server makes new instances for it, without loading the model again."""
    name = "changed"
    write(scripted, name, ON_CPU)
    load(scripted.grpc, name)
    for groups in ("count: 2 kind: KIND_CPU", "kind: KIND_MODEL"):
        write(scripted, name, f"instance_group {{ {groups} }}\n")
        assert "instance_group: was changed while the model is loaded" in refusal(scripted, name)
        assert kinds(scripted, name) == ["KIND_CPU"]
        assert_serves(scripted, name)
    unload(scripted.grpc, name)
    wait_for(lambda: scripted.state_of(name)[0] == "UNAVAILABLE", 10, "it is unloaded")
    load(scripted.grpc, name)
    assert kinds(scripted, name) == ["KIND_MODEL"]
    assert_serves(scripted, name)
    unload(scripted.grpc, name)
