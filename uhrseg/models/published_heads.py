"""UPerNet as the two papers' code has it, with BatchNorm and bilinear upsampling; for their numbers and checkpoints.

`uhrseg.models.heads.UperHead` is the one to train with: its docstring says what it does better.
Shapes: B batch, C channels, H and W of a feature map, h and w of the finest one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhrseg.errors import InputError

__all__ = ["FcnHead", "UperMmsegHead", "UperRelayHead"]

_POOLS = (1, 2, 3, 6)  # Zhao et al. 2017 (PSPNet)
_DROPOUT = 0.1  # mmsegmentation's configurations


class _UperBatchHead(nn.Module):
    """Pyramid pooling on the last map, a top-down pyramid, fusion at the finest stride (Xiao et al. 2018)."""

    last_only = False
    align_corners: bool
    activation: Callable[[], nn.Module]
    conv_bias: bool
    bottleneck_padding: int

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, bands: int, head_channels: int = 512
    ) -> None:
        super().__init__()
        if len(channels) < 2:
            raise InputError("UPerNet needs a trunk with several stages (Swin, GLAM): use head = 'linear'")
        mid = head_channels
        self.pools = nn.ModuleList(self._conv(channels[-1], mid, 1) for _ in _POOLS)
        self.bottleneck = self._conv(channels[-1] + len(_POOLS) * mid, mid, 3, self.bottleneck_padding)
        self.laterals = nn.ModuleList(self._conv(c, mid, 1) for c in channels[:-1])
        self.smooth = nn.ModuleList(self._conv(mid, mid, 3, 1) for _ in channels[:-1])
        self.fuse = self._conv(len(channels) * mid, mid, 3, 1)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Maps (B, C_i, H_i, W_i), finest first, and the image (B, bands, H, W) -> logits (B, classes, H, W).

        Raises `InputError` when training on one sample: BatchNorm of a map pooled to one cell needs two.
        """
        if self.training and image.shape[0] == 1:
            raise InputError("this head normalises over the batch: train it with batch_size >= 2, or head = 'upernet'")
        levels = [lateral(m) for lateral, m in zip(self.laterals, maps[:-1], strict=True)]
        levels.append(self._pyramid_pool(maps[-1]))
        for i in reversed(range(len(levels) - 1)):
            levels[i] = levels[i] + self._resize(levels[i + 1], levels[i])
        smoothed = [conv(x) for conv, x in zip(self.smooth, levels[:-1], strict=True)] + [levels[-1]]
        fused = self.fuse(torch.cat([self._resize(x, smoothed[0]) for x in smoothed], 1))  # (B, mid, h, w)
        return self._logits(fused, image)

    def _pyramid_pool(self, x: Tensor) -> Tensor:
        pooled = [
            self._resize(conv(F.adaptive_avg_pool2d(x, n)), x) for n, conv in zip(_POOLS, self.pools, strict=True)
        ]
        return cast(Tensor, self.bottleneck(torch.cat([x, *pooled], 1)))

    def _logits(self, fused: Tensor, image: Tensor) -> Tensor:
        raise NotImplementedError

    def _resize(self, x: Tensor, like: Tensor) -> Tensor:
        if x.shape[-2:] == like.shape[-2:]:
            return x
        return F.interpolate(x, like.shape[-2:], mode="bilinear", align_corners=self.align_corners)

    def _conv(self, inputs: int, outputs: int, kernel: int, padding: int = 0) -> nn.Sequential:
        conv = nn.Conv2d(inputs, outputs, kernel, padding=padding, bias=self.conv_bias)
        return nn.Sequential(conv, nn.BatchNorm2d(outputs), type(self).activation())


class FcnHead(nn.Sequential):
    """mmsegmentation's auxiliary head: a map (B, C, H, W) -> logits (B, classes, H, W) (Shelhamer et al. 2017)."""

    def __init__(self, inputs: int, channels: int, classes: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels), nn.ReLU(),
            nn.Dropout2d(_DROPOUT), nn.Conv2d(channels, classes, 1),
        )  # fmt: skip


class UperMmsegHead(_UperBatchHead):
    """As in mmsegmentation, which the GLAM paper used: logits at the finest stride, enlarged to the image.

    ``auxiliary``: an `FcnHead` on the last map but one, half as wide as this head. It is run in training only, for a
    loss of its own.
    """

    align_corners = False
    activation = nn.ReLU
    conv_bias = False
    bottleneck_padding = 1

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        bands: int,
        head_channels: int = 512,
        auxiliary: bool = False,
    ) -> None:
        super().__init__(channels, strides, classes, bands, head_channels)
        # Before the classifier: `train.prior_bias` sets the last bias of the network.
        self.auxiliary = FcnHead(channels[-2], head_channels // 2, classes) if auxiliary else None
        self.dropout = nn.Dropout2d(_DROPOUT)
        self.classify = nn.Conv2d(head_channels, classes, 1)

    def _logits(self, fused: Tensor, image: Tensor) -> Tensor:
        return self._resize(self.classify(self.dropout(fused)), image)


class UperRelayHead(_UperBatchHead):
    """As in the relay paper's code for GLAM: features enlarged to the image, then a 3x3 convolution to classes.

    Its pooling bottleneck has no padding (8 x 8 tokens become 6 x 6), as published.
    """

    align_corners = True
    activation = nn.GELU
    conv_bias = True
    bottleneck_padding = 0

    def __init__(
        self, channels: Sequence[int], strides: Sequence[int], classes: int, bands: int, head_channels: int = 512
    ) -> None:
        super().__init__(channels, strides, classes, bands, head_channels)
        self.classify = nn.Conv2d(head_channels, classes, 3, padding=1)

    def _logits(self, fused: Tensor, image: Tensor) -> Tensor:
        logits: Tensor = self.classify(self._resize(fused, image))
        return logits
