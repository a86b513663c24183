"""Blending of overlapping windows as they come: a window and what its neighbours left of it give finished pixels.

The tapers of neighbouring windows add up to one, so the weighted sum of logits is their mean: no count map, no
division, no full-size float buffer. What is carried on is the right strip of the last window and the bottom strip of
the last window row. A pixel's value is (the sum along the row above) + (the sum along its own row): the same float
operations whatever the chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uhrseg.geo.plan import Chunk, TilePlan

__all__ = ["Block", "Blender", "best_class", "quantise"]

_PIXELS_AT_ONCE = 1 << 17  # reduced to labels at once on a CPU: in its cache, and enough to make up for the calls


class Block(NamedTuple):
    """Pixels of the scene that no later window touches, and their blended logits (C, Y, X)."""

    rows: slice
    cols: slice
    logits: Tensor


class Blender:
    """Blends the windows of one chunk, given row by row, left to right.

    Holds (classes, overlap, chunk width + size) float32 logits on `device`, and one window's right strip.
    """

    def __init__(
        self, plan: TilePlan, chunk: Chunk, classes: int, ramp: NDArray[np.float32], device: torch.device
    ) -> None:
        self.plan = plan
        self.chunk = chunk
        cols = plan.touching(chunk.cols, plan.cols)
        self._left = plan.start(cols[0])
        width = plan.start(cols[-1]) + plan.size - self._left
        self._below = torch.zeros(classes, plan.overlap, width, device=device)  # (C, O, X), of the row above
        self._right: tuple[int, int, Tensor] | None = None  # lattice position it belongs to, (C, S, O)
        self._ramp = torch.from_numpy(ramp).to(device)  # (O,)
        self._fall = self._ramp.flip(0)

    def add(self, row: int, col: int, logits: Tensor) -> Block:
        """Blend the logits (C, S, S) of the window at a lattice position, in place; the finished pixels it covers.

        Those outside the chunk are dropped, so the block may be empty. It is a view of `logits`.
        """
        plan, overlap, stride = self.plan, self.plan.overlap, self.plan.stride
        height = plan.size if row == plan.rows - 1 else stride
        width = plan.size if col == plan.cols - 1 else stride
        if overlap:
            self._taper(row, col, logits)
            if self._right is not None and self._right[:2] == (row, col):
                logits[:, :, :overlap] += self._right[2]
            self._right = (row, col + 1, logits[:, :, stride:].clone()) if width == stride else None
            x = plan.start(col) - self._left
            below = self._below[:, :, x : x + width]
            if row > 0:
                logits[:, :overlap, :width] += below
            below.copy_(logits[:, stride:, :width])
        return self._block(plan.start(row), plan.start(col), logits[:, :height, :width])

    def _taper(self, row: int, col: int, logits: Tensor) -> None:
        """Weigh a window's sides that have a neighbour; the scene's outer edge has none."""
        plan, overlap, stride = self.plan, self.plan.overlap, self.plan.stride
        if col > 0:
            logits[:, :, :overlap] *= self._ramp
        if col < plan.cols - 1:
            logits[:, :, stride:] *= self._fall
        if row > 0:
            logits[:, :overlap] *= self._ramp[:, None]
        if row < plan.rows - 1:
            logits[:, stride:] *= self._fall[:, None]

    def _block(self, top: int, left: int, logits: Tensor) -> Block:
        rows = _common(self.chunk.rows, top, logits.shape[1])
        cols = _common(self.chunk.cols, left, logits.shape[2])
        inside = logits[:, rows.start - top : rows.stop - top, cols.start - left : cols.stop - left]
        return Block(rows, cols, inside)


def _common(pixels: slice, start: int, length: int) -> slice:
    low = max(pixels.start, start)
    return slice(low, max(low, min(pixels.stop, start + length)))


def best_class(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The largest logit (Y, X) float32 of logits (C, Y, X), and the first class (Y, X) uint8 that has it.

    On a CPU class after class, in NumPy: four times faster than a maximum along the leading axis, which does not run
    in vector registers. A NaN stays in the first result.
    """
    if logits.device.type != "cpu":
        values, indices = torch.max(logits, dim=0)
        return values, indices.to(torch.uint8)
    planes: NDArray[np.float32] = logits.numpy()
    best = planes[0].copy()
    winner = np.zeros(best.shape, dtype=np.uint8)
    for k in range(1, len(planes)):
        better = (planes[k] > best).view(np.uint8)
        better *= np.uint8(k)
        np.maximum(winner, better, out=winner)  # later winners have larger numbers
        np.maximum(best, planes[k], out=best)
    return torch.from_numpy(best), torch.from_numpy(winner)


def quantise(
    logits: Tensor, labels: Tensor, confidence: Tensor | None = None, probabilities: Tensor | None = None
) -> Tensor:
    """Write blended logits (C, Y, X) as uint8 `labels` (Y, X), `confidence` (Y, X) and `probabilities` (C, Y, X).

    The outputs, on the same device, are filled in place; None is not computed. Confidence is the top probability times
    254, probabilities are times 254 too. Returns a number that is finite if and only if every top logit is.
    """
    total = torch.zeros((), device=logits.device)
    height, width = logits.shape[1:]
    step = max(_PIXELS_AT_ONCE // max(width, 1) if logits.device.type == "cpu" else height, 1)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        part = logits[:, rows]
        best, winner = best_class(part)
        labels[rows] = winner
        total += best.sum()
        if confidence is None and probabilities is None:
            continue
        shares = torch.exp(part - best)  # (C, Y, X), 1 at the winner
        scale = 254.0 / shares.sum(dim=0)
        if confidence is not None:
            confidence[rows] = scale.round().to(torch.uint8)
        if probabilities is not None:
            probabilities[:, rows] = (shares * scale).round().to(torch.uint8)
    return total
