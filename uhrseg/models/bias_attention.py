"""Swin's attention over windows of pixels and further tokens: global tokens, relays.

Liu et al. 2021 (Swin), section 3.2: a learned bias for each relative position, and windows shifted by half their side.
Further tokens take neither bias nor mask: they see, and are seen by, every pixel of their window.
Shapes: B batch, H and W of a map, C channels, n windows, w window side, N tokens of a window, h heads.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import trunc_normal_
from timm.models.swin_transformer import get_relative_position_index
from torch import Tensor, nn

from uhrseg.models.window_attention import attend, no_autocast, split_heads

__all__ = ["BiasAttention", "partition", "reverse", "shift_mask"]

_MASKED = -100.0  # Swin's published code; softmax makes it nothing


class BiasAttention(nn.Module):
    """Multi-head attention with a learned bias per relative position; timm's names, so that its weights load."""

    def __init__(self, dim: int, window: int, heads: int) -> None:
        super().__init__()
        self.dim, self.heads, self.window_size = dim, heads, (window, window)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        index = get_relative_position_index(window, window)
        self.register_buffer("relative_position_index", index, persistent=False)

    def forward(self, x: Tensor, first: int, mask: Tensor | None, rows: slice = slice(None)) -> Tensor:
        """Attend within windows: x (B, n, N, C), mask (n, w*w, w*w) -> (B, n, rows of N, C).

        ``first``: place of the first pixel among the N tokens; the others stand before and after the pixels.
        ``rows``: the tokens whose result is wanted; all are attended to.
        """
        q, k, v = self._qkv(x, rows)  # (B*n, h, rows | N, d)
        bias = self._bias(first, x.shape[2], mask).to(v.dtype)[:, :, rows].contiguous()  # (1 | n, h, rows, N)
        with no_autocast(x.device):
            y = attend(q * q.shape[-1] ** -0.5, k, v, bias)
        y = y.transpose(1, 2).reshape(*x.shape[:2], -1, self.dim)
        out: Tensor = self.proj(y)
        return out

    def _qkv(self, x: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        tokens, dim, (weight, bias) = x.shape[2], self.dim, (self.qkv.weight, self.qkv.bias)
        if rows == slice(None):
            q, k, v = split_heads(F.linear(x, weight, bias), 3, tokens, self.heads)
            return q, k, v
        wanted = x[:, :, rows].contiguous()
        (q,) = split_heads(F.linear(wanted, weight[:dim], bias[:dim]), 1, wanted.shape[2], self.heads)
        k, v = split_heads(F.linear(x, weight[dim:], bias[dim:]), 2, tokens, self.heads)
        return q, k, v

    def _bias(self, first: int, tokens: int, mask: Tensor | None) -> Tensor:
        index = cast(Tensor, self.relative_position_index)
        area = index.shape[0]
        bias = self.relative_position_bias_table[index.view(-1)].view(area, area, self.heads)
        bias = bias.permute(2, 0, 1).unsqueeze(0)  # (1, h, w*w, w*w)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # (n, h, w*w, w*w)
        last = tokens - first - area
        return F.pad(bias, (first, last, first, last))


def partition(x: Tensor, window: int, shift: int) -> Tensor:
    """(B, H, W, C) -> windows (B, n, w*w, C): zero-padded at the bottom and right, then rolled by the shift."""
    batch, height, width, dim = x.shape
    rows, cols = -(-height // window), -(-width // window)
    x = F.pad(x, (0, 0, 0, cols * window - width, 0, rows * window - height))
    if shift:
        x = torch.roll(x, (-shift, -shift), (1, 2))
    grid = x.view(batch, rows, window, cols, window, dim)
    return grid.transpose(2, 3).reshape(batch, rows * cols, window * window, dim)


def reverse(windows: Tensor, height: int, width: int, window: int, shift: int) -> Tensor:
    """(B, n, w*w, C) -> (B, H, W, C): the inverse of `partition`."""
    batch, dim = windows.shape[0], windows.shape[-1]
    rows, cols = -(-height // window), -(-width // window)
    grid = windows.reshape(batch, rows, cols, window, window, dim).transpose(2, 3)
    x = grid.reshape(batch, rows * window, cols * window, dim)
    if shift:
        x = torch.roll(x, (shift, shift), (1, 2))
    return x[:, :height, :width]


def shift_mask(height: int, width: int, window: int, shift: int, device: torch.device) -> Tensor | None:
    """What keeps pixels apart that the roll brought together, (n, w*w, w*w); None without a shift.

    Swin's rule: along each side, the last window's far part, its near part and everything else are three regions.
    """
    if not shift:
        return None
    region = 3 * _regions(height, window, shift, device)[:, None] + _regions(width, window, shift, device)
    ids = partition(region[None, :, :, None], window, 0)[0, :, :, 0]  # (n, w*w)
    return (ids[:, :, None] != ids[:, None, :]) * _MASKED


def _regions(side: int, window: int, shift: int, device: torch.device) -> Tensor:
    padded = -(-side // window) * window
    place = torch.arange(padded, device=device)
    return (place >= padded - window).long() + (place >= padded - shift).long()
