"""The coarse grid: every context window is a slice of it, and the scene's mean is read off it.

A cell is the mean of the valid pixels of its block of ``factor`` x ``factor`` pixels, anchored at the scene's
origin. Overviews in the file are never used: nobody can tell how they were made.
"""

from __future__ import annotations

import json
import logging
import math
import os
import uuid
import weakref
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.windows import Window

from uhrseg.errors import RunError
from uhrseg.geo.ahead import in_order
from uhrseg.geo.bands import Derived
from uhrseg.geo.plan import coarse_geobox, shifted
from uhrseg.geo.scene import Scene, block_pixels

__all__ = ["Coarse", "block_means", "build_coarse", "cached_coarse", "coarse_bytes", "read_blocks"]

_log = logging.getLogger(__name__)

_IN_MEMORY = 64 << 20  # larger grids go to a file: memory must not grow with the scene
_BLOCK_PIXELS = 1 << 20  # pixels read at once by the streaming pass
_CELL_BYTES = 4
_BLOCK = 256  # side of the grid file's blocks in cells
_SAMPLED_BLOCKS = 12  # of about 1 Mpx, for the mean alone


class Coarse:
    """The coarse grid of a scene's derived bands, and `padding`.

    `padding` (C,) float32 is what invalid and outside pixels take: the scene's mean for raw bands, 0 for relief.
    Without a context factor there is no grid and `read` must not be called. The grid's file goes with `close`, at the
    end of a `with` block, or when nobody holds the grid any more.
    """

    def __init__(self, padding: NDArray[np.float32], path: str | None, owned: bool = True) -> None:
        self.padding = padding
        self._path = path
        self._grid = Scene.open(path) if path else None
        self._remove = weakref.finalize(self, _delete, path if owned else None)

    def __reduce__(self) -> tuple[Any, ...]:
        """A copy in another process reads the same file, which must be on disk, and does not remove it."""
        if self._path and self._path.startswith("/vsimem/"):
            raise TypeError("a coarse grid in memory cannot go to another process: build it with in_memory=False")
        return Coarse, (self.padding, self._path, False)

    @property
    def geobox(self) -> GeoBox:
        """Grid of the cells."""
        return self.scene.geobox

    @property
    def bands(self) -> tuple[str, ...]:
        """One name per channel."""
        return self.scene.bands

    @property
    def scene(self) -> Scene:
        """The grid as a scene."""
        assert self._grid is not None, "a single-scale model has no context"
        return self._grid

    def read(self, geobox: GeoBox) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Cells of `geobox`: array (C, Y, X) and valid (Y, X)."""
        return self.scene.read(geobox)

    def close(self) -> None:
        """Remove the grid's file; it may be called again."""
        self._remove()

    def __enter__(self) -> Coarse:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def _delete(path: str | None) -> None:
    if path and rasterio.shutil.exists(path):
        rasterio.shutil.delete(path, driver="GTiff")


def build_coarse(
    derived: Derived,
    factor: int | None,
    folder: Path | None = None,
    how: Literal["average", "decimate"] = "average",
    in_memory: bool = True,
    threads: int = 1,
) -> Coarse:
    """Build the coarse grid and the padding by one streaming pass over the scene.

    Grids up to 64 MB stay in memory if `in_memory`, others go to a file in `folder` (None: always in memory). With
    `factor` None only the padding is computed, and nothing is read when all bands are relief. `how` = "decimate" takes
    the first pixel of each block, for checkpoints that were trained so. `threads` read at once, each about 1 Mpx.
    Raises `RunError` when a read or write fails.
    """
    if factor is None:
        everything = all(derived.is_zero_mean)
        return Coarse(np.zeros(len(derived.bands), np.float32) if everything else _scene_mean(derived), None)
    grid = coarse_geobox(derived.geobox, factor)
    path = _grid_path(grid, len(derived.bands), folder, in_memory)
    sums = _Sums(len(derived.bands))
    try:
        _write_grid(path, grid, derived, factor, how, sums, threads)
    except BaseException as error:  # Ctrl-C too: nobody holds the unfinished file
        _delete(path)
        if isinstance(error, RasterioError):
            raise RunError(f"the coarse grid {path} cannot be written: {error}") from error
        raise
    return Coarse(sums.padding(derived), path)


def cached_coarse(
    derived: Derived,
    factor: int | None,
    folder: Path,
    how: Literal["average", "decimate"] = "average",
    threads: int = 1,
) -> Coarse:
    """The coarse grid and the padding kept in `folder`, built there by `build_coarse`'s rules unless they are complete.

    The files stay; a grid that is not what was written is built again. Whoever calls answers for the scene being the
    same. Raises `RunError` when a read or write fails.
    """
    grid, note = folder / "coarse.tif", folder / "coarse.json"
    if not _is_kept(grid, note):
        note.unlink(missing_ok=True)
        padding = _keep(derived, factor, grid, how, threads)
        facts = {"padding": [float(p) for p in padding], "crc32": _crc32(grid) if factor else None}
        draft = note.with_suffix(".draft")
        draft.write_text(json.dumps(facts), encoding="utf-8")
        os.replace(draft, note)
    padding = np.array(json.loads(note.read_text(encoding="utf-8"))["padding"], dtype=np.float32)
    return Coarse(padding, str(grid) if factor else None, owned=False)


def _is_kept(grid: Path, note: Path) -> bool:
    """Whether the padding is there, and the grid, where there is one, as it was written."""
    if not note.is_file():
        return False
    crc32 = json.loads(note.read_text(encoding="utf-8"))["crc32"]
    whole = crc32 is None or (grid.is_file() and _crc32(grid) == crc32)
    if not whole:
        _log.warning("the coarse grid %s is damaged: it is built again", grid)
    return whole


def _crc32(path: Path) -> int:
    crc32 = 0
    with path.open("rb") as file:
        while part := file.read(1 << 20):
            crc32 = zlib.crc32(part, crc32)
    return crc32


def _keep(
    derived: Derived,
    factor: int | None,
    grid: Path,
    how: Literal["average", "decimate"],
    threads: int,
) -> NDArray[np.float32]:
    if factor is None:
        return build_coarse(derived, None).padding
    sums = _Sums(len(derived.bands))
    try:
        _write_grid(str(grid), coarse_geobox(derived.geobox, factor), derived, factor, how, sums, threads)
    except RasterioError as error:
        raise RunError(f"the coarse grid {grid} cannot be written: {error}") from error
    return sums.padding(derived)


def coarse_bytes(derived: Derived, factor: int, height: int, width: int) -> int:
    """Bytes of the grid's blocks under a box of `height` x `width` cells, at most, wherever it lies."""
    sides = zip((height, width), coarse_geobox(derived.geobox, factor).shape, strict=True)
    return math.prod(block_pixels(n, whole, _BLOCK) for n, whole in sides) * len(derived.bands) * _CELL_BYTES


class _Sums:
    """Running float64 sums of the valid pixels, per channel."""

    def __init__(self, channels: int) -> None:
        self.total = np.zeros(channels)
        self.count = 0

    def add(self, part: _Part) -> None:
        self.total += part[0]
        self.count += part[1]

    def padding(self, derived: Derived) -> NDArray[np.float32]:
        mean = self.total / max(self.count, 1)
        return np.where(derived.is_zero_mean, 0, mean).astype(np.float32)


_Part = tuple[NDArray[np.float64], int]
_Cells = tuple[tuple[int, int], _Part, NDArray[np.float32]]


def _sums_of(array: NDArray[np.float32], valid: NDArray[np.bool_]) -> _Part:
    """Sum (C,) and number of the valid pixels of `array` (C, Y, X), whose other pixels are 0."""
    return array.sum(axis=(1, 2), dtype=np.float64), int(valid.sum())


def _scene_mean(derived: Derived) -> NDArray[np.float32]:
    """Mean of the scene; of a large one, of the middles of blocks spread over it: a second reading costs too much."""
    sums = _Sums(len(derived.bands))
    boxes = [box for _, box in read_blocks(derived, 1)]
    chosen = np.unique(np.linspace(0, len(boxes) - 1, _SAMPLED_BLOCKS).round().astype(int))
    for i in chosen:
        box = boxes[i] if len(boxes) <= _SAMPLED_BLOCKS else _middle(boxes[i], _tile(derived))
        sums.add(_sums_of(*derived.read(box)))
    if sums.count == 0:  # nothing but nodata there: read the rest
        for i in np.setdiff1d(np.arange(len(boxes)), chosen):
            sums.add(_sums_of(*derived.read(boxes[i])))
    return sums.padding(derived)


def _middle(box: GeoBox, tile: tuple[int, int]) -> GeoBox:
    """The middle of a block, a quarter of its pixels, moved to where the file's tiles begin: fewer are decoded."""
    height, width = box.shape
    top, left = (length // 4 // side * side for length, side in zip(box.shape, tile, strict=True))
    return shifted(box, top, left, (max(height // 2, 1), max(width // 2, 1)))


def _grid_path(grid: GeoBox, channels: int, folder: Path | None, in_memory: bool) -> str:
    name = f"coarse-{uuid.uuid4().hex}.tif"
    small = in_memory and math.prod(grid.shape) * channels * _CELL_BYTES <= _IN_MEMORY
    return f"/vsimem/{name}" if small or folder is None else str(folder.resolve() / name)


def _write_grid(
    path: str,
    grid: GeoBox,
    derived: Derived,
    factor: int,
    how: Literal["average", "decimate"],
    sums: _Sums,
    threads: int,
) -> None:
    profile = {
        "driver": "GTiff", "dtype": "float32", "nodata": math.nan, "count": len(derived.bands),
        "height": grid.shape[0], "width": grid.shape[1], "transform": grid.affine,
        "crs": grid.crs.to_wkt() if grid.crs else None,
        "tiled": True, "blockxsize": _BLOCK, "blockysize": _BLOCK, "interleave": "band", "bigtiff": "if_safer",
    }  # fmt: skip
    cells_of = block_means if how == "average" else _first_pixels

    def read(place: tuple[tuple[int, int], GeoBox]) -> _Cells:
        array, valid = derived.read(place[1])
        return place[0], _sums_of(array, valid), cells_of(array, valid, factor)

    written = []
    with rasterio.open(path, "w", **profile) as out:
        for (row, col), sums_here, cells in in_order(read, read_blocks(derived, factor), threads):
            sums.add(sums_here)
            window = Window(col // factor, row // factor, cells.shape[2], cells.shape[1])
            out.write(cells, window=window)
            written.append((window, zlib.crc32(np.ascontiguousarray(cells).data)))
    with rasterio.open(path) as grid_file:  # GDAL tells nobody of a block that found no room when the file was closed
        if any(zlib.crc32(grid_file.read(window=window).data) != crc for window, crc in written):
            raise RunError(f"the coarse grid {path} does not read back as it was written: is the disk full?")


def read_blocks(derived: Derived, factor: int) -> Iterator[tuple[tuple[int, int], GeoBox]]:
    """Boxes that cover the scene once, aligned to cells, each with its (row, col), shaped after the file's blocks."""
    height, width = derived.geobox.shape
    tile = _tile(derived)
    side = math.isqrt(_BLOCK_PIXELS)
    # A file of strips is read in full-width bands, a tiled one in squares: either way each block is decoded once.
    cols = width if tile[1] >= width else _multiple(max(side, tile[1]), tile[1])
    rows = max(_BLOCK_PIXELS // max(cols, 1), 1)
    rows = _multiple(rows, max(factor, 16) if tile[1] >= width else tile[0])
    rows, cols = _multiple(rows, factor), _multiple(cols, factor)
    for y in range(0, height, rows):
        for x in range(0, width, cols):
            yield (y, x), shifted(derived.geobox, y, x, (min(rows, height - y), min(cols, width - x)))


def _tile(derived: Derived) -> tuple[int, int]:
    """Height and width of the file's blocks."""
    tile: tuple[int, int] = getattr(derived.scene, "block", (1, derived.geobox.shape[1]))
    return tile


def _multiple(value: int, of: int) -> int:
    return math.ceil(value / of) * of


def block_means(array: NDArray[np.float32], valid: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    """Mean of the valid pixels of each `factor` x `factor` block: (C, Y, X) -> (C, ceil(Y/f), ceil(X/f)), NaN if none.

    Pixels are added one phase after the other, in float64, so that the result does not depend on the array's size.
    """
    shape = (math.ceil(array.shape[1] / factor), math.ceil(array.shape[2] / factor))
    total = np.zeros((array.shape[0], *shape))
    count = np.zeros(shape, dtype=np.int64)
    for y in range(min(factor, array.shape[1])):
        for x in range(min(factor, array.shape[2])):
            part = array[:, y::factor, x::factor]
            good = valid[y::factor, x::factor]
            inside = np.s_[: part.shape[1], : part.shape[2]]
            total[(slice(None), *inside)] += np.where(good, part, 0)
            count[inside] += good
    with np.errstate(invalid="ignore", divide="ignore"):
        return (total / np.where(count, count, np.nan)).astype(np.float32)


def _first_pixels(array: NDArray[np.float32], valid: NDArray[np.bool_], factor: int) -> NDArray[np.float32]:
    return np.where(valid[::factor, ::factor], array[:, ::factor, ::factor], np.float32(np.nan))
