"""Square blocks of a raster of which some are held out for validation: plain integers, decided per pixel."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

__all__ = ["Blocks"]


@dataclass(frozen=True)
class Blocks:
    """A grid of blocks `size` pixels wide from the raster's origin; `val` (rows, columns) says which are held out.

    `role` "val": the held-out blocks count. "train": all pixels more than `buffer` pixels (along rows and columns) from
    every held-out block count. `buffer` is at most ``size // 2``.
    """

    size: int
    buffer: int
    val: tuple[tuple[bool, ...], ...]
    role: Literal["train", "val"] = "train"

    def of(self, role: Literal["train", "val"]) -> Blocks:
        """The same blocks seen from the other split."""
        return replace(self, role=role)

    def counts(self, row: int, col: int, height: int, width: int) -> NDArray[np.bool_]:
        """Whether each pixel of a window (height, width), which may reach outside the raster, counts in `role`."""
        rows, cols = np.arange(row, row + height), np.arange(col, col + width)
        if self.role == "val":
            return self._held_out(rows, cols)
        # A square of side 2 buffer + 1 <= size + 1 touches the blocks that its four corners touch.
        near = np.zeros((height, width), np.bool_)
        for down in (-self.buffer, self.buffer):
            for right in (-self.buffer, self.buffer):
                near |= self._held_out(rows + down, cols + right)
        return ~near

    def _held_out(self, rows: NDArray[np.int64], cols: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether the pixels at `rows` x `cols` lie in held-out blocks."""
        val = np.pad(np.array(self.val, np.bool_), 1)  # outside the raster nothing is held out
        i = np.clip(rows // self.size + 1, 0, val.shape[0] - 1)
        j = np.clip(cols // self.size + 1, 0, val.shape[1] - 1)
        return val[i[:, None], j[None]]
