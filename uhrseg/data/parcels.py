"""Parcels with artificial archaeology, made on the spot from a seed: what the shipped model is tried on anywhere.

The features have the sizes of those the shipped model was trained on (mounds, some with a ring ditch or a robbing pit,
kiln platforms, enclosures, rows of trapping pits). It is a test of the software, no statement about real sites.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from uhrseg.data.earthworks import Heights, dome, ground, platform, ring
from uhrseg.legend import NODATA

__all__ = ["parcel", "write_layer"]

MOUND, KILN, ENCLOSURE, PIT = 1, 2, 3, 4

_PER_MEGAPIXEL = {MOUND: 75, KILN: 27, PIT: 7}  # single features, single features, rows


def parcel(size: int, seed: int, base: Heights | None = None) -> tuple[Heights, NDArray[np.uint8]]:
    """Heights (Y, X) float32 in metres at 1 m and labels (Y, X) uint8 (0 background, 1 mound, 2 kiln platform,
    3 enclosure, 4 trapping pit) of a square parcel.

    base: ground to build on, of at least `size` pixels a side; None: `ground` from the seed.
    """
    rng = np.random.default_rng([seed, 23])
    heights = ground((size, size), seed) if base is None else base[:size, :size].astype(np.float32)
    labels = np.zeros((size, size), np.uint8)
    share = size * size / 1e6
    for _ in range(max(1, round(3 * share))):
        _enclosure(heights, labels, rng)
    for kind, draw in ((PIT, _pits), (KILN, _kiln), (MOUND, _mound)):
        for _ in range(round(_PER_MEGAPIXEL[kind] * share)):
            draw(heights, labels, rng)
    return heights, labels


def _anywhere(heights: Heights, rng: np.random.Generator, margin: float) -> tuple[float, float]:
    y, x = rng.uniform(margin, np.array(heights.shape) - margin)
    return float(y), float(x)


def _mound(heights: Heights, labels: NDArray[np.uint8], rng: np.random.Generator) -> None:
    radius = float(rng.uniform(4.5, 11))
    at, high = _anywhere(heights, rng, 15), float(rng.uniform(0.5, 1.5))
    if rng.random() < 0.3:
        ring(heights, at, radius + 2, 4, -0.25 * high)
    labels[dome(heights, at, radius, high, float(rng.uniform(1, 1.25)))] = MOUND
    if rng.random() < 0.25:
        dome(heights, at, 0.35 * radius, -0.5 * high)


def _kiln(heights: Heights, labels: NDArray[np.uint8], rng: np.random.Generator) -> None:
    """On the steepest of a dozen places: charcoal was burnt on slopes."""
    places = [_anywhere(heights, rng, 12) for _ in range(12)]
    at = max(places, key=lambda place: _slope(heights, place))
    labels[platform(heights, at, float(rng.uniform(4.5, 7.5)))] = KILN


def _slope(heights: Heights, at: tuple[float, float]) -> float:
    """Metres per pixel over 10 px."""
    y, x = round(at[0]), round(at[1])
    return float(np.hypot(heights[y + 5, x] - heights[y - 5, x], heights[y, x + 5] - heights[y, x - 5]) / 10)


def _enclosure(heights: Heights, labels: NDArray[np.uint8], rng: np.random.Generator) -> None:
    radius, start = float(rng.uniform(38, 62)), float(rng.uniform(0, 5))
    at, gap = _anywhere(heights, rng, 75), (start, start + float(rng.uniform(0.2, 0.5)))
    width, high = float(rng.uniform(5, 8)), float(rng.uniform(0.4, 0.9))
    labels[ring(heights, at, radius, width, high, gap)] = ENCLOSURE
    labels[ring(heights, at, radius + width, width, -0.8 * high, gap)] = ENCLOSURE


def _pits(heights: Heights, labels: NDArray[np.uint8], rng: np.random.Generator) -> None:
    (y, x), angle = _anywhere(heights, rng, 20), float(rng.uniform(0, 2 * np.pi))
    for step in range(int(rng.integers(4, 9))):
        along = 20 * step + float(rng.uniform(-4, 4))
        at = y + along * np.sin(angle), x + along * np.cos(angle)
        labels[dome(heights, at, float(rng.uniform(3.3, 5.2)), -float(rng.uniform(0.6, 1.3)))] = PIT


def write_layer(path: Path, array: NDArray[np.generic], name: str) -> Path:
    """A one-band GeoTIFF (heights, or class ids with nodata 255) of 1 m pixels at an invented place in EPSG:32633."""
    height, width = array.shape
    nodata = NODATA if array.dtype == np.uint8 else None
    with rasterio.open(
        path, "w", driver="GTiff", count=1, height=height, width=width, dtype=array.dtype, crs="EPSG:32633",
        nodata=nodata, transform=from_origin(500_000, 5_000_000, 1, 1), tiled=True, compress="deflate",
    ) as out:  # fmt: skip
        out.write(array, 1)
        out.set_band_description(1, name)
    return path
