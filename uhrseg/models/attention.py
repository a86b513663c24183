"""Where relay tokens look: their attention over the patches of each window (Perron et al., Fig. 8).

The weights are computed again from what enters each block; the network itself runs as ever. Shapes: B batch, R relays,
N patches, h heads, n windows, H and W of the token map.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.layers import Attention
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.bias_attention import reverse
from uhrseg.models.flatten import LinearBlock
from uhrseg.models.glam import GlamBlock, PublishedGlamBlock
from uhrseg.models.pyramid import StageTokens
from uhrseg.models.relay import CONTEXT, LOCAL, Block, Scale, Stage, Trunk, Want, one_scale, two_scales
from uhrseg.models.segmenter import Segmenter
from uhrseg.models.swin import SwinBlock, SwinTrunk
from uhrseg.models.vit import VitTrunk, is_plain
from uhrseg.models.window_attention import CosineAttention, cosine_weights

__all__ = ["check_drawable", "glam_weights", "linear_weights", "relay_attention", "swin_weights", "vit_weights"]


def relay_attention(model: nn.Module, local: Tensor, context: Tensor | None = None) -> dict[Scale, Tensor]:
    """Attention of each relay over the patches of the local window and, with relays, of the context window.

    Inputs (B, bands, size, size), scaled, as the model takes them. Result per scale: (B, R, H, W) on the finest token
    map, the mean over heads and over the blocks in which the relays are updated, in multiples of an even share of what
    goes to patches (mean 1). Raises `InputError` as `check_drawable` does, and for ViTs whose blocks are not plain.
    """
    segmenter = check_drawable(model)
    watched = _Watched(cast(Trunk, segmenter.trunk))
    with torch.inference_mode():
        if segmenter.strategy == "registers":
            one_scale(watched, local)
        else:
            assert context is not None
            two_scales(watched, local, context, segmenter.order, True)
    return {scale: _average(maps) for scale, maps in watched.seen.items()}


def check_drawable(model: nn.Module) -> Segmenter:
    """The model as one whose relays' attention can be drawn.

    Raises `InputError` for one without tokens, and for GLAM as published, in which the relays' own attention is lost.
    """
    strategy = getattr(model, "strategy", None)
    if not isinstance(model, Segmenter) or strategy not in ("relays", "registers"):
        raise InputError(
            f"a model with strategy = {strategy!r} has no tokens whose attention could be drawn: take one with "
            "strategy = 'relays' or 'registers'"
        )
    if any(isinstance(block, PublishedGlamBlock) for block in model.modules()):
        raise InputError(
            "with faithful = true GLAM overwrites what its relays saw: attention maps need a model without it"
        )
    return model


def vit_weights(trunk: VitTrunk, block: Any, tokens: Tensor, relays: Tensor) -> Tensor:
    """Attention of the relays in one block: (B, h, R, R + prefix + N), rows of sum 1.

    Raises `InputError` for blocks other than timm's plain one, whose attention takes positions or gates.
    """
    if not is_plain(block):
        raise InputError("attention maps need timm's plain ViT block: this one rotates, gates or splits its attention")
    attn = cast(Attention, block.attn)
    x = block.norm1(torch.cat((relays, tokens), 1))  # (B, R + N, C)
    q, k, _ = attn.qkv(x).unflatten(2, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, h, R + N, d)
    q = attn.q_norm(q[:, :, : relays.shape[1]]) * attn.scale
    return cast(Tensor, (q @ attn.k_norm(k).transpose(-2, -1)).softmax(-1))


def swin_weights(block: SwinBlock, tokens: Tensor, relays: Tensor) -> Tensor:
    """Attention of the copies of the relays in their windows: (B, n, h, R, w*w + R), rows of sum 1.

    tokens (B, H, W, C), relays (B, R, C). The block gives the mean of the copies, so each counts for 1/n.
    """
    windows = block._partition(tokens)  # (B, n, w*w, C)
    weights = cosine_weights(cast(CosineAttention, block.attn), windows, relays)
    return weights.unflatten(0, windows.shape[:2])


def _vit_map(trunk: VitTrunk, block: Any, tokens: Tensor, relays: Tensor) -> Tensor:
    weights = vit_weights(trunk, block.block, tokens, relays)
    first = relays.shape[1] + trunk.body.num_prefix_tokens
    return weights[..., first:].mean(1).unflatten(2, trunk.body.patch_embed.grid_size)


def _swin_map(trunk: SwinTrunk, block: SwinBlock, tokens: Tensor, relays: Tensor) -> Tensor:
    weights = swin_weights(block, tokens, relays)[..., : block.window_area].mean(2)  # (B, n, R, w*w)
    flat = block._reverse(weights.transpose(2, 3), tokens[..., : relays.shape[1]])  # (B, HW, R)
    return flat.transpose(1, 2).unflatten(2, tokens.shape[1:3]) / weights.shape[1]


def glam_weights(block: GlamBlock, tokens: StageTokens, relays: Tensor) -> Tensor:
    """Attention of the copies of the relays in their windows: (B, n, h, R, g + R + w*w), rows of sum 1.

    Global tokens come first, then relays, then pixels. Relays take neither position bias nor mask.
    """
    x, first, last = block.sequence(tokens, relays)
    q, k, _ = block.attn._qkv(x, slice(first, last))  # (B*n, h, R | N, d)
    weights = (q * q.shape[-1] ** -0.5 @ k.transpose(-2, -1)).softmax(-1)
    return weights.unflatten(0, x.shape[:2])


def linear_weights(block: LinearBlock, tokens: StageTokens, relays: Tensor) -> Tensor:
    """Attention of the relays in a block of focused linear attention: (B, h, R, HW + R), rows of sum 1."""
    pixels = tokens.pixels.flatten(1, 2)
    return block.attn.weights(block.norm1(torch.cat((pixels, relays), 1)), pixels.shape[1])


def _glam_map(block: GlamBlock, tokens: StageTokens, relays: Tensor) -> Tensor:
    weights = glam_weights(block, tokens, relays)[..., -(block.window**2) :].mean(2)  # (B, n, R, w*w)
    height, width = tokens.pixels.shape[1:3]
    return reverse(weights.transpose(2, 3), height, width, block.window, block.shift).permute(0, 3, 1, 2)


def _linear_map(block: LinearBlock, tokens: StageTokens, relays: Tensor) -> Tensor:
    shape = tokens.pixels.shape[1:3]
    weights = linear_weights(block, tokens, relays)[..., : shape.numel()]
    return weights.mean(1).unflatten(2, shape)


@dataclass(frozen=True)
class _WatchedBlock:
    """A block that tells what enters it wherever its relays are updated."""

    block: Block
    record: Callable[[Block, Tensor, Tensor], None]

    def __call__(self, tokens: Tensor, relays: Tensor | None, want: Want = "both") -> tuple[Tensor, Tensor | None]:
        if relays is not None and want != "tokens":
            self.record(self.block, tokens, relays)
        return self.block(tokens, relays, want)


class _WatchedStage:
    def __init__(self, stage: Stage, watch: Callable[[Block, Scale], _WatchedBlock]) -> None:
        self.merge, self.project = stage.merge, stage.project
        self.blocks = [watch(block, LOCAL) for block in stage.blocks]
        self.context_blocks = [watch(b, CONTEXT) for b in getattr(stage, "context_blocks", None) or stage.blocks]


class _Watched:
    """A trunk whose blocks leave their relays' attention maps (B, R, H, W) in `seen`."""

    def __init__(self, trunk: Trunk) -> None:
        self.seen: dict[Scale, list[Tensor]] = defaultdict(list)
        self.embed, self.first_relays, self._trunk = trunk.embed, trunk.first_relays, trunk
        self.stages = [_WatchedStage(stage, self._watch) for stage in trunk.stages]

    def _watch(self, block: Block, scale: Scale) -> _WatchedBlock:
        def record(block: Any, tokens: Any, relays: Tensor) -> None:
            self.seen[scale].append(_map(self._trunk, block, tokens, relays))

        return _WatchedBlock(block, record)


def _map(trunk: Any, block: Any, tokens: Any, relays: Tensor) -> Tensor:
    """The attention of the relays (B, R, H, W) in a block, mean over heads."""
    if isinstance(block, GlamBlock):
        return _glam_map(block, tokens, relays)
    if isinstance(block, LinearBlock):
        return _linear_map(block, tokens, relays)
    return (_swin_map if isinstance(block, SwinBlock) else _vit_map)(trunk, block, tokens, relays)


def _average(maps: list[Tensor]) -> Tensor:
    """Mean over blocks, each as multiples of an even share, on the finest of their maps."""
    size = maps[0].shape[-2:]
    even = [m / m.mean((-2, -1), keepdim=True) for m in maps]
    mean = torch.stack([F.interpolate(m, size, mode="nearest") for m in even]).mean(0)
    return mean / mean.mean((-2, -1), keepdim=True)
