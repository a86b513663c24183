"""Blending of overlapping windows as they come: a window and what its neighbours left of it give finished pixels.

The tapers of neighbouring windows add up to one, so the weighted sum of logits is their mean: no count map, no
division, no full-size float buffer. What is carried on is the right strip of the last window and the bottom strip of
the last window row. A pixel's value is (the tapered sum along the row above) + (the tapered sum along its own row): the
same float operations whatever the chunk.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uhrseg.geo.plan import Chunk, TilePlan

__all__ = ["Block", "Blender", "best_class", "quantise"]

_WHOLE_ROWS = 0.6  # of a window's columns from which on a CPU reduces all, which lie in one piece: up to twice as fast

_PIXELS_AT_ONCE = 1 << 17  # reduced to labels at once on a CPU: in its cache, and enough to make up for the calls


class Block(NamedTuple):
    """Pixels of the scene that no later window touches, as whole rows of a window and the columns that count."""

    rows: slice
    cols: slice
    window: Tensor  # (C, Y, S); other columns hold what is of no use
    across: slice


class Blender:
    """Blends the windows of one chunk, given row by row, left to right.

    Holds (windows across, classes, overlap, size) float32 logits on `device`, and one window's right strip.
    """

    def __init__(
        self, plan: TilePlan, chunk: Chunk, classes: int, ramp: NDArray[np.float32], device: torch.device
    ) -> None:
        self.plan = plan
        self.chunk = chunk
        cols = plan.touching(chunk.cols, plan.cols)
        self._first = cols[0]
        # Of the row above, a piece for each window and all of its columns: contiguous memory is three times faster.
        self._below = torch.zeros(len(cols), classes, plan.overlap, plan.size, device=device)
        self._right: tuple[int, int, Tensor] | None = None  # lattice position it belongs to, (C, S, O)
        self._ramp = torch.from_numpy(ramp).to(device)  # (O,)
        self._fall = self._ramp.flip(0)

    def add(self, row: int, col: int, logits: Tensor) -> Block:
        """Blend the logits (C, S, S) of the window at a lattice position, in place; the finished pixels it covers.

        Those outside the chunk are dropped, so the block may be empty. It is a view of `logits`.
        """
        plan = self.plan
        if plan.overlap:
            self._across(row, col, logits)
            self._down(row, col, logits)
        height = plan.size if row == plan.rows - 1 else plan.stride
        width = plan.size if col == plan.cols - 1 else plan.stride
        top, left = plan.start(row), plan.start(col)
        rows, cols = _common(self.chunk.rows, top, height), _common(self.chunk.cols, left, width)
        inside = slice(cols.start - left, cols.stop - left)
        return Block(rows, cols, logits[:, rows.start - top : rows.stop - top], inside)

    def _across(self, row: int, col: int, logits: Tensor) -> None:
        """Taper towards the neighbours left and right, of which the scene's outer columns lack one; add the left one's.

        The tapered right side is kept for the right neighbour; in `logits` it is of no more use.
        """
        plan = self.plan
        left = logits[:, :, : plan.overlap]
        if col > 0:
            left *= self._ramp
        if self._right is not None and self._right[:2] == (row, col):
            left += self._right[2]
        last = col == plan.cols - 1
        self._right = None if last else (row, col + 1, logits[:, :, plan.stride :] * self._fall)

    def _down(self, row: int, col: int, logits: Tensor) -> None:
        """The same for the rows above and below."""
        plan, below = self.plan, self._below[col - self._first]  # (C, O, S)
        top = logits[:, : plan.overlap]
        if row > 0:
            top *= self._ramp[:, None]
            top += below
        if row < plan.rows - 1:
            torch.mul(logits[:, plan.stride :], self._fall[:, None], out=below)


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
    window: Tensor, across: slice, labels: Tensor, confidence: Tensor | None = None,
    probabilities: Tensor | None = None,
) -> Tensor:  # fmt: skip
    """Write blended logits as uint8 `labels` (Y, X), `confidence` (Y, X) and `probabilities` (C, Y, X).

    The logits (C, Y, X) are the columns `across` of `window` (C, Y, S). The outputs, on the same device, are filled in
    place; None is not computed. Confidence is the top probability times 254, probabilities are times 254 too. Returns
    a number that is finite if and only if every top logit is; on a CPU, of the other columns too.
    """
    on_cpu = window.device.type == "cpu"
    if not on_cpu or across.stop - across.start < _WHOLE_ROWS * window.shape[2]:
        window, across = window[:, :, across], slice(0, across.stop - across.start)
    total = torch.zeros((), device=window.device)
    height, width = window.shape[1:]
    step = max(_PIXELS_AT_ONCE // max(width, 1) if on_cpu else height, 1)
    for start in range(0, height, step):
        rows = slice(start, start + step)
        best, winner = best_class(window[:, rows])
        labels[rows] = winner[:, across]
        total += best.sum()
        if confidence is None and probabilities is None:
            continue
        shares = torch.exp(window[:, rows, across] - best[:, across])  # (C, Y, X), 1 at the winner
        scale = 254.0 / shares.sum(dim=0)
        if confidence is not None:
            confidence[rows] = scale.round().to(torch.uint8)
        if probabilities is not None:
            probabilities[:, rows] = (shares * scale).round().to(torch.uint8)
    return total
