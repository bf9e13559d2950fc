# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""The decoder: one implementation for every family, built from an ArchSpec."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn import functional as F

from slipstream.attention.interface import AttentionPlan
from slipstream.layers.linear import Linear, Residual, Undivided
from slipstream.layers.mlp import GatedMlp, MlpSpec, PlainMlp
from slipstream.layers.moe import ExpertLoad, MoeBlock, MoeSpec
from slipstream.layers.norm import Norm, add_scaled_
from slipstream.layers.rotary import RopeSpec, RotaryEmbedding
from slipstream.layers.rows import RowKernels, log1p_
from slipstream.models.attention import GroupedQueryAttention, LayerInputs, select_rows
from slipstream.models.latent_attention import LatentAttention
from slipstream.models.spec import ArchSpec, TemperatureSpec


def make_attention(spec: ArchSpec, index: int, dtype: torch.dtype) -> nn.Module:
    """The attention of a layer: hidden ``[tokens, hidden_size]`` and LayerInputs to the same."""
    if spec.layers[index].attention.mla is not None:
        return LatentAttention(spec, index, dtype)
    return GroupedQueryAttention(spec, index, dtype)


def make_feed_forward(spec: MlpSpec | MoeSpec, hidden_size: int, dtype: torch.dtype) -> nn.Module:
    """The feed-forward block of a layer: ``[tokens, hidden_size]`` to the same."""
    if isinstance(spec, MoeSpec):
        return MoeBlock(hidden_size, spec, dtype)
    return (GatedMlp if spec.gated else PlainMlp)(hidden_size, spec, dtype)


def _first_product(block: nn.Module) -> Linear | None:
    """The one that reads a block's input, of blocks that take Undivided rows and a Residual."""
    if isinstance(block, GroupedQueryAttention):
        return block.qkv
    return block.gate_up if isinstance(block, GatedMlp) else None


def _embedding(rows: int, size: int, dtype: torch.dtype) -> nn.Embedding:
    # The constructor would fill it with random numbers, which on the meta device makes torch import
    # its compiler: seconds and 80 MB for nothing.
    return nn.Embedding.from_pretrained(torch.empty(rows, size, dtype=dtype), freeze=False)


class DecoderLayer(nn.Module):
    """Attention and feed-forward block, joined to the residual as BlockSpec says. ``rows``: as of
    the Decoder."""

    rows: RowKernels | None = None

    def __init__(self, spec: ArchSpec, index: int, dtype: torch.dtype) -> None:
        super().__init__()
        block = spec.block

        def norm(wanted: bool) -> nn.Module:
            return Norm(spec.norm, (spec.hidden_size,), dtype) if wanted else nn.Identity()

        self._parallel = block.parallel != "no"
        self._scale = block.residual_scale
        self._shared_norm = block.parallel == "one_norm"
        # Whether the products that end the blocks may join the residual themselves.
        plain_norm = spec.norm.kind == "rms" and spec.norm.weight and not spec.norm.bias
        one_after_the_other = block.pre_norm and not block.post_norm and not self._parallel
        self._joins = one_after_the_other and plain_norm
        self.attention_norm = norm(block.pre_norm)
        self.attention = make_attention(spec, index, dtype)
        self.attention_post_norm = norm(block.post_norm)
        self.mlp_norm = norm(block.pre_norm and not self._shared_norm)
        self.mlp = make_feed_forward(spec.layers[index].mlp, spec.hidden_size, dtype)
        self.mlp_post_norm = norm(block.post_norm)

    def forward(
        self,
        hidden: torch.Tensor,
        branch: torch.Tensor | Undivided | None,
        inputs: LayerInputs,
        kept: torch.Tensor | None = None,
        following: DecoderLayer | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor | Undivided]:
        """hidden: the residual ``[tokens, hidden_size]``, updated in place; branch: what has yet to
        join it, None at first. Returns the residual and this layer's own last branch, of the rows
        ``kept`` alone unless that is None: joining them is left to the norm that comes next, which
        reads the residual anyway. A branch that is Undivided has joined it, and is what the norm of
        the ``following`` layer makes of it."""
        normed = self._join(self.attention_norm, hidden, branch)
        hidden = select_rows(hidden, kept)  # before a branch of as many rows joins it
        residual = self._residual(self.attention, hidden, self.mlp_norm, self.mlp)
        attended = self.attention_post_norm(self.attention(normed, inputs, kept, *residual))
        if self._parallel:
            assert isinstance(normed, torch.Tensor)
            given = select_rows(normed, kept) if self._shared_norm else self.mlp_norm(hidden)
            return hidden, attended.add_(self.mlp(given))
        normed = self._join(self.mlp_norm, hidden, attended)
        if following is None:
            return hidden, self.mlp_post_norm(self.mlp(normed))
        residual = self._residual(self.mlp, hidden, following.attention_norm, following.attention)
        return hidden, self.mlp_post_norm(self.mlp(normed, *residual))

    def _residual(
        self, block: nn.Module, hidden: torch.Tensor, norm: nn.Module, reader: nn.Module
    ) -> tuple[Residual, ...]:
        """What ``block`` gets to join its result to, if it can, and if ``reader``, the block that
        comes after it and ``norm``, takes what that then returns."""
        if not self._joins or _first_product(block) is None:
            return ()
        product = _first_product(reader)
        if product is None or not product.streams(hidden.shape[0]):
            return ()
        assert isinstance(norm, Norm)
        return (Residual(hidden, self._scale, norm),)

    def _join(
        self, norm: nn.Module, hidden: torch.Tensor, branch: torch.Tensor | Undivided | None
    ) -> torch.Tensor | Undivided:
        if isinstance(branch, Undivided):
            return branch
        if isinstance(norm, Norm):
            return norm.after_adding(hidden, branch, self._scale)
        if branch is not None:
            add_scaled_(hidden, branch, self._scale, apart=self.rows is not None)
        return hidden


class Decoder(nn.Module):
    """Token ids in, hidden states and logits out. KV lives outside, behind the attention plan.

    ``rows``: set if no token may depend on the others of a batch (``models/rows.py``).
    """

    rows: RowKernels | None = None

    def __init__(self, spec: ArchSpec, dtype: torch.dtype) -> None:
        """Allocates parameters on the current default device, uninitialised."""
        super().__init__()
        self.spec = spec
        self.dtype = dtype
        self.positions = PositionTables(spec, dtype)
        self.embedding = _embedding(spec.vocab_size, spec.hidden_size, dtype)
        if spec.learned_positions:
            self.position_embedding = _embedding(spec.learned_positions, spec.hidden_size, dtype)
        # As transformers does: the factor is rounded to the dtype of what it multiplies.
        self._embedding_scale = float(torch.tensor(spec.embedding_scale, dtype=dtype, device="cpu"))
        self.layers = nn.ModuleList(
            DecoderLayer(spec, index, dtype) for index in range(spec.num_layers)
        )
        self.norm = Norm(spec.norm, (spec.hidden_size,), dtype)
        self.lm_head = Linear(spec.hidden_size, spec.vocab_size, bias=False, dtype=dtype)

    def tie_weights(self) -> None:
        """Makes the output matrix the embedding's, where the spec says so."""
        if self.spec.tie_embeddings:
            self.lm_head.weight = self.embedding.weight

    @property
    def device(self) -> torch.device:
        return self.embedding.weight.device

    @property
    def weight_bytes(self) -> int:
        return sum(parameter.nbytes for parameter in self.parameters())

    def expert_load(self) -> ExpertLoad | None:
        """Counts from now on what each expert computes; None for a model without experts."""
        blocks = {
            i: layer.mlp for i, layer in enumerate(self.layers) if isinstance(layer.mlp, MoeBlock)
        }
        return ExpertLoad(blocks, self.device) if blocks else None

    def forward(
        self,
        token_ids: torch.Tensor,
        positions: torch.Tensor,
        attention: AttentionPlan,
        kept: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """See ServedModel. What it returns is not normalised."""
        hidden: torch.Tensor = self.embedding(token_ids)
        if self._embedding_scale != 1.0:
            hidden *= self._embedding_scale
        if self.spec.learned_positions:
            hidden += self.position_embedding(positions)
        inputs = self.positions.inputs(positions, attention)
        branch: torch.Tensor | Undivided | None = None
        layers = list(self.layers)
        followed = zip(layers, self.positions.by_layer, [*layers[1:], None], strict=True)
        for layer, index, following in followed:
            # Of the others, a last layer has to leave no more than keys and values.
            rows = kept if following is None else None
            hidden, branch = layer(hidden, branch, inputs[index], rows, following)
        assert isinstance(branch, torch.Tensor)
        apart = self.rows is not None
        add_scaled_(hidden, branch, self.spec.block.residual_scale, apart=apart)
        return hidden

    @property
    def logits_dtype(self) -> torch.dtype:
        """The narrowest type that holds the logits without rounding them."""
        return self.dtype if self._plain_logits else torch.float32

    @property
    def _plain_logits(self) -> bool:
        """Whether they are the output matrix's product and nothing else."""
        return self.spec.logit_scale == 1.0 and self.spec.logit_soft_cap is None

    def logits_into(self, hidden: torch.Tensor, out: torch.Tensor) -> None:
        """As ``logits``, into ``out`` of ``logits_dtype``."""
        if self._plain_logits:
            self.lm_head.into(self.norm.after_adding(hidden, None), out)
        else:
            out.copy_(self.logits(hidden))

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """Final norm and output matrix: ``[rows, hidden_size]`` to float32 ``[rows, vocab]``."""
        hidden = self.norm(hidden)
        if self.rows is None:
            logits = F.linear(hidden, self.lm_head.weight).float()
        else:
            logits = self.rows.linear(hidden, self.lm_head.weight).float()
        if self.spec.logit_scale != 1.0:
            logits *= self.spec.logit_scale
        if cap := self.spec.logit_soft_cap:
            if self.rows is not None:
                return self.rows.soft_cap_(logits, cap)
            logits = logits.div_(cap).tanh_().mul_(cap)
        return logits


class PositionTables(nn.Module):
    """What positions mean to each layer, computed once a batch for layers that agree. ``rows``: as
    of the Decoder."""

    rows: RowKernels | None = None

    def __init__(self, spec: ArchSpec, dtype: torch.dtype) -> None:
        super().__init__()
        self._dtype = dtype
        kinds = [(layer.attention.rope, layer.attention.temperature) for layer in spec.layers]
        distinct = list(dict.fromkeys(kinds))
        self.by_layer = [distinct.index(kind) for kind in kinds]
        self._kinds: list[tuple[RopeSpec | None, TemperatureSpec | None]] = distinct
        self.ropes = {
            rope: RotaryEmbedding(rope, dtype) for rope, _ in distinct if rope is not None
        }

    def inputs(self, positions: torch.Tensor, plan: AttentionPlan) -> list[LayerInputs]:
        """positions: ``[tokens]``. Indexed by the entries of ``by_layer``."""
        tables = {rope: embedding.tables(positions) for rope, embedding in self.ropes.items()}
        return [
            LayerInputs(
                plan,
                tables[rope] if rope is not None else None,
                self._temperature(positions, temperature) if temperature is not None else None,
            )
            for rope, temperature in self._kinds
        ]

    def _temperature(self, positions: torch.Tensor, spec: TemperatureSpec) -> torch.Tensor:
        steps = ((positions.float() + 1) / spec.floor).floor()
        logs = steps.log1p() if self.rows is None else log1p_(steps)
        return (logs * spec.scale + 1).to(self._dtype)[:, None, None]
