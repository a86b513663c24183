"""Segmentation heads: feature maps of a trunk -> logits at input size. Both scales go through the same head.

Shapes: B batch, C channels, H and W of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhrseg.errors import InputError

__all__ = ["LinearHead", "UperHead"]

_POOLS = (1, 2, 3, 6)  # Xiao et al. 2018 (UPerNet), pyramid pooling of Zhao et al. 2017


class LinearHead(nn.ConvTranspose2d):
    """One linear map from a token of the last stage to its square of pixels (the paper's head).

    A transposed convolution with kernel = stride = the last stride: 16 for ViT, 32 for Swin.
    """

    last_only = True

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int) -> None:
        super().__init__(channels[-1], classes, strides[-1], strides[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:  # type: ignore[override]
        """The last map (B, C, H, W) -> logits (B, classes, H * stride, W * stride)."""
        return super().forward(maps[-1])


class UperHead(nn.Module):
    """UPerNet (Xiao et al. 2018) over all stages, with an output that can place objects smaller than a token.

    Pyramid pooling on the coarsest map, a top-down feature pyramid, fusion at the finest stride, then one transposed
    convolution whose kernel is that stride: each pixel has weights of its own, where bilinear upsampling of logits
    would blur what is narrower than a token, and the 3x3 convolutions before it overlap tokens, so squares do not show.
    Normalisation is LayerNorm over the channels of each place: it is the same in training and use, needs no large
    batch, works on a pooled map of one cell, and does not mix the statistics of the two scales, as BatchNorm's running
    means would.
    """

    last_only = False

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, head_channels: int = 128) -> None:
        super().__init__()
        if len(channels) < 2:
            raise InputError("head = 'upernet' needs a trunk with several stages (SwinV2): use head = 'linear'")
        mid = head_channels
        self.pools = nn.ModuleList(_conv(channels[-1], mid, 1) for _ in _POOLS)
        self.bottleneck = _conv(channels[-1] + len(_POOLS) * mid, mid, 3)
        self.laterals = nn.ModuleList(_conv(c, mid, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(_conv(mid, mid, 3) for _ in channels[:-1])
        self.fuse = _conv(len(channels) * mid, mid, 3)
        self.classify = nn.ConvTranspose2d(mid, classes, strides[0], strides[0])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first -> logits (B, classes, H_0 * stride_0, W_0 * stride_0)."""
        levels = [lateral(m) for lateral, m in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self._pyramid_pool(maps[-1]))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + _resize(levels[i + 1], levels[i])
        smoothed = [conv(x) for conv, x in zip(self.smooth, levels[:-1], strict=True)] + [levels[-1]]
        fused = self.fuse(torch.cat([_resize(x, smoothed[0]) for x in smoothed], 1))
        logits: Tensor = self.classify(fused)
        return logits

    def _pyramid_pool(self, x: Tensor) -> Tensor:
        pooled = [_resize(conv(F.adaptive_avg_pool2d(x, n)), x) for n, conv in zip(_POOLS, self.pools, strict=True)]
        out: Tensor = self.bottleneck(torch.cat([x, *pooled], 1))
        return out


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, _ChannelNorm(outputs), nn.GELU())


class _ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
