# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What a transformers model asks of attention, learnt from one tiny forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from slipstream.attention.interface import FULL, Mask, ScoreSpec
from slipstream.models.config_reader import CheckpointError
from slipstream.models.fallback.bridge import PROBED, AttentionCall, Bridge, WantedMask
from slipstream.models.fallback.row_counting import RowCounting

TOKENS = 11  # of the forward: a number that hardly anything else has

# What is passed to attention functions and is honoured, or does not change the result.
_KNOWN = {
    "scaling",
    "sliding_window",
    "softcap",
    "s_aux",
    "is_causal",
    "dropout",
    "position_ids",
    "layer_idx",
    "deterministic",
}


@dataclass(frozen=True, slots=True)
class LayerCall:
    """One attention call of a forward. ``sinks``: it has a score for each head without a value."""

    heads: int
    kv_heads: int
    key_dim: int
    value_dim: int
    scores: ScoreSpec
    sinks: bool


@dataclass(slots=True)
class BodyCall:
    """The call of the module that holds all layers; everything after it is the head.

    path: the module's name; output: what it returned.
    """

    path: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    first_layer: int
    end_layer: int = -1
    output: Any = None


@dataclass(frozen=True, slots=True)
class Probe:
    """A model's attention calls in the order they are made, and where its body ends."""

    layers: tuple[LayerCall, ...]
    body: BodyCall
    token_ids: torch.Tensor
    positions: torch.Tensor


def probe(model: nn.Module, bridge: Bridge, device: torch.device, num_layers: int) -> Probe:
    """Runs ``model`` on a few tokens; on the meta device nothing is computed.

    num_layers: how many layers its configuration says it has. Raises CheckpointError naming what
    cannot be served; any other exception is the model's own.
    """
    name = type(model).__name__
    tokens = torch.arange(TOKENS, device=device)[None]
    positions = torch.arange(TOKENS, device=device)[None]
    inputs: dict[str, Any] = {"input_ids": tokens, "position_ids": positions, "use_cache": False}
    if device.type == "meta":
        # Without it the library looks at the values of positions, which are not there.
        inputs["attention_mask"] = torch.ones_like(tokens)
    recorder = _Recorder(name, device)
    try:
        with (
            bridge.using(PROBED),
            bridge.handled_by(recorder.attend),
            recorder.watching(model),
            RowCounting(name, TOKENS),
        ):
            model(**inputs)
    except (AttributeError, TypeError) as error:
        if WantedMask.__name__ not in str(error):
            raise
        raise CheckpointError(
            f"{name}: computes with its attention mask, as ALiBi and sparse attention do; only "
            "masks that are causal, a window or chunks are served"
        ) from None
    layers = tuple(recorder.layers)
    if len(layers) < num_layers:
        raise CheckpointError(
            f"{name}: {len(layers) or 'none'} of its {num_layers} layers call transformers' "
            "attention interface; the others cannot attend to a paged KV cache"
        )
    body = recorder.body()
    _check_inputs(name, body, inputs)
    return Probe(layers, body, tokens, positions)


def _check_inputs(name: str, body: BodyCall, inputs: dict[str, Any]) -> None:
    given = [*enumerate(body.args), *body.kwargs.items()]
    tensors = {id(value): name for name, value in given if isinstance(value, torch.Tensor)}
    for expected in ("input_ids", "position_ids"):
        if tensors.pop(id(inputs[expected]), None) is None:
            raise CheckpointError(f"{name}: its layers are not given {expected}")
    tensors.pop(id(inputs.get("attention_mask")), None)
    if tensors:
        raise CheckpointError(
            f"{name}: its layers are given {', '.join(map(str, tensors.values()))} besides tokens "
            "and positions"
        )


class _Recorder:
    """Notes every attention call, and which module of the model's forward made it."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.layers: list[LayerCall] = []
        self._name = name
        self._device = device
        self._calls: list[BodyCall] = []
        self._depth = 0

    def attend(self, call: AttentionCall) -> torch.Tensor:
        try:
            self.layers.append(read_call(call, self._device))
        except CheckpointError as error:
            raise CheckpointError(f"{self._name}: layer {len(self.layers)} {error}") from None
        return call.value.new_zeros((call.query.shape[2], call.query.shape[1], call.value.shape[3]))

    @contextmanager
    def watching(self, model: nn.Module) -> Iterator[None]:
        """Notes the modules that the forward of ``model`` itself calls, not what they call."""

        def before(path: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            if self._depth == 0:
                self._calls.append(BodyCall(path, args, kwargs, first_layer=len(self.layers)))
            self._depth += 1

        def after(output: Any) -> None:
            self._depth -= 1
            if self._depth == 0:
                self._calls[-1].output = output
                self._calls[-1].end_layer = len(self.layers)

        hooks = []
        for path, module in model.named_modules():
            if path:
                hooks += _hooks(path, module, before, after)
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def body(self) -> BodyCall:
        calls = [call for call in self._calls if call.end_layer > call.first_layer]
        if len(calls) != 1:
            paths = ", ".join(call.path for call in calls)
            raise CheckpointError(f"{self._name}: its layers are not in one module ({paths})")
        return calls[0]


def _hooks(
    path: str, module: nn.Module, before: Callable[..., None], after: Callable[[Any], None]
) -> list[RemovableHandle]:
    return [
        module.register_forward_pre_hook(
            lambda _, args, kwargs: before(path, args, kwargs), with_kwargs=True
        ),
        module.register_forward_hook(lambda _, args, output: after(output)),
    ]


def read_call(call: AttentionCall, device: torch.device) -> LayerCall:
    """Raises CheckpointError for what is asked and not honoured; the message goes on from there."""
    options = call.options
    for name, value in options.items():
        if name == "dropout" and value:
            raise CheckpointError(f"wants dropout of {value} while serving")
        if name not in _KNOWN and value is not None and value is not False:
            raise CheckpointError(f"passes {name} to attention, which is not honoured")
    is_causal = options.get("is_causal")
    if is_causal is None:
        is_causal = getattr(call.module, "is_causal", True)
    if not is_causal:
        raise CheckpointError("attends to later tokens (its attention is not causal)")
    (_, heads, tokens, dim), (_, kv_heads, keys, _) = call.query.shape, call.key.shape
    if heads % kv_heads:
        raise CheckpointError(f"has {heads} query heads for {kv_heads} KV heads")
    if keys != tokens or call.query.shape[0] != 1:
        raise CheckpointError(f"attends from {tokens} tokens to {keys} keys of its own")
    scale = options.get("scaling")
    return LayerCall(
        heads=heads,
        kv_heads=kv_heads,
        key_dim=dim,
        value_dim=call.value.shape[3],
        scores=ScoreSpec(
            scale=dim**-0.5 if scale is None else float(scale),
            mask=_read_mask(call, device),
            soft_cap=options.get("softcap"),
        ),
        sinks=options.get("s_aux") is not None,
    )


def _read_mask(call: AttentionCall, device: torch.device) -> Mask:
    wanted = call.mask
    if wanted is None:
        wanted = WantedMask(lambda _, __, query, key: key <= query, None)
    if not isinstance(wanted, WantedMask):
        raise CheckpointError("makes its attention mask itself")
    mask = _classify(wanted, device)
    window = call.options.get("sliding_window")
    if window is not None and mask != Mask("sliding", window) and device.type != "meta":
        raise CheckpointError(f"wants a window of {window} and a mask that is {mask}")
    return mask


def _classify(wanted: WantedMask, device: torch.device) -> Mask:
    """Compares what the model's mask shows with what ours would, where they could differ."""
    size = wanted.size
    candidates = [FULL] if size is None else [Mask("sliding", size), Mask("chunked", size)]
    around = np.arange(9) if size is None else np.array([0, 1, size, 2 * size, 3 * size])
    near = (around[:, None] + np.arange(-2, 3)).reshape(-1)
    positions = np.unique(np.concatenate((near, [100, 1000, 1 << 17])))
    positions = positions[positions >= 0]
    index = torch.from_numpy(positions).to("cpu" if device.type == "meta" else device)
    try:
        visible = wanted.visible(0, 0, index[:, None], index[None, :]).cpu().numpy()
    except (RuntimeError, IndexError) as error:
        if device.type == "meta":
            return FULL  # it reads tensors that have no values; the size of the cache is the same
        raise CheckpointError(f"has an attention mask of its own batch ({error})") from error
    for mask in candidates:
        first = mask.first_visible(positions)[:, None]
        if ((positions <= positions[:, None]) & (positions >= first) == visible).all():
            return mask
    raise CheckpointError("has an attention mask that is neither causal nor a window nor chunks")
