"""Swin-UNet decoders: the encoder's stages mirrored, with patch expansion or non-local upsampling between them.

Themyr et al. 2023 (GLAM), sections 3.1 and 3.3, after Cao et al. 2022 (Swin-UNet). Each scale is decoded by itself.
Shapes: B batch, H and W of a map, c its width; h and w, 2c those of the map below, half as large.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.glam import check_tokens, glam_stages
from uhrseg.models.nlu import NonLocalUpsampling
from uhrseg.models.pyramid import PatchExpansion, PyramidStage

__all__ = ["NluUnetHead", "UnetHead"]


class _ExpandTo(PatchExpansion):
    """Patch expansion of the map below, cut to the skip's size."""

    def __init__(self, dim: int, heads: int, faithful: bool) -> None:
        super().__init__(2 * dim, dim, 2)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:  # type: ignore[override]
        """low (B, h, w, 2c), skip (B, H, W, c) -> (B, H, W, c)."""
        return super().forward(low)[:, : skip.shape[1], : skip.shape[2]]


class _Step(nn.Module):
    """One resolution of the decoder: upsample, join the skip, run the stage."""

    def __init__(self, dim: int, up: nn.Module, stage: PyramidStage) -> None:
        super().__init__()
        self.up, self.stage = up, stage
        self.merge = nn.Linear(2 * dim, dim)

    def forward(self, low: Tensor, skip: Tensor) -> Tensor:
        """low (B, h, w, 2c), skip (B, H, W, c) -> (B, H, W, c)."""
        tokens = self.stage.enter(self.merge(torch.cat((self.up(low, skip), skip), -1)))
        for block in self.stage.blocks:
            tokens, _ = block(tokens, None)
        out: Tensor = tokens.pixels
        return out


class UnetHead(nn.Module):
    """Decoder of GLAM-Swin-UNet (Swin-UNet with ``global_tokens`` 0), to logits at full resolution.

    Skips are the maps that enter the encoder's stages. Sizes, window, global tokens and their ``position`` are the
    encoder's; ``drop_path`` too. ``faithful``: published positions and, with NLU, published offsets.
    """

    last_only = True
    skips = True
    upsampling: Callable[[int, int, bool], nn.Module] = _ExpandTo

    def __init__(
        self,
        channels: Sequence[int],
        strides: Sequence[int],
        classes: int,
        bands: int,
        depths: Sequence[int] = (2, 2, 6, 2),
        heads: Sequence[int] = (3, 6, 12, 24),
        window: int = 7,
        global_tokens: int = 10,
        drop_path: float = 0.3,
        position: str = "coordinates",
        faithful: bool = False,
    ) -> None:
        super().__init__()
        if len(channels) < 2 or len(depths) != len(channels):
            raise InputError(
                f"a U-Net mirrors its trunk: give depths and heads for its {len(channels)} stages, 2 at least"
            )
        position = "table" if faithful else position
        check_tokens(channels[0], global_tokens, position)
        stages = glam_stages(
            channels[:-1], depths[:-1], heads[:-1], window, global_tokens, drop_path, position, faithful, False, False
        )
        make = type(self).upsampling
        steps = [_Step(c, make(c, h, faithful), s) for c, h, s in zip(channels, heads, stages, strict=False)]
        self.steps = nn.ModuleList(reversed(steps))
        self.norm = nn.LayerNorm(channels[0])
        self.expand = PatchExpansion(channels[0], channels[0], strides[0])
        self.classify = nn.Conv2d(channels[0], classes, 1, bias=False)
        trunc_normal_(self.classify.weight, std=0.02)

    def forward(self, maps: Sequence[Tensor], image: Tensor) -> Tensor:
        """Skips (B, c_i, H_i, W_i), finest first, the last stage's map at the end -> logits at the image's size."""
        x, *skips = (m.permute(0, 2, 3, 1) for m in reversed(maps))
        for step, skip in zip(self.steps, skips, strict=True):
            x = step(x, skip)
        fine = self.expand(self.norm(x)).permute(0, 3, 1, 2)
        return cast(Tensor, self.classify(fine[:, :, : image.shape[2], : image.shape[3]]))


class NluUnetHead(UnetHead):
    """`UnetHead` with non-local upsampling in every step."""

    upsampling = NonLocalUpsampling
