"""GLAM: Swin with global tokens in every window, and relays through it.

Themyr et al. 2023 (WACV), section 3.2. In each block the tokens of a window attend with its pixels (W-MSA), then all
windows' tokens attend to each other (G-MSA) and carry what they learned into the next block's windows. Tokens live
inside one stage. Relays (Perron et al. 2026, section 3.1) join every window after the tokens and are averaged.
Shapes: B batch, H and W of the map, C channels, R relays, n windows, g global tokens per window, w window side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from timm.layers import calculate_drop_path_rates
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.bias_attention import BiasAttention, partition, reverse, shift_mask
from uhrseg.models.glam_position import POSITIONS
from uhrseg.models.pyramid import PreNormBlock, PyramidStage, PyramidTrunk, StageTokens, Updates, check_stages
from uhrseg.models.relay import Want
from uhrseg.models.window_attention import no_autocast, split_heads

__all__ = ["GlamBlock", "GlamTrunk", "PublishedGlamBlock", "check_tokens", "glam_stages"]


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


class GlamBlock(PreNormBlock):
    """Swin's block with global tokens, which take neither norm, residual nor MLP (as published).

    ``exchange``: whether G-MSA follows W-MSA. After the last block of a stage nothing reads its result.
    """

    def __init__(self, dim: int, heads: int, window: int, shifted: bool, drop_path: float, exchange: bool) -> None:
        super().__init__(dim, drop_path)
        self.window, self.shift = window, window // 2 if shifted else 0
        self.attn = BiasAttention(dim, window, heads)
        self.gt_attn = GlobalAttention(dim, heads) if exchange else None

    def attend(self, tokens: StageTokens, relays: Tensor | None, want: Want) -> Updates:
        """W-MSA over [global tokens, relays, pixels] of each window."""
        x, g, first = self.sequence(tokens, relays)
        start = 0 if self.gt_attn is not None and want != "relays" else first if want == "tokens" else g
        rows = slice(start, first if want == "relays" else None)
        height, width = tokens.pixels.shape[1:3]
        mask = shift_mask(height, width, self.window, self.shift, x.device)
        y = self.attn(x, first, mask, rows)  # (B, n, rows, C)
        mean = None if relays is None or want == "tokens" else y[:, :, g - start : first - start].mean(1)
        if want == "relays":
            return Updates(relays=mean)
        pixels = reverse(y[:, :, first - start :], height, width, self.window, self.shift).flatten(1, 2)
        return Updates(pixels, mean, None if self.gt_attn is None else y[:, :, :g])

    def sequence(self, tokens: StageTokens, relays: Tensor | None) -> tuple[Tensor, int, int]:
        """What attends in each window, (B, n, N, C), and the places in it of the first relay and the first pixel."""
        windows = partition(self.norm1(tokens.pixels), self.window, self.shift)  # (B, n, w*w, C)
        parts = [] if tokens.tokens is None else [tokens.tokens.to(windows.dtype)]
        g = sum(part.shape[2] for part in parts)
        if relays is not None:
            parts.append(self.norm1(relays).unsqueeze(1).expand(-1, windows.shape[1], -1, -1))
        first = sum(part.shape[2] for part in parts)
        return torch.cat((*parts, windows), 2), g, first

    def exchange(self, tokens: StageTokens, updates: Updates) -> Tensor | None:
        """G-MSA: what the windows' tokens gathered, with their positions, among all windows."""
        gathered = updates.tokens  # (B, n, g, C)
        if gathered is None or self.gt_attn is None:
            return tokens.tokens
        out: Tensor = self.gt_attn(gathered.flatten(1, 2) + cast(Tensor, tokens.position))
        return out.view(gathered.shape)


class PublishedGlamBlock(GlamBlock):
    """GLAM with relays as published (github.com/YohannPerron/RelayToken): slices are cut in the wrong order.

    The relays' own update is lost, and the last R pixels, bottom right, are handed on as relays.
    """

    def forward(
        self, tokens: StageTokens, relays: Tensor | None, want: Want = "both"
    ) -> tuple[StageTokens, Tensor | None]:
        """As `GlamBlock.forward`."""
        updated, _ = super().forward(tokens, relays, "tokens")
        if relays is None:
            return updated, None
        return updated, updated.pixels.flatten(1, 2)[:, -relays.shape[1] :]


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
) -> list[PyramidStage]:
    """The stages of an encoder (``merging``) or a decoder, finest first.

    ``position``: how global tokens know their window, a name in `POSITIONS`. ``published``: relays as published.
    """
    make = PublishedGlamBlock if published else GlamBlock
    drop = cast(list[list[float]], calculate_drop_path_rates(drop_path, list(depths), stagewise=True))
    stages = []
    for i, (dim, depth) in enumerate(zip(channels, depths, strict=True)):
        exchanges = [global_tokens > 0 and b + 1 < depth for b in range(depth)]
        blocks = [make(dim, heads[i], window, b % 2 == 1, drop[i][b], exchanges[b]) for b in range(depth)]
        stage = PyramidStage(dim, window, blocks, merging and i > 0, relays, relay_bias=False)
        if global_tokens:
            stage.global_token = nn.Parameter(torch.randn(global_tokens, dim))
            stage.position = POSITIONS[position](dim, global_tokens, i) if depth > 1 else None
        stages.append(stage)
    return stages


class GlamTrunk(PyramidTrunk):
    """Swin with ``global_tokens`` per window (0: plain Swin) over square images of ``size`` pixels.

    ``position``: 'coordinates' (of the window, whatever the size of the image) or 'table' (the published one, whose
    rows depend on it). ``faithful``: the published table and relays, mistakes included. Raises `InputError` for sizes
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
        window: int = 7,
        global_tokens: int = 10,
        patch_size: int = 4,
        drop_path: float = 0.3,
        position: str = "coordinates",
        faithful: bool = False,
    ) -> None:
        position = "table" if faithful else position
        check_stages(size, embed_dim, depths, heads, patch_size)
        check_tokens(embed_dim, global_tokens, position)
        channels = [embed_dim * 2**i for i in range(len(depths))]
        stages = glam_stages(
            channels, depths, heads, window, global_tokens, drop_path, position, faithful, True, relays > 0
        )
        super().__init__(bands, size, relays, separate_projector, stages, embed_dim, patch_size)


def check_tokens(embed_dim: int, global_tokens: int, position: str) -> None:
    """Refuse numbers and positions of global tokens that cannot be, each with the rule."""
    if global_tokens < 0:
        raise InputError(f"global_tokens = {global_tokens}: give 0 (plain Swin) or more")
    if position not in POSITIONS:
        raise InputError(f"position = {position!r}: known: {', '.join(POSITIONS)}")
    if global_tokens and position == "coordinates" and embed_dim % 4:
        raise InputError(f"embed_dim = {embed_dim}: the coordinates of global tokens need a multiple of 4")
