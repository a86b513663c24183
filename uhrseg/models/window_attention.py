"""SwinV2's cosine attention over windows of patch tokens followed by relays.

Liu et al. 2022 (Swin V2), section 3.2-3.3, and the authors' treatment of relays: their rows and columns take neither
position bias nor shift mask. Shapes: B batch, W windows, N = patches + relays in a window, C channels, h heads, d = C / h.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import WindowAttention
from torch import Tensor

__all__ = ["CosineAttention"]

_MAX_LOGIT_SCALE = math.log(100.0)  # Swin V2, section 3.2: tau not below 0.01
_MAX_BIAS = 16.0  # Swin V2 code: 16 * sigmoid


class CosineAttention(WindowAttention):
    """timm's `WindowAttention` (same parameters and names) that accepts relays and keeps its bias between calls.

    The position bias depends on the weights only, so without gradients it is computed once and kept until a weight
    changes: by an optimiser step, ``load_state_dict``, ``.to()``, ``train()``. (Writing through ``weight.data``
    leaves no trace in torch; call ``train(False)`` after such a write.)
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    def forward(self, x: Tensor, mask: Tensor | None = None, rows: slice = slice(None)) -> Tensor:
        """Attend within windows. x (B, W, N, C), mask (W, patches, patches) -> (B, W, rows of N, C).

        ``rows``: the tokens of each window whose result is wanted; all tokens are attended to.
        """
        q, k, v = self._qkv(x, rows)  # (B*W, h, rows | N, d)
        scale = self.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp().to(q.dtype)  # (h, 1, 1)
        q, k = F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1)
        bias = self.bias(x.shape[2], mask, v.dtype)[:, :, rows]  # (1 | W, h, rows, N)
        if bias.shape[0] > 1:
            bias = bias.repeat(x.shape[0], 1, 1, 1)
        y = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v, attn_mask=bias, scale=1.0)
        y = y.transpose(1, 2).reshape(*x.shape[:2], -1, self.dim)  # (B, W, rows, C)
        out: Tensor = self.proj(y)
        return out

    def _qkv(self, x: Tensor, rows: slice) -> tuple[Tensor, Tensor, Tensor]:
        windows, tokens, heads = x.shape[0] * x.shape[1], x.shape[2], self.num_heads
        weight, bias = self.qkv.weight, torch.cat((self.q_bias, self.k_bias, self.v_bias))
        if rows == slice(None):
            qkv = F.linear(x, weight, bias).view(windows, tokens, 3, heads, -1).permute(2, 0, 3, 1, 4)
            return qkv[0], qkv[1], qkv[2]
        dim = self.dim
        q = F.linear(x[:, :, rows], weight[:dim], bias[:dim]).view(windows, -1, heads, dim // heads)
        kv = F.linear(x, weight[dim:], bias[dim:]).view(windows, tokens, 2, heads, -1).permute(2, 0, 3, 1, 4)
        return q.transpose(1, 2), kv[0], kv[1]

    def bias(self, tokens: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What is added to the attention logits of a window with ``tokens`` tokens: (1 | W, h, N, N)."""
        weights = (self.cpb_mlp[0].weight, self.cpb_mlp[0].bias, self.cpb_mlp[2].weight)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(w.is_inference() for w in weights):
            return self._compute_bias(tokens, mask, dtype)
        key = (tokens, mask is None, dtype, *(w._version for w in weights), *weights)
        kept = self._kept
        if kept is None or not _same_key(kept[0], key):
            with torch.inference_mode(False), torch.no_grad():
                self._kept = kept = (key, self._compute_bias(tokens, mask, dtype))
        return kept[1]

    def _compute_bias(self, tokens: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Log-spaced continuous position bias plus shift mask; zero on the rows and columns of relays."""
        patches = self.window_size[0] * self.window_size[1]
        with torch.autocast(self.qkv.weight.device.type, enabled=False):
            table = _mlp_in_float32(self.cpb_mlp, self.relative_coords_table).view(-1, self.num_heads)
            bias = _MAX_BIAS * torch.sigmoid(table)[self.relative_position_index.view(-1)]
        bias = bias.view(patches, patches, self.num_heads).permute(2, 0, 1).unsqueeze(0)  # (1, h, patches, patches)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # (W, h, patches, patches)
        relays = tokens - patches
        return F.pad(bias, (0, relays, 0, relays)).to(dtype)

    def train(self, mode: bool = True) -> CosineAttention:
        """Switch mode, and forget the kept bias."""
        self._kept = None
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> CosineAttention:
        self._kept = None  # .to(), .half() and the like move weights without a new version
        super()._apply(fn, recurse)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies and pickles start without


def _same_key(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(x is y if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))


def _mlp_in_float32(mlp: torch.nn.Sequential, x: Tensor) -> Tensor:
    """timm's two-layer ``cpb_mlp`` in float32: bfloat16 would round a bias of 16 to steps of 1/8."""
    hidden = F.relu(F.linear(x.float(), mlp[0].weight.float(), mlp[0].bias.float()))
    return F.linear(hidden, mlp[2].weight.float())
