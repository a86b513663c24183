"""How GLAM's global tokens know where their window is. Shapes: n windows, g tokens per window, C channels."""

from __future__ import annotations

from collections.abc import Callable

import torch
from timm.layers import build_sincos2d_pos_embed, trunc_normal_
from torch import Tensor, nn

from uhrseg.errors import InputError

__all__ = ["POSITIONS"]

_TEMPERATURE = 100.0  # longest wave: 2 pi * 100 windows, 17 600 px for windows of 7 tokens of 4 px
_START = 0.02  # as the published table's standard deviation
_TABLE_SIDE = 45  # published: (45 g / 2^stage)^2 rows


class CoordinatePosition(nn.Module):
    """Sines and cosines of the window's row and column, and a learned vector per token of a window.

    A window has the same position in an image of any size; the gain per channel is learned.
    """

    def __init__(self, dim: int, tokens: int, stage: int) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.full((dim,), _START))
        self.slot = nn.Parameter(torch.empty(tokens, dim))
        trunc_normal_(self.slot, std=_START)

    def forward(self, rows: int, cols: int) -> Tensor:
        """Windows in raster order, the tokens of a window together: (n * g, C)."""
        dim, device = self.gain.shape[0], self.gain.device
        waves = build_sincos2d_pos_embed([rows, cols], dim, _TEMPERATURE, device=device)  # (n, C), float32
        return ((waves * self.gain)[:, None] + self.slot).flatten(0, 1).to(self.slot.dtype)


class TablePosition(nn.Module):
    """The published position: the middle rows of one long table, as many as there are tokens.

    Which rows a window reads depends on the number of windows, so on the size of the image; most are never read.
    """

    def __init__(self, dim: int, tokens: int, stage: int) -> None:
        super().__init__()
        self.tokens = tokens
        self.table = nn.Parameter(torch.empty((_TABLE_SIDE * tokens // 2**stage) ** 2, dim))
        trunc_normal_(self.table, std=_START)

    def forward(self, rows: int, cols: int) -> Tensor:
        """(n * g, C). Raises `InputError` for more tokens than rows."""
        wanted, held = rows * cols * self.tokens, self.table.shape[0]
        if wanted > held:
            raise InputError(
                f"position = 'table' holds {held} positions, {rows} x {cols} windows of {self.tokens} tokens need "
                f"{wanted}: use smaller windows of the scene, more global tokens, or position = 'coordinates'"
            )
        start = held // 2 - wanted // 2
        return self.table[start : start + wanted]


POSITIONS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "coordinates": CoordinatePosition,
    "table": TablePosition,
}
