"""Pyramids of pre-norm blocks over maps of patch tokens: what Swin, GLAM and Flatten-Swin have in common.

Relays (Perron et al. 2026, section 3.1) take the residual, the norms and the MLP together with the patches; how they
attend is each block's own. Shapes: B batch, H and W of the map, C channels, R relays, n windows, g global tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from timm.layers import DropPath, Mlp, PatchEmbed, trunc_normal_
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.relay import CONTEXT, Scale, Want

__all__ = [
    "PatchExpansion",
    "PreNormBlock",
    "PyramidStage",
    "PyramidTrunk",
    "StageTokens",
    "Updates",
    "check_stages",
    "start_small",
]


class StageTokens(NamedTuple):
    """Patch tokens of one scale: a map of pixels, and what belongs to the stage it is in."""

    pixels: Tensor  # (B, H, W, C)
    tokens: Tensor | None = None  # (B, n, g, C)
    position: Tensor | None = None  # (n * g, C), of the tokens
    entered: Tensor | None = None  # (B, H, W, C): the pixels as they came into the stage


class Updates(NamedTuple):
    """What attention adds; None for what nobody will read."""

    pixels: Tensor | None = None  # (B, HW, C)
    relays: Tensor | None = None  # (B, R, C)
    tokens: Tensor | None = None  # (B, n, g, C)


class PreNormBlock(nn.Module):
    """x + attention(norm(x)), then x + MLP(norm(x)), over patches and relays; `attend` is the subclass's."""

    def __init__(self, dim: int, drop_path: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)

    def forward(
        self, tokens: StageTokens, relays: Tensor | None, want: Want = "both"
    ) -> tuple[StageTokens, Tensor | None]:
        """Update pixels, global tokens and relays (B, R, C); what ``want`` leaves out comes back as it was."""
        shape, updates = tokens.pixels.shape, self.attend(tokens, relays, "both" if relays is None else want)
        pairs = ((relays, updates.relays), (tokens.pixels.flatten(1, 2), updates.pixels))
        x = torch.cat([cast(Tensor, old) for old, update in pairs if update is not None], 1)
        x = x + self.drop_path(torch.cat([update for _, update in pairs if update is not None], 1))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        count = 0 if updates.relays is None else updates.relays.shape[1]
        relays = x[:, :count].contiguous() if count else relays
        if updates.pixels is None:
            return tokens, relays
        return tokens._replace(pixels=x[:, count:].reshape(shape), tokens=self.exchange(tokens, updates)), relays

    def attend(self, tokens: StageTokens, relays: Tensor | None, want: Want) -> Updates:
        """Attention among patches, relays and global tokens."""
        raise NotImplementedError

    def exchange(self, tokens: StageTokens, updates: Updates) -> Tensor | None:
        """The global tokens (B, n, g, C) for the next block."""
        return tokens.tokens


class PyramidStage(nn.Module):
    """Blocks of one resolution with their global tokens; merging and the relays' projection lead in, if any."""

    def __init__(
        self, dim: int, window: int, blocks: Sequence[PreNormBlock], merging: bool, relays: bool, relay_bias: bool
    ) -> None:
        super().__init__()
        self.window = window
        self.downsample = PatchMerging(dim // 2) if merging else nn.Identity()
        self.relay_projection = nn.Linear(dim // 2, dim, relay_bias) if relays and merging else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.global_token: nn.Parameter | None = None
        self.position: nn.Module | None = None
        self.apply(start_small)

    def merge(self, tokens: StageTokens) -> StageTokens:
        """Pixels of the previous stage -> pixels of this one with fresh global tokens."""
        return self.enter(self.downsample(tokens.pixels))

    def enter(self, pixels: Tensor) -> StageTokens:
        """A map (B, H, W, C) with the stage's global tokens, the same in every window."""
        if self.global_token is None:
            return StageTokens(pixels, entered=pixels)
        rows, cols = (-(-side // self.window) for side in pixels.shape[1:3])
        tokens = self.global_token.expand(pixels.shape[0], rows * cols, -1, -1)
        position = None if self.position is None else self.position(rows, cols)
        return StageTokens(pixels, tokens, position, pixels)

    def project(self, relays: Tensor) -> Tensor:
        """(B, R, C/2) -> (B, R, C); unchanged without merging."""
        out: Tensor = self.relay_projection(relays)
        return out


class PatchExpansion(nn.Module):
    """Each token becomes ``factor`` x ``factor`` tokens of another width (Cao et al. 2022, Swin-UNet)."""

    def __init__(self, inputs: int, outputs: int, factor: int) -> None:
        super().__init__()
        self.factor = factor
        self.expand = nn.Linear(inputs, factor * factor * outputs, bias=False)
        self.norm = nn.LayerNorm(outputs)
        self.apply(start_small)

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, inputs) -> (B, factor * H, factor * W, outputs)."""
        x = self.expand(x).unflatten(-1, (self.factor, self.factor, -1))  # (B, H, W, f, f, outputs)
        out: Tensor = self.norm(x.transpose(2, 3).flatten(3, 4).flatten(1, 2))
        return out


class PyramidTrunk(nn.Module):
    """Stages over square images of ``size`` pixels, and a norm for each stage's map.

    ``relays``: number of relay tokens (0: none), drawn from a standard normal. ``separate_projector``: the context
    scale has a patch embedding of its own, a copy at the start.
    """

    def __init__(
        self,
        bands: int,
        size: int,
        relays: int,
        separate_projector: bool,
        stages: Sequence[PyramidStage],
        embed_dim: int,
        patch_size: int,
    ) -> None:
        super().__init__()
        self.size = size
        self.channels = [embed_dim * 2**i for i in range(len(stages))]
        self.strides = [patch_size * 2**i for i in range(len(stages))]
        self.patch_embed = PatchEmbed(
            size, patch_size, bands, embed_dim, nn.LayerNorm, output_fmt="NHWC", strict_img_size=False,
            dynamic_img_pad=True,
        )  # fmt: skip
        self.layers = nn.ModuleList(stages)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.channels)
        self.relays = nn.Parameter(torch.randn(1, relays, embed_dim)) if relays else None
        self.context_embed = copy.deepcopy(self.patch_embed) if separate_projector else None

    @property
    def stages(self) -> nn.ModuleList:
        """The `PyramidStage`s, finest first."""
        return self.layers

    def embed(self, image: Tensor, scale: Scale) -> StageTokens:
        """(B, bands, size, size) -> pixels (B, H, W, C)."""
        projector = self.context_embed if scale == CONTEXT and self.context_embed is not None else self.patch_embed
        return StageTokens(projector(image))

    def first_relays(self, batch: int) -> Tensor | None:
        """(batch, R, C), or None."""
        return None if self.relays is None else self.relays.expand(batch, -1, -1)

    def maps(self, tokens: Sequence[StageTokens], last_only: bool) -> list[Tensor]:
        """Tokens after each stage -> feature maps (B, C, H, W), each through a norm of its own."""
        first = len(tokens) - 1 if last_only else 0
        pairs = list(zip(self.norms, tokens, strict=True))[first:]
        return [norm(x.pixels).permute(0, 3, 1, 2) for norm, x in pairs]

    def skips(self, tokens: Sequence[StageTokens]) -> list[Tensor]:
        """For a U-Net: the map that entered each stage but the last, then the last stage's, normed (B, C, H, W)."""
        entered = [cast(Tensor, x.entered) for x in tokens[:-1]]
        return [x.permute(0, 3, 1, 2) for x in (*entered, self.norms[-1](tokens[-1].pixels))]

    def drop_lower_norms(self) -> None:
        """Keep the last norm only, for heads that read no other map normed."""
        for i in range(len(self.norms) - 1):
            self.norms[i] = nn.Identity()


def check_stages(size: int, embed_dim: int, depths: Sequence[int], heads: Sequence[int], patch_size: int) -> None:
    """Refuse shapes that do not divide, each with the rule."""
    last = patch_size * 2 ** (len(depths) - 1)
    if size % last:
        raise InputError(f"size = {size} does not fit a trunk with last stride {last}: give a multiple of {last}")
    if len(heads) != len(depths):
        raise InputError(f"heads has {len(heads)} numbers and depths {len(depths)}: give one of each per stage")
    for i, count in enumerate(heads):
        if embed_dim * 2**i % count:
            raise InputError(f"heads[{i}] = {count} does not divide the {embed_dim * 2**i} channels of its stage")


def start_small(module: nn.Module) -> None:
    """Swin's start: small linear weights, zero biases."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
