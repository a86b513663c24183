"""Bands in several files: rasters on one grid whose bands follow each other, as one scene."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.errors import InputError
from uhrseg.geo.plan import pixel_offset
from uhrseg.geo.scene import Scene

__all__ = ["Stack", "open_stack"]


class Stack(Scene):
    """Scenes on one grid, band after band; a pixel is valid where it is in all of them."""

    def __init__(self, parts: Sequence[Scene]) -> None:
        first = parts[0]
        kinds = {part.dtype for part in parts}
        super().__init__(
            tuple(file for part in parts for file in part.files),
            first.geobox,
            tuple(band for part in parts for band in part.bands),
            first.block,
            first.dtype if len(kinds) == 1 else "float32",
        )
        self.parts = tuple(parts)

    def decoded_bytes(self, height: int, width: int) -> int:
        """See `Scene.decoded_bytes`."""
        return sum(part.decoded_bytes(height, width) for part in self.parts)

    def read_native(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """See `Scene.read_native`; values of different types become float32."""
        read = [part.read_native(geobox) for part in self.parts]
        kinds = {values.dtype for values, _ in read}
        kind = kinds.pop() if len(kinds) == 1 else np.dtype(np.float32)
        array = np.concatenate([values.astype(kind, copy=False) for values, _ in read])  # (C, Y, X)
        return array, np.logical_and.reduce([valid for _, valid in read])


def open_stack(paths: Sequence[str | Path]) -> Scene:
    """One raster, or several whose bands follow each other.

    Raises `InputError` for what `Scene.open` refuses, and for rasters that are not on the grid of the first.
    """
    parts = [Scene.open(path) for path in paths]
    for part in parts[1:]:
        _must_share_grid(parts[0], part)
    return parts[0] if len(parts) == 1 else Stack(parts)


def _must_share_grid(first: Scene, other: Scene) -> None:
    a, b = first.geobox, other.geobox
    try:
        same = a.crs == b.crs and a.shape == b.shape and pixel_offset(a, b) == (0, 0)
    except InputError:
        same = False
    if not same:
        raise InputError(
            f"{other.paths[0]} ({b.shape[1]} x {b.shape[0]} px) is not on the grid of {first.paths[0]} "
            f"({a.shape[1]} x {a.shape[0]} px), but bands of one scene need one grid: warp it there with gdalwarp "
            "-t_srs ... -te ... -ts ..."
        )
