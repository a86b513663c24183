"""ViT trunk with relay tokens around a timm `VisionTransformer`, whose weights keep their own names.

Perron et al., section 3.1 and Algorithm 1. Shapes: B batch, N tokens of one scale (timm's class and register tokens
first, if the model has any, then patches), C channels, R relays.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import timm
import torch
import torch.nn.functional as F
from timm.layers import Attention, PatchDropout, trunc_normal_
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.relay import CONTEXT, Scale, Want, in_parts

__all__ = ["VitTrunk", "is_plain", "timm_vit", "vit"]

_NUMBERS_AT_ONCE = 2**19  # of patch tokens; measured on ViT-S: half of 8 samples at a time took 3 % less than all


class VitTrunk(nn.Module):
    """A timm ViT over one or two scales.

    ``relays``: number of relay tokens (0: none). They start at zero plus learned position rows drawn with standard
    deviation 0.02, as the authors' code does. ``separate_projector``: the context scale has a patch embedding and
    position table of its own, copies at the start; ``separate_blocks``: blocks of its own too.
    """

    def __init__(
        self, body: VisionTransformer, relays: int, separate_projector: bool, separate_blocks: bool = False
    ) -> None:
        super().__init__()
        stride = body.patch_embed.patch_size[0]
        self.body, self.size = body, cast(tuple[int, int], body.patch_embed.img_size)[0]
        self.channels, self.strides = [body.embed_dim], [stride]
        self.relays = nn.Parameter(torch.zeros(1, relays, body.embed_dim)) if relays else None
        self.relay_position = nn.Parameter(torch.empty(1, relays, body.embed_dim)) if relays else None
        if self.relay_position is not None:
            trunc_normal_(self.relay_position, std=0.02)
        self.context_embed = copy.deepcopy(body.patch_embed) if separate_projector else None
        self.context_blocks = copy.deepcopy(body.blocks) if separate_blocks else None
        table = body.pos_embed if separate_projector else None
        self.context_pos_embed = None if table is None else nn.Parameter(table.detach().clone())

    @property
    def stages(self) -> list[_VitStage]:
        """One stage of all blocks."""
        context = None if self.context_blocks is None else [_VitBlock(block) for block in self.context_blocks]
        return [_VitStage([_VitBlock(block) for block in self.body.blocks], context)]

    def embed(self, image: Tensor, scale: Scale) -> Tensor:
        """(B, bands, size, size) -> (B, N, C), positions added."""
        body, own = self.body, scale == CONTEXT and self.context_embed is not None
        x: Tensor = (self.context_embed if own else body.patch_embed)(image)  # type: ignore[misc]
        table = self.context_pos_embed if own else body.pos_embed
        prefix = [t.expand(x.shape[0], -1, -1) for t in (body.cls_token, body.reg_token) if t is not None]
        if table is not None and body.no_embed_class:  # the table has rows for patches only
            x, table = x + table, None
        x = torch.cat([*prefix, x], 1) if prefix else x
        x = body.pos_drop(x if table is None else x + table)
        out: Tensor = body.norm_pre(x)
        return out

    def first_relays(self, batch: int) -> Tensor | None:
        """(batch, R, C), or None."""
        if self.relays is None or self.relay_position is None:
            return None
        return (self.relays + self.relay_position).expand(batch, -1, -1)

    def maps(self, tokens: list[Tensor], last_only: bool) -> list[Tensor]:
        """Tokens -> one feature map (B, C, H, W); the final norm is the body's, if it has one."""
        body = self.body
        x = body.fc_norm(body.norm(tokens[-1]))[:, body.num_prefix_tokens :]
        return [x.transpose(1, 2).unflatten(2, body.patch_embed.grid_size)]


def vit(
    bands: int,
    size: int,
    relays: int,
    separate_projector: bool,
    embed_dim: int = 384,
    depth: int = 12,
    heads: int = 6,
    patch_size: int = 16,
    drop_path: float = 0.0,
    final_norm: bool = False,
    share_blocks: bool = True,
) -> VitTrunk:
    """A ViT without class token; ``share_blocks`` False: each scale has blocks of its own.

    ``final_norm`` is off because the authors' networks have none: timm moves the norm behind the pooling of a
    classifier, which a segmentation head never reaches, and the published weights were trained so.
    """
    _check(size, patch_size)
    if embed_dim % heads:
        raise InputError(f"heads = {heads} does not divide embed_dim = {embed_dim}")
    body = VisionTransformer(
        size,
        patch_size,
        bands,
        num_classes=0,
        global_pool="",
        class_token=False,
        embed_dim=embed_dim,
        depth=depth,
        num_heads=heads,
        drop_path_rate=drop_path,
        final_norm=final_norm,
    )
    return VitTrunk(body, relays, separate_projector, not share_blocks)


def timm_vit(
    name: str,
    bands: int,
    size: int,
    relays: int,
    separate_projector: bool,
    depth: int | None = None,
    drop_path: float = 0.0,
) -> VitTrunk:
    """Any timm model that is a plain `VisionTransformer`, with its class and register tokens and its final norm.

    ``depth``: keep only the first blocks. Raises `InputError` for other models: they place positions or tokens in
    ways that relays would silently break.
    """
    if not timm.is_model(name):
        raise InputError(f"timm has no model {name!r}: see timm.list_models('vit*')")
    patch_size = _patch_size(name)
    _check(size, patch_size)
    body = timm.create_model(
        name, in_chans=bands, img_size=size, num_classes=0, global_pool="", drop_path_rate=drop_path
    )
    if depth is not None:
        body.blocks = _first(cast(nn.Sequential, body.blocks), depth)
    return VitTrunk(cast(VisionTransformer, body), relays, separate_projector)


def _patch_size(name: str) -> int:
    """Patch size of a timm model, after checking on the meta device that relays can run through it."""
    with torch.device("meta"):
        body = timm.create_model(name, num_classes=0)
    if type(body) is not VisionTransformer:
        raise InputError(f"timm's {name!r} is a {type(body).__name__}: relays need a plain VisionTransformer")
    if isinstance(body.patch_drop, PatchDropout) or body.patch_embed.patch_size[0] != body.patch_embed.patch_size[1]:
        raise InputError(f"timm's {name!r} drops patches or has oblong ones: choose another VisionTransformer")
    return int(body.patch_embed.patch_size[0])


def _first(blocks: nn.Sequential, depth: int) -> nn.Sequential:
    if not 1 <= depth <= len(blocks):
        raise InputError(f"depth = {depth}: this ViT has 1 to {len(blocks)} blocks")
    return blocks[:depth]


def _check(size: int, patch_size: int) -> None:
    if size % patch_size:
        raise InputError(f"size = {size} does not fit a ViT with patches of {patch_size} px: give a multiple")


@dataclass(frozen=True)
class _VitStage:
    """A ViT has one resolution: nothing leads into its only stage."""

    blocks: list[_VitBlock]
    context_blocks: list[_VitBlock] | None = None

    def merge(self, tokens: Tensor) -> Tensor:
        return tokens

    def project(self, relays: Tensor) -> Tensor:
        return relays


@dataclass(frozen=True)
class _VitBlock:
    """A timm block over [relays, tokens]."""

    block: nn.Module

    def __call__(self, tokens: Tensor, relays: Tensor | None, want: Want = "both") -> tuple[Tensor, Tensor | None]:
        return in_parts(self._at_once, tokens, relays, want, _NUMBERS_AT_ONCE)

    def _at_once(self, tokens: Tensor, relays: Tensor | None, want: Want = "both") -> tuple[Tensor, Tensor | None]:
        if relays is None:
            return self.block(tokens), None
        count = relays.shape[1]
        x = torch.cat((relays, tokens), 1)  # (B, R + N, C)
        if want != "both" and is_plain(self.block):
            part = _rows(self.block, x, slice(0, count) if want == "relays" else slice(count, None))
            return (tokens, part) if want == "relays" else (part, relays)
        x = self.block(x)
        return x[:, count:], x[:, :count]


def is_plain(block: nn.Module) -> bool:
    """Whether a block is timm's plain one, which can be computed for some rows alone."""
    attn = getattr(block, "attn", None)
    return type(block) is Block and type(attn) is Attention and attn.gate is None


def _rows(module: nn.Module, x: Tensor, rows: slice) -> Tensor:
    """timm's pre-norm `Block` for some rows of its tokens (B, R + N, C); all of them are attended to."""
    block = cast(Block, module)
    y = x[:, rows]
    y = y + block.drop_path1(block.ls1(_attend_rows(cast(Attention, block.attn), block.norm1(x), rows)))
    y = y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))
    return y


def _attend_rows(attn: Attention, x: Tensor, rows: slice) -> Tensor:
    (weight, bias), dim = (attn.qkv.weight, attn.qkv.bias), attn.attn_dim
    q = F.linear(x[:, rows].contiguous(), weight[:dim], None if bias is None else bias[:dim]).unflatten(
        2, (1, attn.num_heads, -1)
    )
    kv = F.linear(x, weight[dim:], None if bias is None else bias[dim:]).unflatten(2, (2, attn.num_heads, -1))
    q, k, v = (t.transpose(1, 2) for t in (*q.unbind(2), *kv.unbind(2)))  # (B, heads, rows | R + N, d)
    drop = attn.attn_drop.p if attn.training else 0.0
    y = F.scaled_dot_product_attention(attn.q_norm(q), attn.k_norm(k), v, dropout_p=drop)
    out: Tensor = attn.proj_drop(attn.proj(attn.norm(y.transpose(1, 2).flatten(2))))
    return out
