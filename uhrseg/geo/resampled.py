"""A scene read at another ground sampling distance: means going down, bilinear going up.

Done here and not by GDAL's warper because a pixel must have the same value, to the last bit, wherever the read began:
each axis is a short weighted sum whose weights depend on the pixel's place alone.
"""

from __future__ import annotations

import math

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.errors import InputError
from uhrseg.geo.plan import pixel_offset, shifted
from uhrseg.geo.scene import Scene, ground_sampling_distance

__all__ = ["Resampled", "at_resolution"]

_SAME = 1e-3
"""Pixel sizes that differ by less than this share are the same."""

_LEAST = 0.5
"""A pixel is valid when this share of the weight under it is."""


def at_resolution(scene: Scene, metres: float) -> Scene:
    """`scene` with pixels of `metres`; the scene itself when it has them already. Raises `InputError` without a CRS."""
    if not metres > 0:
        raise InputError(f"--res is {metres:g}, but must be a pixel size in metres above 0")
    gsd = ground_sampling_distance(scene.geobox)
    if gsd is None:
        raise InputError("--res is in metres, but the scene has no CRS: give it one with gdal_edit -a_srs EPSG:...")
    steps = metres / gsd[0], metres / gsd[1]
    return scene if all(abs(s - 1) < _SAME for s in steps) else Resampled(scene, steps)


class Resampled(Scene):
    """`scene` with pixels of `steps` (y, x) of its own pixels, from the same origin; the last may reach outside it."""

    def __init__(self, scene: Scene, steps: tuple[float, float]) -> None:
        height, width = (max(1, math.ceil(n / s - _SAME)) for n, s in zip(scene.geobox.shape, steps, strict=True))
        geobox = GeoBox((height, width), scene.geobox.affine * Affine.scale(steps[1], steps[0]), scene.geobox.crs)
        rows, cols = (max(1, math.ceil(b / s)) for b, s in zip(scene.block, steps, strict=True))
        super().__init__(scene.files, geobox, scene.bands, (rows, cols), "float32")
        self.steps = steps
        self.scene = scene

    def decoded_bytes(self, height: int, width: int) -> int:
        """See `Scene.decoded_bytes`; the files have other pixels."""
        rows, cols = (math.ceil(n * max(s, 1)) + 2 for n, s in zip((height, width), self.steps, strict=True))
        return self.scene.decoded_bytes(rows, cols)

    def read(self, geobox: GeoBox) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Pixels of `geobox`; see `uhrseg.geo.scene.Readable`."""
        row, col = pixel_offset(self.geobox, geobox)
        (y, down), (x, across) = _taps(row, geobox.shape[0], self.steps[0]), _taps(col, geobox.shape[1], self.steps[1])
        top, left = int(y.min()), int(x.min())
        shape = (int(y.max()) - top + down.shape[1], int(x.max()) - left + across.shape[1])
        array, valid = self.scene.read(shifted(self.scene.geobox, top, left, shape))  # zeros where invalid
        values = np.concatenate([array.astype(np.float64), valid[np.newaxis].astype(np.float64)])  # (C + 1, Y, X)
        values = _weigh(values.swapaxes(1, 2), y - top, down).swapaxes(1, 2)
        values = _weigh(values, x - left, across)
        weight = values[-1]
        good = weight >= _LEAST - 1e-9
        with np.errstate(divide="ignore", invalid="ignore"):
            means = np.where(good, values[:-1] / weight, 0).astype(np.float32)
        return means, good

    def read_native(self, geobox: GeoBox) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """As `read`: means are no integers."""
        return self.read(geobox)


def _taps(start: int, count: int, step: float) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """First source pixel (count,) and weights (count, taps), which sum to one, of pixels `start` and following."""
    index = np.arange(start, start + count, dtype=np.float64)
    if step > 1:
        low, high = index * step, (index + 1) * step
        first = np.floor(low + 1e-9)
        edges = first[:, None] + np.arange(math.ceil(step) + 2)
        covered = np.minimum(edges[:, 1:], high[:, None]) - np.maximum(edges[:, :-1], low[:, None])
        return first.astype(np.int64), np.clip(covered, 0, None) / step
    centre = (index + 0.5) * step - 0.5
    first = np.floor(centre)
    share = centre - first
    return first.astype(np.int64), np.stack([1 - share, share], axis=1)


def _weigh(values: NDArray[np.float64], first: NDArray[np.int64], weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weighted sums along the last axis, tap after tap in a fixed order."""
    total = np.zeros((*values.shape[:-1], len(first)))
    for tap in range(weights.shape[1]):
        total += values[..., first + tap] * weights[:, tap]
    return total
