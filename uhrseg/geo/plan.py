"""Window geometry as plain data: the lattice, window pairs, chunks and tapers. No pixel is read here.

Windows lie on one lattice anchored at the scene's origin: window k of an axis covers pixels
``k * stride`` to ``k * stride + size``; the last one may pass the edge. All rules of geometry live in this file.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.errors import InputError

__all__ = [
    "TAPERS",
    "Chunk",
    "TilePlan",
    "WindowPair",
    "coarse_geobox",
    "overlap_pixels",
    "pixel_offset",
    "shifted",
    "taper",
]

PHASE_TOLERANCE = 0.01
"""Two grids further out of phase than this share of a pixel are different grids."""


@dataclass(frozen=True)
class WindowPair:
    """A local window and, for two-scale models, the context window of the same pixel shape and centre."""

    local: GeoBox
    context: GeoBox | None


@dataclass(frozen=True)
class Chunk:
    """A rectangle of the scene's pixels: the unit of work."""

    rows: slice
    cols: slice

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start


@dataclass(frozen=True)
class TilePlan:
    """The lattice of windows over a scene.

    `geobox` is the scene's; `size` the window side and `overlap` the shared side, both in pixels; `factor` the
    context factor or None for single-scale models.
    """

    geobox: GeoBox
    size: int
    overlap: int
    factor: int | None = None

    @property
    def stride(self) -> int:
        """Pixels from one window's start to the next one's."""
        return self.size - self.overlap

    @property
    def rows(self) -> int:
        """Number of window rows."""
        return self._count(self.geobox.shape[0])

    @property
    def cols(self) -> int:
        """Number of window columns."""
        return self._count(self.geobox.shape[1])

    @property
    def windows(self) -> int:
        """Number of windows of the whole lattice."""
        return self.rows * self.cols

    def _count(self, length: int) -> int:
        return 1 + max(0, math.ceil((length - self.size) / self.stride))

    def start(self, k: int) -> int:
        """First pixel of window `k` along either axis."""
        return k * self.stride

    def context_start(self, k: int) -> int:
        """First cell, on the coarse grid, of window `k`'s context along either axis (may be negative)."""
        assert self.factor is not None, "single-scale plans have no context"
        return (self.start(k) - (self.factor - 1) * self.size // 2) // self.factor

    def pair(self, row: int, col: int) -> WindowPair:
        """The window pair at a lattice position; its context is centred on it and covers `factor` times the side."""
        local = shifted(self.geobox, self.start(row), self.start(col), (self.size, self.size))
        if self.factor is None:
            return WindowPair(local, None)
        return WindowPair(local, local.pad((self.factor - 1) * self.size // 2).zoom_out(self.factor))

    def chunks(self, pixels: int | None) -> list[Chunk]:
        """Cut the scene into squares of `pixels` a side (None: the whole scene is one chunk), row by row."""
        height, width = self.geobox.shape
        side = pixels or max(height, width)
        return [
            Chunk(slice(y, min(y + side, height)), slice(x, min(x + side, width)))
            for y in range(0, height, side)
            for x in range(0, width, side)
        ]

    def touching(self, pixels: slice, count: int) -> range:
        """Indices, among `count` windows of an axis, of those that touch the given pixels of that axis."""
        first = max(0, math.floor((pixels.start - self.size) / self.stride) + 1)
        last = min(count - 1, (pixels.stop - 1) // self.stride)
        return range(first, last + 1)

    def lattice(self, chunk: Chunk) -> Iterator[tuple[int, int]]:
        """Lattice positions (row, col) of every window that touches `chunk`, row by row."""
        cols = self.touching(chunk.cols, self.cols)
        for row in self.touching(chunk.rows, self.rows):
            for col in cols:
                yield row, col

    def weights(self, k: int, count: int, ramp: NDArray[np.float32]) -> NDArray[np.float32]:
        """Blending weights (size,) of window `k` of `count` along an axis; no taper at the scene's outer edge."""
        weights = np.ones(self.size, dtype=np.float32)
        if self.overlap and k > 0:
            weights[: self.overlap] = ramp
        if self.overlap and k < count - 1:
            weights[-self.overlap :] = ramp[::-1]
        return weights


def shifted(geobox: GeoBox, row: int, col: int, shape: tuple[int, int]) -> GeoBox:
    """The box of `shape` (height, width) starting `row`, `col` whole pixels from the origin of `geobox`."""
    return GeoBox(shape, geobox.affine * Affine.translation(col, row), geobox.crs)


def coarse_geobox(geobox: GeoBox, factor: int) -> GeoBox:
    """The coarse grid: cells of `factor` x `factor` pixels anchored at the origin, the last ones partly outside."""
    height, width = geobox.shape
    shape = (math.ceil(height / factor), math.ceil(width / factor))
    return GeoBox(shape, geobox.affine * Affine.scale(factor), geobox.crs)


def pixel_offset(grid: GeoBox, box: GeoBox) -> tuple[int, int]:
    """Whole pixels (row, col) from the origin of `grid` to the origin of `box`.

    Raises `InputError` when the two do not share one pixel lattice: other pixel size, rotation, or out of phase by
    more than 0.01 pixel.
    """
    relative = ~grid.affine * box.affine
    linear = (relative.a - 1, relative.b, relative.d, relative.e - 1)
    row, col = round(relative.f), round(relative.c)
    # A pixel size that is off by 1e-6 adds up to a hundredth of a pixel over ten thousand pixels.
    if max(map(abs, linear)) > PHASE_TOLERANCE / max(*box.shape, *grid.shape):
        raise InputError(
            f"grids differ in pixel size or rotation ({_step(grid)} against {_step(box)}): bring them to one grid "
            "with gdalwarp -tr ... -tap"
        )
    if max(abs(relative.f - row), abs(relative.c - col)) > PHASE_TOLERANCE:
        raise InputError(
            f"grids are out of phase by {relative.f - row:.3f} rows and {relative.c - col:.3f} columns "
            "(at most 0.01 is accepted): align them with gdalwarp -tap"
        )
    return row, col


def _step(box: GeoBox) -> str:
    a = box.affine
    return f"{a.a:g}, {a.b:g} / {a.d:g}, {a.e:g}"


def overlap_pixels(size: int, overlap: float, factor: int | None) -> int:
    """Overlap in pixels for a share `overlap` of the window side, 0 to 0.5.

    All context windows must be whole-cell slices of one coarse grid, which holds when the overlap, the stride and
    the context's margin are multiples of `factor`. Raises `InputError`, proposing the nearest overlap that works.
    """
    if not 0 <= overlap <= 0.5:
        raise InputError(f"overlap is {overlap:g}, but it is a share of the window between 0 and 0.5")
    pixels = min(round(size * overlap), size // 2)  # three windows never meet in a pixel of a row
    if factor is None:
        return pixels
    if (factor - 1) * size % (2 * factor) or size % factor:
        raise InputError(
            f"a window of {size} px and a context factor of {factor} do not share a grid: the size must be a multiple "
            f"of {factor}, and (factor - 1) * size of {2 * factor}; the nearest size that works is "
            f"{_nearest_size(size, factor)}"
        )
    if pixels % factor:
        nearest = min(max(round(pixels / factor), 0) * factor, size // 2 // factor * factor)
        raise InputError(
            f"overlap {overlap:g} of {size} px is {pixels} px, but it must be a multiple of the context factor "
            f"{factor}: the nearest that works is {nearest / size:.6g}"
        )
    return pixels


def _nearest_size(size: int, factor: int) -> int:
    legal = (n for d in range(4 * factor) for n in (size - d, size + d) if n > 0)
    return next(n for n in legal if n % factor == 0 and (factor - 1) * n % (2 * factor) == 0)


def _hann(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.sin(0.5 * np.pi * t) ** 2


def _linear(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return t


def _crop(t: NDArray[np.float64]) -> NDArray[np.float64]:
    return (t >= 0.5).astype(np.float64)


TAPERS: dict[str, Callable[[NDArray[np.float64]], NDArray[np.float64]]] = {
    "hann": _hann,
    "linear": _linear,
    "crop": _crop,
}
"""Rising ramps over the unit interval; each plus its mirror image is one."""


def taper(name: str, overlap: int) -> NDArray[np.float32]:
    """Rising ramp (overlap,) of the taper `name`, sampled at pixel centres; ramp + ramp[::-1] is one.

    Complementary ramps need no count map and no division afterwards. Raises `InputError` for an unknown name.
    """
    if name not in TAPERS:
        raise InputError(f"taper {name!r} is not known: choose one of {', '.join(TAPERS)}")
    rising = TAPERS[name]((np.arange(overlap) + 0.5) / max(overlap, 1))
    half = overlap // 2
    ramp = rising.astype(np.float32)
    # One minus the first half, so that mirror sums are exactly one in float32; the middle of an odd ramp is a half.
    ramp[overlap - half :] = (1 - ramp[:half])[::-1]
    if overlap % 2:
        ramp[half] = 0.5
    return ramp
