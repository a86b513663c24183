"""Training scenes: derived bands, their coarse grid and the labels of one raster, read by windows.

Small data sets are kept in memory, large ones are read when asked for; nothing else differs.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.windows import Window

from uhrseg.data.datasets import LabelledRaster
from uhrseg.data.windows import Filled, Known, Tile, Valid, Windows, in_memory
from uhrseg.errors import InputError
from uhrseg.geo.ahead import in_order
from uhrseg.geo.bands import Derived
from uhrseg.geo.coarse import build_coarse, read_blocks
from uhrseg.geo.labels import read_area, read_labels
from uhrseg.geo.plan import pixel_offset, shifted
from uhrseg.geo.scene import Scene, gdal_settings, gsd_fits
from uhrseg.geo.stack import open_stack
from uhrseg.recipe import DataTable

__all__ = [
    "CELL",
    "MEMORY_PIXELS",
    "NO_LABEL",
    "TrainingScene",
    "band_statistics",
    "check_gsd",
    "class_shares",
    "labels_on",
    "load_scenes",
]

MEMORY_PIXELS = 64_000_000
"""Data sets up to this many pixels are held in memory, larger ones when asked for (`train.in_memory`)."""

_LOADERS = 8  # scenes that are loaded into memory at once

ContextKind = Literal["average", "decimate"]

CELL = 256
"""Side, in pixels, of the cells in which labelled pixels are counted: memory for labels is some bytes per cell."""

NO_LABEL = "the training labels hold no class: check data.labels, data.class, data.ignore and data.aoi"


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
    """One raster ready for sampling; windows of `context` count cells of the coarse grid.

    `labels` are `ignore` wherever a pixel is neither to be trained on nor scored: no data, no label, outside the AOI or
    the split's blocks.
    """

    name: str
    shape: tuple[int, int]
    local: Windows  # (C, Y, X) float32
    context: Windows | None  # (C, Y / f, X / f) float32
    labels: Windows  # (1, Y, X) uint8
    valid: Windows  # (1, Y, X) bool
    tiles: tuple[Tile, ...]  # cover the scene once, as its file is best read
    counts: NDArray[np.int64]  # (Y / CELL, X / CELL, classes): labelled pixels of each class in each cell
    files: tuple[Scene, ...] = ()  # what is read from disk for each sample

    def close(self) -> None:
        """Close the files that this thread holds open; the next read opens them again."""
        for scene in self.files:
            scene.close()


def load_scenes(
    rasters: Sequence[LabelledRaster],
    data: DataTable,
    factor: int | None,
    context: ContextKind = "average",
    folder: Path | None = None,
    in_memory: bool = False,
) -> list[TrainingScene]:
    """Open `rasters` and their labels; small data sets go to memory, coarse grids and labels of large ones to `folder`.

    `factor` and `context` as in the recipe's window table (None: no context). `in_memory`: large ones go to memory too.
    Raises `InputError` for rasters that do not fit the recipe (bands, GSD), labels that do not fit the legend, and data
    that do not fit the memory.
    """
    scenes = [open_stack(source.rasters) for source in rasters]
    for scene in scenes:
        check_gsd(scene, data.gsd_m)
    pixels = sum(s.geobox.shape[0] * s.geobox.shape[1] for s in scenes)
    if in_memory:
        _check_memory(pixels * _bytes_per_pixel(len(data.band), factor))
    small = in_memory or pixels <= MEMORY_PIXELS

    def load(pair: tuple[LabelledRaster, Scene]) -> TrainingScene:
        source, derived = pair[0], Derived(pair[1], data.band)
        return (_load_in_memory if small else _load_on_disk)(source, derived, data, factor, context, folder)

    with gdal_settings([path for scene in scenes for path in scene.paths]):
        threads = min(_LOADERS, os.cpu_count() or 1) if in_memory else 1  # each takes memory beside what it loads
        return list(in_order(load, zip(rasters, scenes, strict=True), threads))


def _bytes_per_pixel(bands: int, factor: int | None) -> float:
    """What `_load_in_memory` holds: bands and their coarse grid in float32, labels and validity."""
    return 4 * bands * (1 + (1 / factor**2 if factor else 0)) + 2


def _check_memory(needed: float) -> None:
    """Refuse what the memory that Linux says is available cannot hold; elsewhere nobody knows."""
    facts = Path("/proc/meminfo")
    if not facts.exists():
        return
    lines = facts.read_text(encoding="ascii").splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))  # torchrun's
    if needed * processes > available:
        raise InputError(
            f"the data take {needed / 1e9:.1f} GB in each of {processes} process(es), but {available / 1e9:.1f} GB of "
            "memory are free: set train.in_memory = false"
        )


def _load_in_memory(
    source: LabelledRaster, derived: Derived, data: DataTable, factor: int | None, how: ContextKind, folder: Path | None
) -> TrainingScene:
    (height, width), tiles = derived.geobox.shape, _tiles(derived)
    shape = (height, width)
    with build_coarse(derived, factor, folder, how) as coarse:
        context = None
        if factor is not None:
            rows, cols = coarse.geobox.shape
            context = in_memory(Filled(coarse, coarse.padding), (rows, cols), coarse.padding, [(0, 0, rows, cols)])
        local = in_memory(Filled(derived, coarse.padding), shape, coarse.padding, tiles)
    valid = in_memory(Valid(derived.scene), shape, np.array([False]), tiles)
    known = Known(LabelFile(source, derived.geobox, data), valid, data.ignore)
    labels = in_memory(known, shape, np.array([data.ignore], np.uint8), tiles)
    counts = count_cells(labels, shape, tiles, len(data.legend))
    return TrainingScene(source.name, shape, local, context, labels, valid, tiles, counts)


def _load_on_disk(
    source: LabelledRaster, derived: Derived, data: DataTable, factor: int | None, how: ContextKind, folder: Path | None
) -> TrainingScene:
    (height, width), tiles = derived.geobox.shape, _tiles(derived)
    shape = (height, width)
    coarse = build_coarse(derived, factor, folder, how, in_memory=folder is None)
    local = Filled(derived, coarse.padding)
    context = None if factor is None else Filled(coarse, coarse.padding)
    valid = Valid(derived.scene)  # a derived pixel is valid where its scene is
    labels: Windows = Known(LabelFile(source, derived.geobox, data), valid, data.ignore)
    if folder is not None:
        labels = _burnt(labels, derived.geobox, tiles, data, folder)
    counts = count_cells(labels, shape, tiles, len(data.legend))
    opened = (derived.scene, *(() if factor is None else (coarse.scene,)))
    files = tuple(scene for scene in opened if isinstance(scene, Scene))
    for scene in files:
        scene.close()
    return TrainingScene(source.name, shape, local, context, labels, valid, tiles, counts, files)


def _tiles(derived: Derived) -> tuple[Tile, ...]:
    return tuple((row, col, *box.shape) for (row, col), box in read_blocks(derived, 1))


def _burnt(labels: Windows, geobox: GeoBox, tiles: Sequence[Tile], data: DataTable, folder: Path) -> Windows:
    """`labels` as a raster in `folder`: polygons and areas are not burnt again for every sample."""
    path = folder / f"labels-{uuid.uuid4().hex}.tif"
    profile = {
        "driver": "GTiff", "dtype": "uint8", "count": 1, "height": geobox.shape[0], "width": geobox.shape[1],
        "transform": geobox.affine, "crs": geobox.crs.to_wkt() if geobox.crs else None, "tiled": True,
        "blockxsize": 256, "blockysize": 256, "compress": "deflate", "bigtiff": "if_safer",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        for row, col, height, width in tiles:
            out.write(labels.read(row, col, height, width), window=Window(col, row, width, height))
    plain = data.model_copy(update={"label_class": None, "label_values": {}, "label_column": None})
    return LabelFile(LabelledRaster(path, path), geobox, plain)


def count_cells(labels: Windows, shape: tuple[int, int], tiles: Sequence[Tile], classes: int) -> NDArray[np.int64]:
    """Labelled pixels of each class in each cell of `CELL` pixels: (Y / CELL, X / CELL, classes)."""
    rows, cols = math.ceil(shape[0] / CELL), math.ceil(shape[1] / CELL)
    counts = np.zeros(rows * cols * classes, np.int64)
    for row, col, height, width in tiles:
        found = labels.read(row, col, height, width)[0]
        y, x = np.arange(row, row + height) // CELL, np.arange(col, col + width) // CELL
        place = (y[:, None] * cols + x[None]) * classes + found
        counts += np.bincount(place[found < classes], minlength=len(counts))
    return counts.reshape(rows, cols, classes)


def check_gsd(scene: Scene, expected: float | None) -> None:
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
        labels[~read_area(source.aoi, geobox, data.aoi_column, source.raster.stem)] = data.ignore
    if source.blocks is not None:
        row, col = (0, 0) if origin is None else pixel_offset(origin, geobox)
        labels[~source.blocks.counts(row, col, *geobox.shape)] = data.ignore
    return labels


def class_shares(scenes: Sequence[TrainingScene], classes: int) -> NDArray[np.float64]:
    """Share of each class (classes,) among the labelled pixels of `scenes`.

    Raises `InputError` when no pixel has a label.
    """
    counts = sum((scene.counts.sum((0, 1)) for scene in scenes), np.zeros(classes, np.int64))
    if not counts.any():
        raise InputError(NO_LABEL)
    return counts / counts.sum()


def band_statistics(scenes: Sequence[TrainingScene]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Mean and standard deviation (C,) of the derived bands over all valid pixels of `scenes`, streamed.

    Raises `InputError` when there is no valid pixel or a band is constant.
    """
    count, first, second = 0, np.zeros(()), np.zeros(())
    for scene in scenes:
        for tile in scene.tiles:
            values = scene.local.read(*tile)[:, scene.valid.read(*tile)[0]].astype(np.float64)  # (C, n)
            count, first, second = count + values.shape[1], first + values.sum(1), second + (values**2).sum(1)
        scene.close()
    if not count:
        raise InputError("the training rasters hold no valid pixel: check their nodata value and data.band")
    mean = first / count
    variance = second / count - mean**2
    if not (variance > 1e-12 * (1 + mean**2)).all():
        raise InputError(f"band {int(np.argmin(variance)) + 1} of data.band is constant over the training rasters")
    return mean, np.sqrt(variance)
