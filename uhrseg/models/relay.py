"""Relay tokens: how two scales of one image talk inside one transformer.

R learned tokens join the patch tokens of the context window (wide, coarse) and of the local window (narrow, fine) in
every block; nothing else passes between the scales. Perron et al., TMLR 2026, section 3.1 (Eq. 2-7) and Eq. 11-13.
This module is the only place that knows the mechanism; trunks provide `Stage`s and `Block`s.

Letters in shapes: B batch, R relay tokens, C channels. Patch tokens have the layout of their trunk.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = [
    "CONTEXT",
    "LOCAL",
    "ORDERS",
    "Block",
    "Order",
    "Scale",
    "Stage",
    "Trunk",
    "Want",
    "by_rows",
    "in_parts",
    "one_scale",
    "two_scales",
]

_FEWEST_ROWS = 4

Scale = Literal["local", "context"]
LOCAL: Scale = "local"
CONTEXT: Scale = "context"

Order = Literal["sequential", "parallel"]
Want = Literal["both", "tokens", "relays"]


class Block(Protocol):
    """One transformer block over patch tokens and relays.

    ``want`` names what the caller will read; the block may skip the rest and return it unchanged.
    ``relays`` None: a plain transformer block.
    """

    def __call__(self, tokens: Tensor, relays: Tensor | None, want: Want = "both") -> tuple[Tensor, Tensor | None]:
        """The updated tokens and relays (B, R, C)."""


Pair = tuple[Block, Block]  # the block of the local scale and that of the context; mostly one and the same


class Stage(Protocol):
    """Blocks of one resolution, with what leads into them.

    A stage may have ``context_blocks`` too, as many, for the context scale; without, both scales share ``blocks``.
    """

    @property
    def blocks(self) -> Iterable[Block]:
        """The blocks, first to last."""

    def merge(self, tokens: Tensor) -> Tensor:
        """Patch tokens of the previous stage -> tokens of this one (one scale)."""

    def project(self, relays: Tensor) -> Tensor:
        """Relays of the previous stage -> (B, R, C) of this one (both scales share the result)."""


class Trunk(Protocol):
    """What a transformer offers so that relays can run through it."""

    @property
    def stages(self) -> Iterable[Stage]:
        """The stages, finest first."""

    def embed(self, image: Tensor, scale: Scale) -> Tensor:
        """Image (B, bands, size, size) -> patch tokens; ``scale`` chooses the projector."""

    def first_relays(self, batch: int) -> Tensor | None:
        """The learned relays (batch, R, C), or None for a trunk without."""


def one_scale(trunk: Trunk, image: Tensor) -> list[Tensor]:
    """Run one image; relays, if the trunk has any, act as registers. Returns the tokens after each stage."""
    tokens, relays = trunk.embed(image, LOCAL), trunk.first_relays(image.shape[0])
    outputs = []
    for stage, blocks, is_last in _walk(trunk):
        tokens, relays = stage.merge(tokens), _project(stage, relays)
        for block, _ in blocks:
            tokens, relays = block(tokens, relays, "tokens" if is_last and block is blocks[-1][0] else "both")
        outputs.append(tokens)
    return outputs


def two_scales(
    trunk: Trunk, local: Tensor, context: Tensor, order: Order, with_context: bool
) -> tuple[list[Tensor], list[Tensor] | None]:
    """Run both scales with relays between them (Eq. 2-5, or 11-13 for ``parallel``).

    Returns the tokens after each stage of the local scale, and of the context scale if ``with_context``; without
    it the last block computes only what the local tokens still need.
    """
    step, last_step = ORDERS[order]
    f_local, f_context = trunk.embed(local, LOCAL), trunk.embed(context, CONTEXT)
    relays = trunk.first_relays(local.shape[0])
    locals_, contexts = [], []
    for stage, blocks, is_last in _walk(trunk):
        f_local, f_context, relays = stage.merge(f_local), stage.merge(f_context), _project(stage, relays)
        for i, block in enumerate(blocks):
            if is_last and i == len(blocks) - 1 and not with_context:
                f_local = last_step(block, f_local, f_context, relays)
            else:
                f_local, f_context, relays = step(block, f_local, f_context, relays)
        locals_.append(f_local)
        contexts.append(f_context)
    return locals_, contexts if with_context else None


def _sequential(
    pair: Pair, local: Tensor, context: Tensor, relays: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Eq. 4-5: the context updates the relays, the local window reads and updates them."""
    context, relays = pair[1](context, relays)
    local, relays = pair[0](local, relays)
    return local, context, relays


def _sequential_last(pair: Pair, local: Tensor, context: Tensor, relays: Tensor | None) -> Tensor:
    """Eq. 4-5 when only the local tokens are read afterwards: of the context pass, the relays are."""
    _, relays = pair[1](context, relays, "relays")
    return pair[0](local, relays, "tokens")[0]


def _parallel(
    pair: Pair, local: Tensor, context: Tensor, relays: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Eq. 11-13: both scales read the same relays; their two updates are averaged."""
    context, from_context = pair[1](context, relays)
    local, from_local = pair[0](local, relays)
    if from_context is None or from_local is None:
        return local, context, None
    return local, context, 0.5 * (from_context + from_local)


def _parallel_last(pair: Pair, local: Tensor, context: Tensor, relays: Tensor | None) -> Tensor:
    """Eq. 12 alone: after the last block nothing reads the context's update."""
    return pair[0](local, relays, "tokens")[0]


_Step = Callable[[Pair, Tensor, Tensor, Tensor | None], tuple[Tensor, Tensor, Tensor | None]]
_LastStep = Callable[[Pair, Tensor, Tensor, Tensor | None], Tensor]

ORDERS: dict[Order, tuple[_Step, _LastStep]] = {
    "sequential": (_sequential, _sequential_last),
    "parallel": (_parallel, _parallel_last),
}


def by_rows(layer: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """``layer(x)`` for x (B, R, C) and a layer that treats rows alike, whatever the batch.

    Products of less than four rows take another routine of the CPU's library, which rounds otherwise: one sample with
    one relay would not give what it gives in a batch.
    """
    missing = _FEWEST_ROWS - x.shape[1]
    return layer(x) if missing <= 0 else layer(F.pad(x, (0, 0, 0, missing)))[:, : x.shape[1]]


def in_parts(
    block: Block, tokens: Tensor, relays: Tensor | None, want: Want, numbers: int
) -> tuple[Tensor, Tensor | None]:
    """``block(tokens, relays, want)`` for patch tokens (B, ..., C), on CPU for samples with ``numbers`` at a time.

    Samples do not meet in a block, so results are the same. With all samples at once what is made inside outgrows the
    caches, and in the first stage of SwinV2-S (40 MB) even what the system hands out without clearing it first.
    """
    samples = _samples_at_once(tokens, numbers)
    if samples >= tokens.shape[0]:
        return block(tokens, relays, want)
    some = tokens.split(samples)
    theirs = [None] * len(some) if relays is None else relays.split(samples)
    parts = [block(*part, want) for part in zip(some, theirs, strict=True)]
    updated = [part for _, part in parts if part is not None]
    whole = tokens if want == "relays" else torch.cat([part for part, _ in parts])
    return whole, torch.cat(updated) if updated else None


def _samples_at_once(tokens: Tensor, numbers: int) -> int:
    """Of the batch in nearly equal parts; all of it with gradients, which keep what is made inside anyway."""
    batch = tokens.shape[0]
    if tokens.device.type != "cpu" or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return batch
    parts = -(-tokens.numel() // numbers)
    return -(-batch // parts)


def _project(stage: Stage, relays: Tensor | None) -> Tensor | None:
    return None if relays is None else by_rows(stage.project, relays)


def _walk(trunk: Trunk) -> Iterator[tuple[Stage, list[Pair], bool]]:
    """Each stage with its blocks for either scale, and whether it is the last."""
    stages = list(trunk.stages)
    for stage in stages:
        own = list(stage.blocks)
        other = getattr(stage, "context_blocks", None) or own
        yield stage, list(zip(own, other, strict=True)), stage is stages[-1]
