"""Training scenes: derived bands, their coarse grid and the labels of one raster, read by windows.

Windows are given as whole pixels (row, col, height, width) from the scene's origin and may reach outside. Small data
sets are kept in memory, large ones are read when asked for; nothing else differs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.data.datasets import LabelledRaster
from uhrseg.errors import InputError
from uhrseg.geo.bands import Derived, fill
from uhrseg.geo.coarse import build_coarse
from uhrseg.geo.labels import read_area, read_labels
from uhrseg.geo.plan import pixel_offset, shifted
from uhrseg.geo.scene import Readable, Scene, gsd_fits
from uhrseg.recipe import DataTable

__all__ = ["MEMORY_PIXELS", "TrainingScene", "Windows", "band_statistics", "class_shares", "load_scenes"]

MEMORY_PIXELS = 64_000_000
"""Data sets up to this many pixels are held in memory."""

ContextKind = Literal["average", "decimate"]

_STRIP = 1024  # rows read at a time when a whole scene is walked through
_CENTRES = 500_000  # pixels of one class remembered per scene for balanced centres


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
class LabelFile:
    """Windows (1, Y, X) uint8 of a label file, on a scene's grid; the ignore value where it says nothing."""

    source: LabelledRaster
    geobox: GeoBox
    data: DataTable

    def read(self, row: int, col: int, height: int, width: int) -> NDArray[np.uint8]:
        """See `Windows`."""
        box = shifted(self.geobox, row, col, (height, width))
        return labels_on(self.source, box, self.data, self.geobox)[None]


@dataclass(frozen=True)
class TrainingScene:
    """One raster ready for sampling; windows of `context` count cells of the coarse grid."""

    name: str
    shape: tuple[int, int]
    local: Windows  # (C, Y, X) float32
    context: Windows | None  # (C, Y / f, X / f) float32
    labels: Windows  # (1, Y, X) uint8
    valid: Windows  # (1, Y, X) bool
    centres: dict[int, NDArray[np.int64]]  # feature class -> flat positions of (some of) its pixels

    def strips(self) -> Iterator[tuple[int, int]]:
        """(first row, height) of the strips that cover the scene."""
        for row in range(0, self.shape[0], _STRIP):
            yield row, min(_STRIP, self.shape[0] - row)


def load_scenes(
    rasters: Sequence[LabelledRaster],
    data: DataTable,
    factor: int | None,
    context: ContextKind = "average",
    folder: Path | None = None,
) -> list[TrainingScene]:
    """Open `rasters` and their labels; small data sets go to memory. `folder` keeps the coarse grids of large ones.

    `factor` and `context` as in the recipe's window table (None: no context).

    Raises `InputError` for rasters that do not fit the recipe (bands, GSD) or labels that do not fit the legend.
    """
    scenes = [Scene.open(source.raster) for source in rasters]
    for scene in scenes:
        _check_gsd(scene, data.gsd_m)
    in_memory = sum(s.geobox.shape[0] * s.geobox.shape[1] for s in scenes) <= MEMORY_PIXELS
    return [_load(*pair, data, factor, context, folder, in_memory) for pair in zip(rasters, scenes, strict=True)]


def _load(
    source: LabelledRaster,
    scene: Scene,
    data: DataTable,
    factor: int | None,
    how: ContextKind,
    folder: Path | None,
    in_memory: bool,
) -> TrainingScene:
    derived = Derived(scene, data.band)
    coarse = build_coarse(derived, factor, folder, how)
    height, width = scene.geobox.shape
    local: Windows = Filled(derived, coarse.padding)
    context: Windows | None = None if factor is None else Filled(coarse, coarse.padding)
    labels: Windows = LabelFile(source, scene.geobox, data)
    valid: Windows = Valid(derived)
    if in_memory:
        local = InMemory(local.read(0, 0, height, width), coarse.padding)
        labels = InMemory(labels.read(0, 0, height, width), np.array([data.ignore], np.uint8))
        valid = InMemory(valid.read(0, 0, height, width), np.array([False]))
        if context is not None:
            context = InMemory(context.read(0, 0, *coarse.geobox.shape), coarse.padding)
            coarse.close()
    loaded = TrainingScene(source.name, (height, width), local, context, labels, valid, {})
    loaded.centres.update(_class_pixels(loaded, data))
    return loaded


def _check_gsd(scene: Scene, expected: float | None) -> None:
    """Refuse a scene whose pixels are not 0.8 to 1.25 times the recipe's GSD."""
    actual = scene.gsd_m
    if expected is not None and actual is not None and not gsd_fits(actual, expected):
        raise InputError(
            f"{scene.paths[0]} has pixels of {actual[1]:.3g} x {actual[0]:.3g} m, but data.gsd_m is "
            f"{expected:g} m (0.8 to 1.25 times is accepted): resample it with gdalwarp -tr, or correct data.gsd_m"
        )


def labels_on(
    source: LabelledRaster, geobox: GeoBox, data: DataTable, origin: GeoBox | None = None
) -> NDArray[np.uint8]:
    """Reference labels (Y, X) uint8 of a raster on `geobox`; ignored outside its AOI and its split's blocks.

    `origin`: the raster's own grid, needed for blocks; None when `geobox` is that grid.
    """
    every, values = data.label_class, data.label_values
    labels = read_labels(source.labels, geobox, data.legend, data.label_column, values, every)
    if source.aoi is not None:
        labels[~read_area(source.aoi, geobox)] = data.ignore
    if source.blocks is not None:
        row, col = (0, 0) if origin is None else pixel_offset(origin, geobox)
        labels[~source.blocks.counts(row, col, *geobox.shape)] = data.ignore
    return labels


def _class_pixels(scene: TrainingScene, data: DataTable) -> dict[int, NDArray[np.int64]]:
    """Flat positions of each feature class' pixels, thinned evenly to at most `_CENTRES` a class."""
    found: dict[int, list[NDArray[np.int64]]] = {c: [] for c in data.legend.foreground}
    for row, height in scene.strips():
        labels = scene.labels.read(row, 0, height, scene.shape[1])[0]
        for c, positions in found.items():
            positions.append(np.flatnonzero(labels == c) + row * scene.shape[1])
    joined = {c: np.concatenate(positions) for c, positions in found.items()}
    return {c: p[:: 1 + len(p) // _CENTRES] for c, p in joined.items() if len(p)}


def class_shares(scenes: Sequence[TrainingScene], classes: int) -> NDArray[np.float64]:
    """Share of each class (classes,) among the labelled valid pixels of `scenes`.

    Raises `InputError` when no pixel has a label.
    """
    counts = np.zeros(classes, np.int64)
    for scene in scenes:
        for row, height in scene.strips():
            window = (row, 0, height, scene.shape[1])
            labels = scene.labels.read(*window)[scene.valid.read(*window)]
            counts += np.bincount(labels[labels < classes], minlength=classes)
    if not counts.any():
        raise InputError("the training labels hold no class: check data.labels, data.class and data.ignore")
    return counts / counts.sum()


def band_statistics(scenes: Sequence[TrainingScene]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (C,) of the derived bands over all valid pixels of `scenes`, streamed.

    Raises `InputError` when there is no valid pixel or a band is constant.
    """
    count, first, second = 0, np.zeros(()), np.zeros(())
    for scene in scenes:
        for row, height in scene.strips():
            valid = scene.valid.read(row, 0, height, scene.shape[1])[0]
            values = scene.local.read(row, 0, height, scene.shape[1])[:, valid].astype(np.float64)  # (C, n)
            count, first, second = count + values.shape[1], first + values.sum(1), second + (values**2).sum(1)
    if not count:
        raise InputError("the training rasters hold no valid pixel: check their nodata value and data.band")
    mean = first / count
    variance = second / count - mean**2
    if not (variance > 1e-12 * (1 + mean**2)).all():
        raise InputError(f"band {int(np.argmin(variance)) + 1} of data.band is constant over the training rasters")
    return mean, np.sqrt(variance)
