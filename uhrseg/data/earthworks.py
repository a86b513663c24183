"""Ground and earthworks drawn into heights: what the simulations are made of. Lengths in pixels, heights in metres."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["Heights", "Place", "dome", "flat_top", "ground", "patch", "place_of", "platform", "ring"]

Heights: TypeAlias = NDArray[np.float32]
Place: TypeAlias = tuple[NDArray[np.intp], NDArray[np.intp]]
"""Rows and columns of the pixels an earthwork covers."""


def ground(shape: tuple[int, int], seed: int) -> Heights:
    """Hills (Y, X) float32: noise whose amplitude falls with frequency to the power 2.5, rough by 3 cm.

    The scale does not depend on the shape: at 1000 x 1000 px half of the slopes are below 1 in 10, as on the
    real ground of the shipped model.
    """
    rng = np.random.default_rng([seed, 11])
    rows, cols = np.fft.fftfreq(shape[0])[:, None], np.fft.rfftfreq(shape[1])[None]
    frequency = np.maximum(np.hypot(rows, cols), 1 / 2000)
    spectrum = np.fft.rfft2(rng.standard_normal(shape)) / frequency**2.5
    spectrum[0, 0] = 0
    hills = np.fft.irfft2(spectrum, shape) / 4500
    rough = rng.normal(0, 0.03, shape)
    return (300 + hills + rough).astype(np.float32)


def patch(heights: Heights, at: tuple[float, float], reach: float) -> tuple[slice, slice, Heights, Heights]:
    """Rows and columns of the square of half side `reach` around `at` (row, column), and the offsets of its pixels."""
    (y, x), (height, width) = at, heights.shape
    rows = slice(max(int(y - reach), 0), max(min(int(y + reach) + 2, height), 0))
    cols = slice(max(int(x - reach), 0), max(min(int(x + reach) + 2, width), 0))
    dy = np.arange(rows.start, rows.stop, dtype=np.float32)[:, None] - np.float32(y)
    dx = np.arange(cols.start, cols.stop, dtype=np.float32)[None] - np.float32(x)
    return rows, cols, dy, dx


def place_of(rows: slice, cols: slice, inside: NDArray[np.bool_]) -> Place:
    """The pixels of a patch where `inside` holds, as an index into the whole."""
    y, x = np.nonzero(inside)
    return y + rows.start, x + cols.start


def dome(heights: Heights, at: tuple[float, float], radius: float, high: float, stretch: float = 1.0) -> Place:
    """A mound (a pit for negative `high`): a paraboloid, `stretch` times as long as wide; returns where it is."""
    rows, cols, dy, dx = patch(heights, at, radius * max(stretch, 1))
    share = np.hypot(dy / stretch, dx) / radius
    heights[rows, cols] += np.maximum(high * (1 - share**2), 0) if high > 0 else np.minimum(high * (1 - share**2), 0)
    return place_of(rows, cols, share < 1)


def flat_top(heights: Heights, at: tuple[float, float], radius: float, high: float) -> Place:
    """A mound with steep sides and a flat top, of a dome's volume."""
    rows, cols, dy, dx = patch(heights, at, radius)
    share = np.hypot(dy, dx) / radius
    heights[rows, cols] += (0.58 * high * np.clip(4 * (1 - share), 0, 1)).astype(np.float32)
    return place_of(rows, cols, share < 1)


def platform(heights: Heights, at: tuple[float, float], radius: float) -> Place:
    """A level terrace, half cut into the slope, half heaped on it, with a sloping edge 2 px wide."""
    rows, cols, dy, dx = patch(heights, at, radius + 2)
    distance = np.hypot(dy, dx)
    flat = distance < radius
    if not flat.any():
        return place_of(rows, cols, flat)
    blend = np.clip((radius + 2 - distance) / 2, 0, 1)
    level = heights[rows, cols][flat].mean()
    heights[rows, cols] = (1 - blend) * heights[rows, cols] + blend * level
    return place_of(rows, cols, flat)


def ring(
    heights: Heights,
    at: tuple[float, float],
    radius: float,
    width: float,
    high: float,
    gap: tuple[float, float] = (0, 0),
) -> Place:
    """A bank `width` px wide (a ditch for negative `high`) on a circle, open between the angles `gap` (radians)."""
    rows, cols, dy, dx = patch(heights, at, radius + width)
    off = np.abs(np.hypot(dy, dx) - radius) / (width / 2)
    angle = np.arctan2(dy, dx) % (2 * np.pi)
    inside = (off < 1) & ~((angle >= gap[0]) & (angle < gap[1]))
    heights[rows, cols] += np.where(inside, high * (1 - off**2), 0).astype(np.float32)
    return place_of(rows, cols, inside)
