"""What a recipe trains and validates on: rasters of their own, or blocks held out of the training rasters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.data.blocks import Blocks
from uhrseg.data.datasets import LabelledRaster, find_rasters
from uhrseg.data.scenes import labels_on
from uhrseg.errors import InputError
from uhrseg.geo.overlap import must_belong
from uhrseg.geo.plan import shifted
from uhrseg.geo.scene import Scene
from uhrseg.recipe import BlocksTable, DataTable

__all__ = ["split_rasters", "write_blocks"]

_STRIP = 1024  # rows of labels looked at at once


def split_rasters(data: DataTable) -> tuple[list[LabelledRaster], list[LabelledRaster]]:
    """The labelled rasters to train and to validate on (maybe none), checked against each other.

    With ``data.blocks`` both are the same rasters, and each side's labels count in its own blocks only. Raises
    `InputError` for labels or an AOI that lie nowhere on their rasters, and for a split without labels.
    """
    train = find_rasters(data, "train")
    val = find_rasters(data, "val") if data.val else []
    check_label_files([*train, *val])
    if data.blocks is None:
        if val:
            _must_hold_labels(val, data)
        return train, val
    held_out = _hold_out(train, data, data.blocks)
    return (
        [replace(source, blocks=blocks) for source, blocks in zip(train, held_out, strict=True)],
        [replace(source, blocks=blocks.of("val")) for source, blocks in zip(train, held_out, strict=True)],
    )


def check_label_files(sources: Sequence[LabelledRaster]) -> None:
    """Refuse labels and AOIs that are empty, lie on none of their rasters or have another size (`InputError`)."""
    users: dict[Path, dict[Path, GeoBox]] = {}
    for source in sources:
        geobox = Scene.open(source.raster).geobox
        for path in (source.labels, *([source.aoi] if source.aoi else [])):
            users.setdefault(path.resolve(), {})[source.raster] = geobox
    for path, rasters in users.items():
        must_belong(path, rasters)


def _must_hold_labels(val: Sequence[LabelledRaster], data: DataTable) -> None:
    """Refuse validation rasters without a single label, before anything is trained; stops at the first one found."""
    for source in val:
        grid = Scene.open(source.raster).geobox
        for row in range(0, grid.shape[0], _STRIP):
            strip = shifted(grid, row, 0, (min(_STRIP, grid.shape[0] - row), grid.shape[1]))
            if (labels_on(source, strip, data, grid) != data.ignore).any():
                return
    raise InputError(
        f"the labels of the {len(val)} validation rasters hold no class: check data.val, data.labels and data.aoi, or "
        "leave data.val empty and set data.blocks"
    )


def _hold_out(sources: Sequence[LabelledRaster], data: DataTable, table: BlocksTable) -> list[Blocks]:
    """Choose the validation blocks of each raster."""
    grids = [_Grid(source, data, table) for source in sources]
    counts = np.concatenate([grid.counts.reshape(-1, grid.counts.shape[-1]) for grid in grids])  # (blocks, C)
    chosen = choose_blocks(counts, table.val_share, table.seed)
    features = list(data.legend.foreground)
    if not counts[chosen][:, features].any() or not counts[~chosen][:, features].any():
        raise InputError(
            f"data.blocks of {table.size_m:g} m put all labelled features on one side of the split "
            f"({int((counts[:, features].sum(1) > 0).sum())} blocks hold any): choose a smaller data.blocks.size_m, or "
            "name rasters in data.val"
        )
    parts = np.split(chosen, np.cumsum([grid.counts.shape[0] * grid.counts.shape[1] for grid in grids])[:-1])
    return [grid.blocks(part) for grid, part in zip(grids, parts, strict=True)]


def choose_blocks(counts: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Which blocks to hold out, from the labelled pixels of each class in each: (blocks, C) -> (blocks,) bool.

    Blocks come in random order; one is held out when that brings the held-out shares of all classes nearer to `share`.
    A class that is then still missing from the held-out blocks takes the block with the fewest of its pixels, if
    another block is left with it.
    """
    total = counts.sum(0)
    parts = counts[:, total > 0] / total[total > 0]  # (blocks, classes present): share of each class
    chosen = np.zeros(len(parts), np.bool_)
    held_out = np.zeros(parts.shape[1])
    for i in np.random.default_rng(seed).permutation(np.flatnonzero(parts.any(1))):
        if _miss(held_out + parts[i], share) < _miss(held_out, share):
            chosen[i] = True
            held_out += parts[i]
    for c in range(parts.shape[1]):
        holders = np.flatnonzero(parts[:, c])
        if not chosen[holders].any() and len(holders) > 1:
            chosen[holders[np.argmin(parts[holders, c])]] = True
    return chosen


def _miss(held_out: NDArray[np.float64], share: float) -> float:
    return float(((held_out - share) ** 2).sum())


class _Grid:
    """The blocks of one raster and the labelled pixels of each class in each, (rows, columns, C)."""

    def __init__(self, source: LabelledRaster, data: DataTable, table: BlocksTable) -> None:
        scene = Scene.open(source.raster)
        gsd = min(scene.gsd_m or (1.0, 1.0))
        self.size = max(round(table.size_m / gsd), 1)
        self.buffer = min(math.ceil(table.buffer_m / gsd), self.size // 2)
        height, width = scene.geobox.shape
        shape = (math.ceil(height / self.size), math.ceil(width / self.size))
        self.counts = np.zeros((*shape, len(data.legend)), np.int64)
        for i, j in np.ndindex(shape):
            top, left = i * self.size, j * self.size
            box = shifted(scene.geobox, top, left, (min(self.size, height - top), min(self.size, width - left)))
            labels = labels_on(source, box, data)
            known = labels[labels < len(data.legend)]
            self.counts[i, j] = np.bincount(known, minlength=len(data.legend))

    def blocks(self, chosen: NDArray[np.bool_]) -> Blocks:
        """These blocks, with `chosen` (rows x columns,) held out."""
        val = chosen.reshape(self.counts.shape[:2])
        return Blocks(self.size, self.buffer, tuple(tuple(row) for row in val.tolist()))


def write_blocks(sources: Sequence[LabelledRaster], path: Path) -> Path:
    """Write the blocks of `sources` as GeoJSON polygons (EPSG:4326) with ``raster`` and ``split``, to look at in QGIS.

    Blocks of rasters without a CRS keep their raster's coordinates.
    """
    rows = [row for source in sources for row in _block_table(source).to_dict("records")]
    geopandas.GeoDataFrame(rows, crs="EPSG:4326").to_file(path, driver="GeoJSON")
    return path


def _block_table(source: LabelledRaster) -> geopandas.GeoDataFrame:
    grid = Scene.open(source.raster).geobox
    if grid.crs is None:
        return geopandas.GeoDataFrame(list(_block_rows(source, grid)))
    return geopandas.GeoDataFrame(list(_block_rows(source, grid)), crs=grid.crs.proj).to_crs("EPSG:4326")


def _block_rows(source: LabelledRaster, grid: GeoBox) -> Iterator[dict[str, Any]]:
    assert source.blocks is not None
    size, (height, width) = source.blocks.size, grid.shape
    for (i, j), held_out in np.ndenumerate(np.array(source.blocks.val)):
        top, left = i * size, j * size
        box = shifted(grid, top, left, (min(size, height - top), min(size, width - left)))
        yield {"raster": source.name, "split": "val" if held_out else "train", "geometry": box.extent.geom}
