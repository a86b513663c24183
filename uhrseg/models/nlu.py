"""Non-local upsampling (NLU): a coarse map enlarged by attention from the fine map of the skip.

Themyr et al. 2023 (GLAM), section 3.3, in windows as in its code. Shapes: B batch, n windows, w side of a window of the
coarse map (2w of the fine one), c width of the fine map, 2c of the coarse one, a heads, d = 2c / a.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from torch import Tensor, nn

from uhrseg.models.bias_attention import partition, reverse
from uhrseg.models.pyramid import PatchExpansion, start_small
from uhrseg.models.window_attention import attend, no_autocast, split_heads

__all__ = ["CrossAttention", "NonLocalUpsampling", "SHORTCUTS"]

_WINDOW = 7


class CrossAttention(nn.Module):
    """Fine tokens query the coarse tokens of their window, with a learned bias per offset in coarse cells.

    ``faithful``: the offsets of the GLAM paper's code, which takes the columns of keys in the order 0 2 4 6 1 3 5.
    """

    def __init__(self, dim: int, heads: int, faithful: bool) -> None:
        super().__init__()
        self.heads = heads
        self.proj_q, self.proj_kv, self.proj = (
            nn.Linear(dim, 2 * dim),
            nn.Linear(2 * dim, 4 * dim),
            nn.Linear(2 * dim, dim),
        )
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * _WINDOW - 1) ** 2, heads))
        trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.register_buffer("offsets", _offsets(_WINDOW, faithful), persistent=False)

    def forward(self, fine: Tensor, coarse: Tensor) -> Tensor:
        """fine (B, n, 4w*w, c), coarse (B, n, w*w, 2c) -> (B, n, 4w*w, c)."""
        (q,) = split_heads(self.proj_q(fine), 1, fine.shape[2], self.heads)  # (B*n, a, 4w*w, d)
        k, v = split_heads(self.proj_kv(coarse), 2, coarse.shape[2], self.heads)  # (B*n, a, w*w, d)
        index = cast(Tensor, self.offsets)
        bias = self.relative_position_bias_table[index.view(-1)].view(*index.shape, -1).permute(2, 0, 1)
        with no_autocast(fine.device):
            y = attend(q * q.shape[-1] ** -0.5, k, v, bias.unsqueeze(0).to(v.dtype))
        y = y.transpose(1, 2).reshape(*fine.shape[:3], -1)
        out: Tensor = self.proj(y)
        return out


def _offsets(window: int, faithful: bool) -> Tensor:
    """Rows of the bias table for (query, key), (4w*w, w*w): the query's coarse cell minus the key's."""
    side = 2 * window
    queries = torch.arange(side * side)
    keys = 4 * torch.arange(window * window) if faithful else _corners(window)  # as fine tokens
    rows, cols = ((queries // side // 2, keys // side // 2), (queries % side // 2, keys % side // 2))
    down, right = (q[:, None] - k[None] + window - 1 for q, k in (rows, cols))
    return down * (2 * window - 1) + right


def _corners(window: int) -> Tensor:
    """The number of the first fine token of each coarse cell."""
    cells = torch.arange(window * window)
    return cells // window * 4 * window + cells % window * 2


class _Bilinear(nn.Module):
    """Half the width, then twice the size (align_corners, as in the GLAM paper's code)."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.linear, self.factor = nn.Linear(inputs, outputs), factor

    def forward(self, x: Tensor) -> Tensor:
        """(B, h, w, 2c) -> (B, 2h, 2w, c)."""
        x = self.linear(x).permute(0, 3, 1, 2)
        x = F.interpolate(x, scale_factor=self.factor, mode="bilinear", align_corners=True)
        return x.permute(0, 2, 3, 1)


SHORTCUTS: dict[str, type[nn.Module]] = {"expand": PatchExpansion, "bilinear": _Bilinear}


class NonLocalUpsampling(nn.Module):
    """Cross attention beside a plain upsampling of the coarse map, then an MLP."""

    def __init__(self, dim: int, heads: int, faithful: bool = False, shortcut: str = "expand") -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(2 * dim), nn.LayerNorm(dim)
        self.attn = CrossAttention(dim, heads, faithful)
        self.shortcut = SHORTCUTS[shortcut](2 * dim, dim, 2)
        self.mlp = Mlp(dim, 4 * dim)
        self.apply(start_small)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        """low (B, h, w, 2c), skip (B, H, W, c) with H = 2h or 2h - 1 -> (B, H, W, c)."""
        height, width = skip.shape[1:3]
        y = self.attn(partition(skip, 2 * _WINDOW, 0), partition(self.norm1(low), _WINDOW, 0))
        y = reverse(y, height, width, 2 * _WINDOW, 0) + self.shortcut(low)[:, :height, :width]
        out: Tensor = y + self.mlp(self.norm2(y))
        return out
