"""Crops of any pose: whole-pixel copies where possible, antialiased bilinear resampling elsewhere.

Coordinates are pixel-corner ones: pixel (r, c) covers [r, r + 1] x [c, c + 1]. Local and context crop share centre,
scale and angle, so that they stay one place at two resolutions.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from uhrseg.data.windows import Windows

__all__ = ["Pose", "crop", "crop_nearest", "d4"]


@dataclass(frozen=True)
class Pose:
    """Where a square crop lies: its centre in pixels (y, x), scale (pixels per sample), angle in degrees."""

    y: float
    x: float
    scale: float = 1.0
    angle: float = 0.0

    def on_coarse(self, factor: int) -> Pose:
        """The same pose counted in cells of `factor` pixels."""
        return Pose(self.y / factor, self.x / factor, self.scale, self.angle)

    def corner(self, size: int) -> tuple[int, int] | None:
        """(row, col) of the first pixel when the crop is a plain slice of the grid, else None."""
        row, col = self.y - size / 2, self.x - size / 2
        plain = self.scale == 1 and self.angle == 0 and row.is_integer() and col.is_integer()
        return (int(row), int(col)) if plain else None

    def grid(self, samples: int, size: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Pixel coordinates y and x, each (samples, samples), of sample centres across a crop of `size`."""
        u = ((np.arange(samples) + 0.5) * (size / samples) - size / 2) * self.scale
        cos, sin = math.cos(math.radians(self.angle)), math.sin(math.radians(self.angle))
        down, across = u[:, None], u[None, :]
        return self.y + cos * down + sin * across, self.x - sin * down + cos * across


def crop(source: Windows, pose: Pose, size: int) -> NDArray[np.float32]:
    """The crop (C, size, size) float32 of `source`: a copy for a plain pose, else bilinear.

    When shrinking, twice as many samples are taken along each axis and averaged: up to scale 2 no pixel is skipped.
    """
    corner = pose.corner(size)
    if corner is not None:
        return source.read(*corner, size, size).astype(np.float32)
    oversampling = math.ceil(pose.scale) if pose.scale > 1 else 1
    y, x = pose.grid(size * oversampling, size)
    row, col, height, width = _window(y, x)
    window = torch.from_numpy(np.ascontiguousarray(source.read(row, col, height, width)))[None]  # (1, C, h, w)
    # align_corners=False: -1 and 1 are the outer corners of the outer pixels.
    where = np.stack([2 * (x - col) / width - 1, 2 * (y - row) / height - 1], axis=-1)[None]  # (1, S, S, 2)
    sampled = F.grid_sample(
        window, torch.from_numpy(where.astype(np.float32)), padding_mode="border", align_corners=False
    )
    if oversampling > 1:
        sampled = F.avg_pool2d(sampled, oversampling)
    return sampled[0].numpy()


def crop_nearest(source: Windows, pose: Pose, size: int) -> NDArray[Any]:
    """The crop (C, size, size) of `source` by the pixel each sample centre falls into; for labels and masks."""
    corner = pose.corner(size)
    if corner is not None:
        return source.read(*corner, size, size)
    y, x = pose.grid(size, size)
    row, col, height, width = _window(y, x)
    rows, cols = np.floor(y).astype(np.int64) - row, np.floor(x).astype(np.int64) - col
    return source.read(row, col, height, width)[:, rows, cols]


def d4(array: NDArray[Any], quarter_turns: int, flip: bool) -> NDArray[Any]:
    """One of the eight symmetries of the square, on the last two axes."""
    turned = np.rot90(array, quarter_turns, axes=(-2, -1))
    return np.ascontiguousarray(turned[..., ::-1] if flip else turned)


def _window(y: NDArray[np.float64], x: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """(row, col, height, width) of the pixels that bilinear sampling at `y`, `x` touches."""
    row, col = math.floor(y.min() - 0.5), math.floor(x.min() - 0.5)
    return row, col, math.floor(y.max() + 0.5) + 1 - row, math.floor(x.max() + 0.5) + 1 - col
