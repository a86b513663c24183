"""GLAM: Swin with global tokens in every window, and relays through it.

Themyr et al. 2023 (WACV), section 3.2. In each block the tokens of a window attend with its pixels (W-MSA), then all
windows' tokens attend to each other (G-MSA) and carry what they learned into the next block's windows. Tokens live
inside one stage. Relays (Perron et al. 2026, section 3.1) join every window after the tokens and are averaged.
Shapes: B batch, H and W of the map, C channels, R relays, n windows, g global tokens per window, w window side.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp, PatchEmbed, calculate_drop_path_rates, trunc_normal_
from timm.models.swin_transformer import PatchMerging
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.bias_attention import BiasAttention, partition, reverse, shift_mask
from uhrseg.models.glam_position import POSITIONS
from uhrseg.models.relay import CONTEXT, Scale, Want
from uhrseg.models.window_attention import no_autocast, split_heads

__all__ = ["GlamStage", "GlamTokens", "GlamTrunk", "check_stages", "glam_stages"]


class GlamTokens(NamedTuple):
    """Patch tokens of one scale: a map of pixels, and what belongs to the stage it is in."""

    pixels: Tensor  # (B, H, W, C)
    tokens: Tensor | None = None  # (B, n, g, C)
    position: Tensor | None = None  # (n * g, C), of the tokens
    entered: Tensor | None = None  # (B, H, W, C): the pixels as they came into the stage


class GlobalAttention(nn.Module):
    """G-MSA: plain attention among the global tokens of all windows.

    There is neither bias nor mask, so torch's fused kernels apply and no N x N matrix is ever held.
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, n * g, C) -> the same shape."""
        q, k, v = split_heads(self.qkv(tokens), 3, tokens.shape[1], self.heads)  # (B, h, n * g, d)
        with no_autocast(tokens.device):
            y = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(y.transpose(1, 2).flatten(2))
        return out


class GlamBlock(nn.Module):
    """Swin's pre-norm block with global tokens, which take neither norm, residual nor MLP (as published).

    ``exchange``: whether G-MSA follows W-MSA. After the last block of a stage nothing reads its result.
    """

    def __init__(self, dim: int, heads: int, window: int, shifted: bool, drop_path: float, exchange: bool) -> None:
        super().__init__()
        self.window, self.shift = window, window // 2 if shifted else 0
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = BiasAttention(dim, window, heads)
        self.mlp = Mlp(dim, 4 * dim)
        self.drop_path = DropPath(drop_path)
        self.gt_attn = GlobalAttention(dim, heads) if exchange else None

    def forward(
        self, tokens: GlamTokens, relays: Tensor | None, want: Want = "both"
    ) -> tuple[GlamTokens, Tensor | None]:
        """Update pixels, global tokens and relays (B, R, C); what ``want`` leaves out comes back as it was."""
        pixels, shape = tokens.pixels.flatten(1, 2), tokens.pixels.shape  # (B, HW, C)
        updates = self._attend(tokens, relays, want)  # of global tokens, relays, pixels
        old = [x for x, update in zip((relays, pixels), updates[1:], strict=True) if update is not None]
        x = torch.cat([cast(Tensor, o) for o in old], 1)
        x = x + self.drop_path(torch.cat([u for u in updates[1:] if u is not None], 1))
        x = x + self.drop_path(self.mlp(self.norm2(x)))
        if want == "relays" and relays is not None:
            return tokens, x
        count = 0 if updates[1] is None else updates[1].shape[1]
        updated = tokens._replace(pixels=x[:, count:].reshape(shape), tokens=self._exchange(tokens, updates[0]))
        return updated, x[:, :count].contiguous() if count else relays

    def _attend(
        self, tokens: GlamTokens, relays: Tensor | None, want: Want
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """W-MSA over [global tokens, relays, pixels] of each window; None for what nobody will read."""
        windows = partition(self.norm1(tokens.pixels), self.window, self.shift)  # (B, n, w*w, C)
        parts = [] if tokens.tokens is None else [tokens.tokens.to(windows.dtype)]
        g = sum(p.shape[2] for p in parts)
        if relays is not None:
            parts.append(self.norm1(relays).unsqueeze(1).expand(-1, windows.shape[1], -1, -1))
        first = sum(p.shape[2] for p in parts)
        want = "both" if relays is None else want
        start = 0 if self.gt_attn is not None and want != "relays" else first if want == "tokens" else g
        rows = slice(start, first if want == "relays" else None)
        height, width = tokens.pixels.shape[1:3]
        mask = shift_mask(height, width, self.window, self.shift, windows.device)
        y = self.attn(torch.cat((*parts, windows), 2), first, mask, rows)  # (B, n, rows, C)
        mean = y[:, :, g - start : first - start].mean(1) if start <= g < first else None
        if want == "relays":
            return None, mean, None
        pixels = reverse(y[:, :, first - start :], height, width, self.window, self.shift).flatten(1, 2)
        return y[:, :, :g] if self.gt_attn is not None else None, mean if want == "both" else None, pixels

    def _exchange(self, tokens: GlamTokens, gathered: Tensor | None) -> Tensor | None:
        """G-MSA: what the windows' tokens gathered, (B, n, g, C), with their positions, among all windows."""
        if gathered is None or self.gt_attn is None:
            return tokens.tokens
        out: Tensor = self.gt_attn(gathered.flatten(1, 2) + cast(Tensor, tokens.position))
        return out.view(gathered.shape)


class PublishedGlamBlock(GlamBlock):
    """GLAM with relays as published (github.com/YohannPerron/RelayToken): slices are cut in the wrong order.

    The relays' own update is lost, and the last R pixels, bottom right, are handed on as relays.
    """

    def forward(
        self, tokens: GlamTokens, relays: Tensor | None, want: Want = "both"
    ) -> tuple[GlamTokens, Tensor | None]:
        """As `GlamBlock.forward`."""
        updated, _ = super().forward(tokens, relays, "tokens")
        if relays is None:
            return updated, None
        return updated, updated.pixels.flatten(1, 2)[:, -relays.shape[1] :]


class GlamStage(nn.Module):
    """Blocks of one resolution with their global tokens; merging and the relays' projection lead in, if any."""

    def __init__(self, dim: int, window: int, blocks: Sequence[GlamBlock], merging: bool, relays: bool) -> None:
        super().__init__()
        self.window = window
        self.downsample = PatchMerging(dim // 2) if merging else nn.Identity()
        self.relay_projection = nn.Linear(dim // 2, dim, bias=False) if relays and merging else nn.Identity()
        self.blocks = nn.ModuleList(blocks)
        self.global_token: nn.Parameter | None = None
        self.position: nn.Module | None = None

    def merge(self, tokens: GlamTokens) -> GlamTokens:
        """Pixels of the previous stage -> pixels of this one with fresh global tokens."""
        return self.enter(self.downsample(tokens.pixels))

    def enter(self, pixels: Tensor) -> GlamTokens:
        """A map (B, H, W, C) with the stage's global tokens, the same in every window."""
        if self.global_token is None:
            return GlamTokens(pixels, entered=pixels)
        rows, cols = (-(-side // self.window) for side in pixels.shape[1:3])
        tokens = self.global_token.expand(pixels.shape[0], rows * cols, -1, -1)
        position = None if self.position is None else self.position(rows, cols)
        return GlamTokens(pixels, tokens, position, pixels)

    def project(self, relays: Tensor) -> Tensor:
        """(B, R, C/2) -> (B, R, C); unchanged without merging."""
        out: Tensor = self.relay_projection(relays)
        return out


def glam_stages(
    channels: Sequence[int],
    depths: Sequence[int],
    heads: Sequence[int],
    window: int,
    global_tokens: int,
    drop_path: float,
    position: str,
    published: bool,
    merging: bool,
    relays: bool,
) -> list[GlamStage]:
    """The stages of an encoder (``merging``) or a decoder, finest first.

    ``position``: how global tokens know their window, a name in `POSITIONS`. ``published``: relays as published.
    """
    make = PublishedGlamBlock if published else GlamBlock
    drop = cast(list[list[float]], calculate_drop_path_rates(drop_path, list(depths), stagewise=True))
    stages = []
    for i, (dim, depth) in enumerate(zip(channels, depths, strict=True)):
        exchanges = [global_tokens > 0 and b + 1 < depth for b in range(depth)]
        blocks = [make(dim, heads[i], window, b % 2 == 1, drop[i][b], exchanges[b]) for b in range(depth)]
        stage = GlamStage(dim, window, blocks, merging and i > 0, relays)
        stage.apply(_init)
        if global_tokens:
            stage.global_token = nn.Parameter(torch.randn(global_tokens, dim))
            stage.position = POSITIONS[position](dim, global_tokens, i) if depth > 1 else None
        stages.append(stage)
    return stages


class GlamTrunk(nn.Module):
    """Swin with ``global_tokens`` per window (0: plain Swin) over square images of ``size`` pixels.

    ``relays``: number of relay tokens (0: none), drawn from a standard normal. ``separate_projector``: the context
    scale has a patch embedding of its own, a copy at the start. ``position``: 'coordinates' (of the window, whatever
    the size of the image) or 'table' (the published one, whose rows depend on it). ``faithful``: the published
    table and relays, mistakes included. Raises `InputError` for sizes that do not divide.
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
        window: int = 7,
        global_tokens: int = 10,
        patch_size: int = 4,
        drop_path: float = 0.3,
        position: str = "coordinates",
        faithful: bool = False,
    ) -> None:
        super().__init__()
        position = "table" if faithful else position
        check_stages(embed_dim, depths, heads, global_tokens, position)
        if size % (patch_size * 2 ** (len(depths) - 1)):
            last = patch_size * 2 ** (len(depths) - 1)
            raise InputError(f"size = {size} does not fit a trunk with last stride {last}: give a multiple of {last}")
        self.size = size
        self.channels = [embed_dim * 2**i for i in range(len(depths))]
        self.strides = [patch_size * 2**i for i in range(len(depths))]
        self.patch_embed = PatchEmbed(
            size, patch_size, bands, embed_dim, nn.LayerNorm, output_fmt="NHWC", strict_img_size=False,
            dynamic_img_pad=True,
        )  # fmt: skip
        self.layers = nn.ModuleList(
            glam_stages(
                self.channels, depths, heads, window, global_tokens, drop_path, position, faithful, True, relays > 0
            )
        )
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for dim in self.channels)
        self.relays = nn.Parameter(torch.randn(1, relays, embed_dim)) if relays else None
        self.context_embed = copy.deepcopy(self.patch_embed) if separate_projector else None

    @property
    def stages(self) -> nn.ModuleList:
        """The `GlamStage`s, finest first."""
        return self.layers

    def embed(self, image: Tensor, scale: Scale) -> GlamTokens:
        """(B, bands, size, size) -> pixels (B, H, W, C)."""
        projector = self.context_embed if scale == CONTEXT and self.context_embed is not None else self.patch_embed
        return GlamTokens(projector(image))

    def first_relays(self, batch: int) -> Tensor | None:
        """(batch, R, C), or None."""
        return None if self.relays is None else self.relays.expand(batch, -1, -1)

    def maps(self, tokens: Sequence[GlamTokens], last_only: bool) -> list[Tensor]:
        """Tokens after each stage -> feature maps (B, C, H, W), each through a norm of its own."""
        first = len(tokens) - 1 if last_only else 0
        pairs = list(zip(self.norms, tokens, strict=True))[first:]
        return [norm(x.pixels).permute(0, 3, 1, 2) for norm, x in pairs]

    def skips(self, tokens: Sequence[GlamTokens]) -> list[Tensor]:
        """For a U-Net: the map that entered each stage but the last, then the last stage's, normed (B, C, H, W)."""
        entered = [cast(Tensor, x.entered) for x in tokens[:-1]]
        return [x.permute(0, 3, 1, 2) for x in (*entered, self.norms[-1](tokens[-1].pixels))]

    def drop_lower_norms(self) -> None:
        """Keep the last norm only, for heads that read no other map normed."""
        for i in range(len(self.norms) - 1):
            self.norms[i] = nn.Identity()


def check_stages(
    embed_dim: int, depths: Sequence[int], heads: Sequence[int], global_tokens: int, position: str
) -> None:
    """Refuse shapes that do not divide, each with the rule."""
    if len(heads) != len(depths):
        raise InputError(f"heads has {len(heads)} numbers and depths {len(depths)}: give one of each per stage")
    for i, count in enumerate(heads):
        if embed_dim * 2**i % count:
            raise InputError(f"heads[{i}] = {count} does not divide the {embed_dim * 2**i} channels of its stage")
    if global_tokens < 0:
        raise InputError(f"global_tokens = {global_tokens}: give 0 (plain Swin) or more")
    if position not in POSITIONS:
        raise InputError(f"position = {position!r}: known: {', '.join(POSITIONS)}")
    if global_tokens and position == "coordinates" and embed_dim % 4:
        raise InputError(f"embed_dim = {embed_dim}: the coordinates of global tokens need a multiple of 4")


def _init(module: nn.Module) -> None:
    """Swin's start: small linear weights, zero biases."""
    if isinstance(module, nn.Linear):
        trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
