"""SwinV2 trunk with relay tokens, built from timm's own modules so that timm's weights load by their own names.

Relays are copied to every window, attended there, averaged over the windows, then take the residual, the norms and
the MLP together with the patches (Perron et al., section 3.1, "Beyond ViTs").
Shapes: B batch, H and W of the token map, C channels, R relays, n windows, w window side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import PatchEmbed, calculate_drop_path_rates, trunc_normal_
from timm.models.swin_transformer_v2 import PatchMerging, SwinTransformerV2Block
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.relay import CONTEXT, Scale, Want, by_rows, in_parts
from uhrseg.models.window_attention import CosineAttention

__all__ = ["SwinTrunk"]

_NUMBERS_AT_ONCE = 3 * 2**18  # of patch tokens; measured on SwinV2-S: 2**19 took 2 % longer in bfloat16


class SwinBlock(SwinTransformerV2Block):
    """timm's SwinV2 block (shifted windows, residual post-norm) over patches and relays."""

    def __init__(self, dim: int, resolution: int, num_heads: int, window: int, shifted: bool, drop_path: float) -> None:
        shift = window // 2 if shifted else 0
        super().__init__(dim, (resolution, resolution), num_heads, window, shift, drop_path=drop_path)
        self.attn = CosineAttention(dim, self.window_size, num_heads)

    def forward(  # type: ignore[override]
        self, tokens: Tensor, relays: Tensor | None, want: Want = "both"
    ) -> tuple[Tensor, Tensor | None]:
        """tokens (B, H, W, C), relays (B, R, C) -> the same, updated; what ``want`` leaves out comes back as it was."""
        return in_parts(self._at_once, tokens, relays, want, _NUMBERS_AT_ONCE)

    def _at_once(self, tokens: Tensor, relays: Tensor | None, want: Want = "both") -> tuple[Tensor, Tensor | None]:
        old = _wanted(tokens.flatten(1, 2), relays, want)
        updates = [self.norm1(part) for part in self._attend(tokens, relays, want)]
        x = [part + update for part, update in zip(old, _dropped(self.drop_path1, updates), strict=True)]
        updates = [self.norm2(by_rows(self.mlp, part)) for part in x]
        x = [part + update for part, update in zip(x, _dropped(self.drop_path2, updates), strict=True)]
        if want == "relays":
            return tokens, x[0]
        return x[0].view(tokens.shape), x[1] if len(x) == 2 else relays

    def _attend(self, tokens: Tensor, relays: Tensor | None, want: Want) -> list[Tensor]:
        """Window attention of patches and relays -> (B, HW, C) and (B, R, C), or the one that ``want`` names."""
        windows = self._partition(tokens)  # (B, n, w*w, C)
        patches, mean = self.attn(windows, relays, self.attn_mask, want)
        return _wanted(None if patches is None else self._reverse(patches, tokens), mean, want)

    def _partition(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, n, w*w, C): rolled by the shift, zero-padded to whole windows as timm does."""
        wy, wx = self.window_size
        if any(self.shift_size):
            tokens = torch.roll(tokens, (-self.shift_size[0], -self.shift_size[1]), (1, 2))
        batch, height, width, dim = tokens.shape
        pad_y, pad_x = -height % wy, -width % wx
        if pad_y or pad_x:
            tokens = F.pad(tokens, (0, 0, 0, pad_x, 0, pad_y))
        grid = tokens.view(batch, (height + pad_y) // wy, wy, (width + pad_x) // wx, wx, dim)
        return grid.transpose(2, 3).reshape(batch, -1, wy * wx, dim)

    def _reverse(self, windows: Tensor, like: Tensor) -> Tensor:
        """(B, n, w*w, C) -> (B, HW, C): the inverse of `_partition`, flattened."""
        (wy, wx), (batch, height, width, dim) = self.window_size, like.shape
        rows, cols = -(-height // wy), -(-width // wx)
        grid = windows.reshape(batch, rows, cols, wy, wx, dim).transpose(2, 3)
        tokens = grid.reshape(batch, rows * wy, cols * wx, dim)[:, :height, :width]
        if any(self.shift_size):
            tokens = torch.roll(tokens, self.shift_size, (1, 2))
        return tokens.flatten(1, 2)


def _wanted(patches: Tensor | None, relays: Tensor | None, want: Want) -> list[Tensor]:
    """Those of the two that are there and that ``want`` names."""
    named = {"both": (patches, relays), "tokens": (patches,), "relays": (relays,)}[want]
    return [part for part in named if part is not None]


def _dropped(drop: nn.Module, parts: list[Tensor]) -> list[Tensor]:
    """Stochastic depth with one draw per sample for all parts (B, _, C); in eval mode they come back as they are."""
    if not drop.training or getattr(drop, "drop_prob", 0.0) == 0.0:
        return parts
    kept = drop(parts[0].new_ones(parts[0].shape[0], 1, 1))
    return [part * kept for part in parts]


class SwinStage(nn.Module):
    """Blocks of one resolution; from the second stage on, patch merging and the relays' projection lead in."""

    def __init__(self, dim: int, blocks: Sequence[SwinBlock], first: bool, relays: bool) -> None:
        super().__init__()
        self.downsample = nn.Identity() if first else PatchMerging(dim // 2, dim)
        self.relay_projection = nn.Linear(dim // 2, dim) if relays and not first else nn.Identity()
        self.blocks = nn.ModuleList(blocks)

    def merge(self, tokens: Tensor) -> Tensor:
        """(B, H, W, C/2) -> (B, H/2, W/2, C); unchanged in the first stage."""
        out: Tensor = self.downsample(tokens)
        return out

    def project(self, relays: Tensor) -> Tensor:
        """(B, R, C/2) -> (B, R, C); unchanged in the first stage."""
        out: Tensor = self.relay_projection(relays)
        return out


class SwinTrunk(nn.Module):
    """SwinV2 over square images of ``size`` pixels.

    ``relays``: number of relay tokens (0: none), drawn from a standard normal. ``separate_projector``: the context
    scale has a patch embedding of its own, a copy at the start. Raises `InputError` for sizes that do not divide.
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
    ) -> None:
        super().__init__()
        _check(size, embed_dim, depths, heads, patch_size)
        self.size, self.num_relays = size, relays
        self.channels = [embed_dim * 2**i for i in range(len(depths))]
        self.strides = [patch_size * 2**i for i in range(len(depths))]
        self.patch_embed = PatchEmbed(size, patch_size, bands, embed_dim, nn.LayerNorm, output_fmt="NHWC")
        drop = cast(list[list[float]], calculate_drop_path_rates(drop_path, list(depths), stagewise=True))
        self.layers = nn.ModuleList()
        for i, dim in enumerate(self.channels):
            side = size // self.strides[i]
            blocks = [SwinBlock(dim, side, heads[i], window, b % 2 == 1, drop[i][b]) for b in range(depths[i])]
            self.layers.append(SwinStage(dim, blocks, i == 0, relays > 0))
        self.norm = nn.LayerNorm(self.channels[-1])
        self.apply(_init)
        self.relays = nn.Parameter(torch.randn(1, relays, embed_dim)) if relays else None
        self.context_embed = copy.deepcopy(self.patch_embed) if separate_projector else None

    @property
    def stages(self) -> nn.ModuleList:
        """The `SwinStage`s, finest first."""
        return self.layers

    def embed(self, image: Tensor, scale: Scale) -> Tensor:
        """(B, bands, size, size) -> (B, H, W, C)."""
        projector = self.context_embed if scale == CONTEXT and self.context_embed is not None else self.patch_embed
        out: Tensor = projector(image)
        return out

    def first_relays(self, batch: int) -> Tensor | None:
        """(batch, R, C), or None."""
        return None if self.relays is None else self.relays.expand(batch, -1, -1)

    def maps(self, tokens: Sequence[Tensor], last_only: bool) -> list[Tensor]:
        """Tokens after each stage -> feature maps (B, C, H, W); the last one through the final norm, as in timm."""
        maps = [] if last_only else list(tokens[:-1])
        return [x.permute(0, 3, 1, 2) for x in (*maps, self.norm(tokens[-1]))]


def _init(module: nn.Module) -> None:
    """timm's SwinV2 start: small linear weights, and blocks that begin as the identity (zero post-norms)."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, SwinBlock):
        for norm in (cast(nn.LayerNorm, module.norm1), cast(nn.LayerNorm, module.norm2)):
            nn.init.zeros_(norm.weight)
            nn.init.zeros_(norm.bias)


def _check(size: int, embed_dim: int, depths: Sequence[int], heads: Sequence[int], patch_size: int) -> None:
    """Refuse shapes that do not divide, each with the rule."""
    last = patch_size * 2 ** (len(depths) - 1)
    if size % last:
        raise InputError(f"size = {size} does not fit a SwinV2 with last stride {last}: give a multiple of {last}")
    if len(heads) != len(depths):
        raise InputError(f"heads has {len(heads)} numbers and depths {len(depths)}: give one of each per stage")
    for i, count in enumerate(heads):
        dim = embed_dim * 2**i
        if dim % count:
            raise InputError(f"heads[{i}] = {count} does not divide the {dim} channels of its stage")
