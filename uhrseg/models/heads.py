"""Segmentation heads: feature maps of a trunk -> logits at input size. Both scales go through the same head.

Shapes: B batch, C channels, H and W of a feature map.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhrseg.errors import InputError

__all__ = ["BilinearHead", "ChannelNorm", "LinearHead", "UperHead"]

_POOLS = (1, 2, 3, 6)  # Xiao et al. 2018 (UPerNet), pyramid pooling of Zhao et al. 2017


class LinearHead(nn.ConvTranspose2d):
    """One linear map from a token of the last stage to its square of pixels (the paper's head).

    A transposed convolution with kernel = stride = the last stride: 16 for ViT, 32 for Swin.
    """

    last_only = True
    convolves = False

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, bands: int) -> None:
        super().__init__(channels[-1], classes, strides[-1], strides[-1])

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:  # type: ignore[override]
        """The last map (B, C, H, W) -> logits (B, classes, H * stride, W * stride); the image is not looked at."""
        x = maps[-1]
        # As matrix products: torch's transposed convolution took about a quarter of SwinV2-S's forward in bf16 on CPU.
        tokens = x.permute(0, 2, 3, 1).flatten(1, 2)  # (B, HW, C)
        weight = self.weight.to(tokens.dtype)  # cast once; autocast would do it for each product
        apart = not (self.training or torch.is_grad_enabled() or torch.compiler.is_compiling())
        product = self._by_class if apart and x.device.type == "cpu" else self._at_once
        return product(tokens, weight, x.shape[2], x.shape[3])

    def _at_once(self, tokens: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
        """tokens (B, H * W, C), weight (C, classes, side, side) -> (B, classes, H * side, W * side)."""
        side = self.stride[0]
        y = tokens @ weight.flatten(1)  # (B, HW, classes * side * side)
        if self.bias is not None:
            y = y + self.bias.repeat_interleave(side * side)
        y = y.unflatten(1, (height, width)).unflatten(3, (-1, side, side))  # (B, H, W, classes, side, side)
        return y.permute(0, 3, 1, 4, 2, 5).flatten(4, 5).flatten(2, 3)

    def _by_class(self, tokens: Tensor, weight: Tensor, height: int, width: int) -> Tensor:
        """The same without gradients, one product per class and sample.

        Per sample, because one product for all chooses its steps by their number, and rounds otherwise; per class,
        because a class's weights stay in the cache meanwhile and logits are written once, in their place.
        """
        side, dtype = self.stride[0], torch.promote_types(tokens.dtype, self.weight.dtype)
        logits = tokens.new_empty(tokens.shape[0], weight.shape[1], height, side, width, side, dtype=dtype)
        for k in range(weight.shape[1]):
            square = weight[:, k].flatten(1)  # (C, side * side)
            for out, sample in zip(logits[:, k], tokens, strict=True):
                out.copy_((sample @ square).view(height, width, side, side).transpose(1, 2))
                if self.bias is not None:
                    out += self.bias[k]
        return logits.flatten(4, 5).flatten(2, 3)


class BilinearHead(nn.Conv2d):
    """Logits at the stride of the last map, enlarged bilinearly: the end of DeepLabv3."""

    last_only = True

    def __init__(self, channels: Sequence[int], strides: Sequence[int], classes: int, bands: int) -> None:
        super().__init__(channels[-1], classes, 1)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:  # type: ignore[override]
        """The last map (B, C, H, W) and the image (B, bands, Y, X) -> logits (B, classes, Y, X)."""
        return F.interpolate(super().forward(maps[-1]), image.shape[-2:], mode="bilinear", align_corners=False)


class UperHead(nn.Module):
    """UPerNet (Xiao et al. 2018) over all stages, with an output that can place objects smaller than a token.

    Pyramid pooling on the coarsest map, a top-down feature pyramid, fusion at the finest stride, then one transposed
    convolution whose kernel is that stride: each pixel has weights of its own, where bilinear upsampling of logits
    would blur what is narrower than a token, and the 3x3 convolutions before it overlap tokens, so squares do not show.
    Normalisation is LayerNorm over the channels of each place: it is the same in training and use, needs no large
    batch, works on a pooled map of one cell, and does not mix the statistics of the two scales, as BatchNorm's running
    means would.

    ``detail_channels`` (0: none) adds the skip that a U-Net has at full resolution (Ronneberger et al. 2015): two 3x3
    convolutions on the image, joined before the last one. From random weights a transformer is slow to find edges
    inside its patches.
    """

    last_only = False

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        bands: int,
        head_channels: int = 128,
        detail_channels: int = 0,
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise InputError("head = 'upernet' needs a trunk with several stages (SwinV2): use head = 'linear'")
        mid = head_channels
        self.pools = nn.ModuleList(_conv(channels[-1], mid, 1) for _ in _POOLS)
        self.bottleneck = _conv(channels[-1] + len(_POOLS) * mid, mid, 3)
        self.laterals = nn.ModuleList(_conv(c, mid, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(_conv(mid, mid, 3) for _ in channels[:-1])
        self.fuse = _conv(len(channels) * mid, mid, 3)
        self.classify = nn.ConvTranspose2d(mid, detail_channels or classes, strides[0], strides[0])
        self.detail = _Detail(bands, detail_channels, classes) if detail_channels else None

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, and the image (B, bands, H, W) -> logits (B, classes, H, W)."""
        levels = [lateral(m) for lateral, m in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self._pyramid_pool(maps[-1]))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + _resize(levels[i + 1], levels[i])
        smoothed = [conv(x) for conv, x in zip(self.smooth, levels[:-1], strict=True)] + [levels[-1]]
        fused = self.fuse(torch.cat([_resize(x, smoothed[0]) for x in smoothed], 1))
        fine: Tensor = self.classify(fused)
        return fine if self.detail is None else cast(Tensor, self.detail(fine, image))

    def _pyramid_pool(self, x: Tensor) -> Tensor:
        pooled = [_resize(conv(F.adaptive_avg_pool2d(x, n)), x) for n, conv in zip(_POOLS, self.pools, strict=True)]
        out: Tensor = self.bottleneck(torch.cat([x, *pooled], 1))
        return out


class _Detail(nn.Module):
    """Full-resolution skip: features (B, D, H, W) and the image (B, bands, H, W) -> logits (B, classes, H, W)."""

    def __init__(self, bands: int, channels: int, classes: int) -> None:
        super().__init__()
        self.edges = nn.Sequential(_conv(bands, channels, 3), nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.norm = ChannelNorm(channels)
        self.classify = nn.Conv2d(channels, classes, 3, padding=1)

    def forward(self, features: Tensor, image: Tensor) -> Tensor:
        # Channels last: the norm runs over channels, and at full resolution each change of layout is felt.
        image = image.contiguous(memory_format=torch.channels_last)
        features = features.contiguous(memory_format=torch.channels_last)
        logits: Tensor = self.classify(F.gelu(self.norm(features + self.edges(image))))
        return logits


def _conv(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False)
    return nn.Sequential(conv, ChannelNorm(outputs), nn.GELU())


class ChannelNorm(nn.LayerNorm):
    """LayerNorm over the channels of a map (B, C, H, W)."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W), normalised."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def _resize(x: Tensor, like: Tensor) -> Tensor:
    if x.shape[-2:] == like.shape[-2:]:
        return x
    return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=False)
