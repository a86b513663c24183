"""Blending of overlapping windows with a running accumulator: logits are summed, only one window row is held.

The tapers of neighbouring windows add up to one, so the weighted sum of logits is their mean: no count map, no
division, no full-size float buffer. Windows are added in lattice order, so that each pixel sees the same float
operations in the same order whatever the chunk.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uhrseg.geo.plan import Chunk, TilePlan

__all__ = ["Blender", "quantise"]

_ROWS_AT_ONCE = 16  # rows reduced to labels at once: softmax temporaries stay small


class Blender:
    """Accumulates the windows of one chunk; call `add` for each window of a row, then `finish` the row.

    Holds (classes, size, chunk width) float32 logits on `device`.
    """

    def __init__(
        self, plan: TilePlan, chunk: Chunk, classes: int, ramp: NDArray[np.float32], device: torch.device
    ) -> None:
        self.plan = plan
        self.chunk = chunk
        self._ramp = ramp
        self._sum = torch.zeros(classes, plan.size, chunk.shape[1], device=device)  # (C, S, X)
        self._weights: dict[tuple[bool, bool, bool, bool], Tensor] = {}

    def add(self, row: int, col: int, logits: Tensor) -> None:
        """Add the logits (C, S, S) of the window at a lattice position."""
        start = self.plan.start(col) - self.chunk.cols.start
        low, high = max(start, 0), min(start + self.plan.size, self._sum.shape[2])
        inside = np.s_[:, :, low - start : high - start]
        self._sum[:, :, low:high] += (logits.float() * self._weight(row, col))[inside]

    def _weight(self, row: int, col: int) -> Tensor:
        """Weights (S, S) of a window; they differ only by which sides are the scene's outer edge."""
        plan = self.plan
        key = (row == 0, row == plan.rows - 1, col == 0, col == plan.cols - 1)
        if key not in self._weights:
            y = plan.weights(row, plan.rows, self._ramp)
            x = plan.weights(col, plan.cols, self._ramp)
            self._weights[key] = torch.from_numpy(np.outer(y, x)).to(self._sum.device)
        return self._weights[key]

    def finish(self, row: int) -> tuple[slice, Tensor]:
        """Rows of the scene that no later window row touches, and their blended logits (C, Y, X).

        Rows outside the chunk are dropped; the slice may be empty. The tensor is a view, valid until the next `add`
        of another row, which `advance` must precede.
        """
        top = self.plan.start(row)
        last = row == self.plan.rows - 1
        bottom = self.plan.geobox.shape[0] if last else self.plan.start(row + 1)
        low, high = max(top, self.chunk.rows.start), min(bottom, self.chunk.rows.stop)
        return slice(low, max(low, high)), self._sum[:, low - top : max(low, high) - top]

    def advance(self) -> None:
        """Move to the next window row: the overlap strip becomes the top of the accumulator."""
        kept = self.plan.overlap
        self._sum[:, :kept] = self._sum[:, self.plan.stride :].clone()
        self._sum[:, kept:] = 0


def quantise(
    logits: Tensor, labels_only: bool = False, probabilities: bool = False
) -> tuple[NDArray[np.uint8], NDArray[np.uint8] | None, NDArray[np.uint8] | None]:
    """Blended logits (C, Y, X) to uint8 labels (Y, X), confidence (Y, X) and probabilities (C, Y, X) if asked.

    One softmax a pixel; confidence is the top probability times 254. `labels_only` skips the softmax and returns
    labels alone. Only uint8 leaves the device.
    """
    labels, confidence, planes = [], [], []
    for part in logits.split(_ROWS_AT_ONCE, dim=1):
        # torch.max, not argmax: ten times faster on CPU for a leading class axis.
        best, winner = torch.max(part, dim=0)
        labels.append(winner.to(torch.uint8).cpu())
        if labels_only:
            continue
        shares = torch.exp(part - best)  # (C, Y, X), 1 at the winner
        total = shares.sum(dim=0)
        confidence.append((254.0 / total).round().to(torch.uint8).cpu())
        if probabilities:
            planes.append((shares * (254.0 / total)).round().to(torch.uint8).cpu())
    return (
        torch.cat(labels).numpy(),
        torch.cat(confidence).numpy() if confidence else None,
        torch.cat(planes, dim=1).numpy() if planes else None,
    )
