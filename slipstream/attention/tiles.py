# SPDX-FileCopyrightText: Slipstream contributors
# SPDX-License-Identifier: Apache-2.0
"""A chunk of tokens cut into tiles of queries, and the masks that tiles share."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from slipstream.attention.interface import FULL, Mask

TILE = 256  # query rows of a chunk a call


@dataclass(frozen=True, slots=True)
class Tile:
    """Consecutive queries of a sequence and the gathered positions ``[begin, end)`` they read.

    The last query is at the last of these positions. ``is_causal``: there are as many queries as
    positions, and nothing is masked but what comes later.
    """

    row: int  # first token row
    size: int
    begin: int
    end: int
    is_causal: bool


def tiles_of(mask: Mask, first: int, size: int, row: int, shift: int) -> list[Tile]:
    """Cuts ``size`` queries from position ``first`` on, whose tokens begin at ``row``.

    ``shift`` is the position of the first gathered key. No tile crosses the end of a chunk of a
    chunked mask, so that within a tile such a mask is merely causal.
    """
    tiles: list[Tile] = []
    done = 0
    while done < size:
        position = first + done
        room = mask.size - position % mask.size if mask.kind == "chunked" else TILE
        rows = min(TILE, room, size - done)
        begin, end = int(mask.first_visible(np.int64(position))), position + rows
        is_causal = end - begin == rows and (mask.kind != "sliding" or rows <= mask.size)
        tiles.append(Tile(row + done, rows, begin - shift, end - shift, is_causal))
        done += rows
    return tiles


class MaskTemplates:
    """Additive masks ``[TILE, columns]`` whose lower right corners serve every tile.

    What a query sees depends on distances alone: row r looks back from column
    ``columns - TILE + r``. A template grows when a longer corner is asked for.
    """

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype = dtype
        self._device = device
        self._templates: dict[Mask, torch.Tensor] = {}

    def get(self, mask: Mask, columns: int) -> torch.Tensor:
        """A template of at least so many columns; empty if none are needed."""
        if mask.kind == "chunked":
            mask = FULL
        template = self._templates.get(mask, torch.empty(TILE, 0))
        if template.shape[-1] < columns:
            template = self._make(mask, max(columns, TILE, 2 * template.shape[-1]))
            self._templates[mask] = template
        return template

    def _make(self, mask: Mask, columns: int) -> torch.Tensor:
        template = torch.full((TILE, columns), float("-inf"), dtype=self._dtype)
        template.triu_(columns - TILE + 1)
        if mask.kind == "sliding":
            # -inf below the band as well: the distance has to stay below the window.
            below = torch.ones(TILE, columns, dtype=torch.bool).tril_(columns - TILE - mask.size)
            template.masked_fill_(below, float("-inf"))
        return template.to(self._device)
