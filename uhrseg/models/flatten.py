"""Flatten-Swin: Swin whose first stages attend to the whole map at linear cost, and relays through it.

Han et al. 2023 (ICCV), section 4: focused linear attention. In these stages relays attend with all patches at once; in
the others they join every window and are averaged (Perron et al. 2026, section 3.1).
Shapes: B batch, H and W of the map, N = HW + R tokens, R relays, C channels, h heads, d = C / h.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates, trunc_normal_
from torch import Tensor, nn

from uhrseg.models.glam import GlamBlock
from uhrseg.models.pyramid import PreNormBlock, PyramidStage, PyramidTrunk, StageTokens, Updates, check_stages
from uhrseg.models.relay import Want
from uhrseg.models.window_attention import no_autocast, split_heads

__all__ = ["FlattenTrunk", "FocusedLinearAttention", "LinearBlock"]

_FOCUS = 3  # Han et al., section 5: the power p of Eq. 5
_KERNEL = 5  # side of the depthwise convolution
_TINY = 1e-6


class FocusedLinearAttention(nn.Module):
    """Attention with kernel features in place of softmax: q (k^T v), and a depthwise convolution of v (Eq. 5-9).

    ``side``: of the map, which has a learned vector per place on the keys. ``positional`` False leaves it out, as the
    relay paper's code does.
    """

    def __init__(self, dim: int, side: int, heads: int, positional: bool) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.dwc = nn.Conv2d(dim // heads, dim // heads, _KERNEL, padding=_KERNEL // 2, groups=dim // heads)
        self.scale = nn.Parameter(torch.zeros(1, 1, dim))
        self.positional_encoding = nn.Parameter(torch.empty(1, side * side, dim)) if positional else None
        if self.positional_encoding is not None:
            trunc_normal_(self.positional_encoding, std=0.02)

    def forward(self, x: Tensor, height: int, width: int) -> Tensor:
        """x (B, N, C), patches first, then relays -> the same shape."""
        patches, qkv = height * width, self.qkv(x)
        with no_autocast(x.device):  # third powers and their sums over thousands of tokens want float32
            q, k, v = self._features(qkv.float(), patches)  # (B, h, N, d)
            context = k.transpose(-2, -1) @ v / x.shape[1]  # (B, h, d, d)
            # Not a matrix product: with one column, torch's rounds differently for different batches.
            share = (q * k.mean(-2, keepdim=True)).sum(-1, keepdim=True)  # (B, h, N, 1)
            y = (q @ context / (share + _TINY)).to(x.dtype)
        y = y + F.pad(self._convolve(v[:, :, :patches].to(x.dtype), height, width), (0, 0, 0, x.shape[1] - patches))
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out

    def weights(self, x: Tensor, patches: int) -> Tensor:
        """What the relays after the patches give each token's value, from x (B, N, C): (B, h, R, N), rows of sum 1."""
        q, k, _ = self._features(self.qkv(x).float(), patches)
        shares = q[:, :, patches:] @ k.transpose(-2, -1)
        return shares / shares.sum(-1, keepdim=True)

    def _features(self, qkv: Tensor, patches: int) -> tuple[Tensor, Tensor, Tensor]:
        (q, k, v), count = qkv.chunk(3, -1), qkv.shape[1]
        if self.positional_encoding is not None:
            k = k + F.pad(self.positional_encoding.float(), (0, 0, 0, count - patches))
        scale = F.softplus(self.scale.float())
        parts = torch.cat((_focused(q, scale), _focused(k, scale), v), -1)
        q, k, v = split_heads(parts, 3, count, self.heads)
        return q, k, v

    def _convolve(self, v: Tensor, height: int, width: int) -> Tensor:
        """v (B, h, HW, d) -> the same.

        On CPU one sample at a time, since torch chooses the algorithm by the batch; but a loop over samples would fix
        the batch of an exported network.
        """
        maps = v.transpose(-2, -1).unflatten(-1, (height, width))  # (B, h, d, H, W)
        if self.training or v.device.type != "cpu" or torch.compiler.is_exporting():
            return self.dwc(maps.flatten(0, 1)).view(maps.shape).flatten(-2).transpose(-2, -1)
        return torch.stack([self.dwc(sample) for sample in maps]).flatten(-2).transpose(-2, -1)


def _focused(x: Tensor, scale: Tensor) -> Tensor:
    """Eq. 5: the third power of the positive part, with the length it had before."""
    x = (F.relu(x) + _TINY) / scale
    powered = x**_FOCUS
    return powered * (x.norm(dim=-1, keepdim=True) / powered.norm(dim=-1, keepdim=True))


class LinearBlock(PreNormBlock):
    """Swin's block with focused linear attention over the whole map and the relays."""

    def __init__(self, dim: int, heads: int, side: int, drop_path: float, positional: bool) -> None:
        super().__init__(dim, drop_path)
        self.attn = FocusedLinearAttention(dim, side, heads, positional)

    def attend(self, tokens: StageTokens, relays: Tensor | None, want: Want) -> Updates:
        """Attention over [patches, relays]."""
        (height, width), pixels = tokens.pixels.shape[1:3], tokens.pixels.flatten(1, 2)
        x = pixels if relays is None else torch.cat((pixels, relays), 1)
        y = self.attn(self.norm1(x), height, width)
        patches = height * width
        return Updates(
            None if want == "relays" else y[:, :patches],
            None if relays is None or want == "tokens" else y[:, patches:],
        )


class FlattenTrunk(PyramidTrunk):
    """Flatten-Swin: the first half of the stages linear ('LLSS'), the others with windows of ``window`` tokens.

    ``faithful``: as in the relay paper's code, which leaves the keys' positions out. Raises `InputError` for sizes
    that do not divide.
    """

    def __init__(
        self,
        bands: int,
        size: int,
        relays: int,
        separate_projector: bool,
        embed_dim: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 8,
        patch_size: int = 4,
        drop_path: float = 0.1,
        faithful: bool = False,
    ) -> None:
        check_stages(size, embed_dim, depths, heads, patch_size)
        drop = cast(list[list[float]], calculate_drop_path_rates(drop_path, list(depths), stagewise=True))
        stages = []
        for i in range(len(depths)):
            dim, side = embed_dim * 2**i, size // (patch_size * 2**i)
            blocks: list[PreNormBlock]
            if i < len(depths) // 2:
                blocks = [LinearBlock(dim, heads[i], side, rate, not faithful) for rate in drop[i]]
            else:
                blocks = _window_blocks(dim, heads[i], min(window, side), side, drop[i])
            stages.append(PyramidStage(dim, window, blocks, i > 0, relays > 0, relay_bias=True))
        super().__init__(bands, size, relays, separate_projector, stages, embed_dim, patch_size)


def _window_blocks(dim: int, heads: int, window: int, side: int, drop: Sequence[float]) -> list[PreNormBlock]:
    """Swin's blocks; a single window is not shifted."""
    return [
        GlamBlock(dim, heads, window, b % 2 == 1 and side > window, rate, exchange=False) for b, rate in enumerate(drop)
    ]
