"""Windows of whole pixels (row, col, height, width) from a scene's origin; they may reach outside."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from uhrseg.geo.bands import fill
from uhrseg.geo.plan import shifted
from uhrseg.geo.scene import Readable

__all__ = ["Filled", "InMemory", "Known", "Tile", "Valid", "Windows", "in_memory"]

Tile = tuple[int, int, int, int]
"""(row, col, height, width)."""


class Windows(Protocol):
    """Something that gives windows of an array (C, Y, X), filled where it has no value."""

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[Any]:
        """The window (C, height, width); it may reach outside."""


@dataclass(frozen=True)
class InMemory:
    """Windows of an array (C, Y, X); outside it, `outside` (C,)."""

    array: NDArray[Any]
    outside: NDArray[Any]

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[Any]:
        """See `Windows`."""
        rows, cols = slice(max(row, 0), max(row + height, 0)), slice(max(col, 0), max(col + width, 0))
        part = self.array[:, rows, cols]
        if part.shape[1:] == (height, width):
            return part
        window = np.empty((len(self.array), height, width), dtype=self.array.dtype)
        window[:] = self.outside[:, None, None]
        top, left = rows.start - row, cols.start - col
        window[:, top : top + part.shape[1], left : left + part.shape[2]] = part
        return window


def in_memory(windows: Windows, shape: tuple[int, int], outside: NDArray[Any], tiles: Iterable[Tile]) -> InMemory:
    """The whole (Y, X) `shape` of `windows`, read tile by tile."""
    whole = np.empty((len(outside), *shape), outside.dtype)
    for row, col, height, width in tiles:
        whole[:, row : row + height, col : col + width] = windows.read(row, col, height, width)
    return InMemory(whole, outside)


@dataclass(frozen=True)
class Filled:
    """Windows of a `Readable`, invalid and outside pixels taking `padding` (C,)."""

    readable: Readable
    padding: NDArray[np.float32]

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.float32]:
        """See `Windows`."""
        array, valid = self.readable.read(shifted(self.readable.geobox, row, col, (height, width)))
        return fill(array, valid, self.padding)


@dataclass(frozen=True)
class Valid:
    """Windows (1, Y, X) bool: where every band of a `Readable` has a value."""

    readable: Readable

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.bool_]:
        """See `Windows`."""
        return self.readable.read(shifted(self.readable.geobox, row, col, (height, width)))[1][None]


@dataclass(frozen=True)
class Known:
    """Windows (1, Y, X) uint8 of `labels`, `ignore` where `valid` does not hold."""

    labels: Windows
    valid: Windows
    ignore: int

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        """See `Windows`."""
        window = (row, col, height, width)
        return np.where(self.valid.read(*window), self.labels.read(*window), np.uint8(self.ignore))
