# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""What checkpoints call the scales of an FP8 KV cache; nothing here needs torch."""

from __future__ import annotations

import re

# Of llm-compressor, ModelOpt and Quark, and of checkpoints saved after vLLM renamed them:
# self_attn.k_scale, self_attn.k_proj.k_scale, self_attn.k_proj.output_scale, self_attn.attn.k_scale
# and self_attn.kv_scale, which is both.
_NAME = re.compile(
    r"(?:^|\.)(?P<layer>\d+)\.(?:self_attn|attn|attention|self_attention)\.(?:attn\.)?"
    r"(?:(?P<plane>k|v|kv)_scale|(?P<projected>[kv])_proj\.(?:(?P=projected)_scale|output_scale))$"
)


def kv_scale_of(name: str) -> tuple[int, str] | None:
    """The layer of a scale and whose it is, "k", "v" or "kv"; None for any other tensor."""
    found = _NAME.search(name)
    if found is None:
        return None
    return int(found["layer"]), found["plane"] or found["projected"]
