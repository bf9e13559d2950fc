# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""Checkpoints served by transformers' own forward."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from slipstream.models.checkpoint import with_generation_ends
from slipstream.models.config_reader import CheckpointError, ConfigReader
from slipstream.models.fallback import library
from slipstream.models.fallback.bridge import Bridge
from slipstream.models.fallback.decoder import FallbackDecoder
from slipstream.models.fallback.probe import Probe, probe
from slipstream.models.fallback.self_test import self_test
from slipstream.models.fallback.spec import FallbackSpec

_META = torch.device("meta")


class FallbackCheckpoint:
    """What transformers makes of a config.json; no weights are read before ``load``.

    ``spec`` is None for models that compute with the values of tensors while they run: what they
    ask of attention is known only once they are loaded, and ``why`` says so.
    """

    def __init__(self, values: Mapping[str, Any], path: Path | None = None) -> None:
        """values: of config.json; path: the checkpoint, if code that comes with it may run.

        Builds the model without weights and probes it. Raises CheckpointError with the reason for
        a model that cannot be served.
        """
        config = ConfigReader(values)
        self.dtype = config.get("dtype" if config.has("dtype") else "torch_dtype", str, "") or None
        self._values = config
        self._config = library.read_config(values, path)
        self.spec: FallbackSpec | None = None
        self.why = ""
        model = library.build(self._config, torch.float32, _META)
        try:
            self.spec = self._spec(model, self._probe(model, Bridge(model), _META))
        except CheckpointError:
            raise
        except Exception as error:  # whatever the model's code raises without values
            self.why = f"{type(model).__name__}: cannot be measured without weights: {error}"

    @staticmethod
    def needs_its_code(values: Mapping[str, Any]) -> bool:
        """Whether the model is defined by code that comes with the checkpoint."""
        return "auto_map" in values and not library.knows(values)

    def load(
        self,
        path: Path,
        dtype: torch.dtype,
        device: torch.device,
        *,
        dummy_seed: int | None = None,
        safetensors_only: bool = False,
        progress: Callable[[float, str], None] = lambda fraction, what: None,
    ) -> FallbackDecoder:
        """Loads and probes the model, and compares it with itself served.

        With ``dummy_seed`` the weights are the library's random initialisation. Raises
        CheckpointError, also for a model that serving would change.
        """
        progress(0.0, "loading weights with transformers")
        if dummy_seed is None:
            model = library.load(
                self._config, path, dtype, device, safetensors_only=safetensors_only
            )
        else:
            with torch.random.fork_rng():
                torch.manual_seed(dummy_seed)
                model = library.build(self._config, dtype, device)
        progress(0.9, "comparing with transformers' attention")
        try:
            decoder = self._checked(model, path, dtype, device)
        except CheckpointError:
            raise
        except Exception as error:  # whatever the model's code raises
            raise CheckpointError(f"{type(model).__name__}: its forward fails: {error}") from error
        progress(1.0, "loaded")
        return decoder

    def _checked(
        self, model: nn.Module, path: Path, dtype: torch.dtype, device: torch.device
    ) -> FallbackDecoder:
        bridge = Bridge(model)
        found = self._probe(model, bridge, device)
        decoder = FallbackDecoder(
            model, bridge, found, with_generation_ends(self._spec(model, found), path), dtype
        )
        self_test(decoder)
        return decoder

    def _probe(self, model: nn.Module, bridge: Bridge, device: torch.device) -> Probe:
        num_layers = self._config.get_text_config().num_hidden_layers
        with torch.inference_mode():
            return probe(model, bridge, device, num_layers)

    def _spec(self, model: nn.Module, found: Probe) -> FallbackSpec:
        """The smallest cache that every layer fits in."""
        layers = found.layers
        kv_heads = max(layer.kv_heads for layer in layers)
        return FallbackSpec(
            architecture=type(model).__name__,
            vocab_size=self._config.get_text_config().vocab_size,
            max_positions=library.max_positions(self._config),
            num_heads=kv_heads * max(layer.heads // layer.kv_heads for layer in layers),
            num_kv_heads=kv_heads,
            head_dim=max(max(layer.key_dim, layer.value_dim) for layer in layers),
            scores=tuple(layer.scores for layer in layers),
            dtype=self.dtype,
            end_ids=self._values.token_ids("eos_token_id"),
            pad_id=next(iter(self._values.token_ids("pad_token_id")), -1),
        )
