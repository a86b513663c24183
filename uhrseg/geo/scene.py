"""Scenes: one or many raster files seen on one grid.

GDAL's own rules decide what is nodata (https://gdal.org/en/stable/development/rfc/rfc15_nodatabitmask.html): a
nodata value, a mask band or an alpha band; values that are not finite are nodata too.
"""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import rasterio
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer
from rasterio.errors import RasterioError
from rasterio.windows import Window

from uhrseg.errors import RunError
from uhrseg.geo.network import is_remote, refuse_hidden_network
from uhrseg.geo.plan import pixel_offset, shifted
from uhrseg.geo.source import SourceFile, examine, must_agree, open_dataset, resolve_sources

__all__ = [
    "DEFAULT_CACHE",
    "GSD_RANGE",
    "Readable",
    "Scene",
    "block_pixels",
    "gdal_settings",
    "ground_sampling_distance",
    "gsd_fits",
]

GSD_RANGE = (0.8, 1.25)
"""A scene's ground sampling distance may be this many times a model's."""

_NATIVE = ("uint8", "uint16", "float32")
"""Types of values that a device takes as they are."""

DEFAULT_CACHE = 64 << 20
"""Bytes of decoded blocks that GDAL keeps; its own default is 5 % of memory."""

_OPEN_FILES = 32  # per thread and scene: a survey of thousands of tiles must not exhaust file handles


class Readable(Protocol):
    """Anything that gives pixels for a box: a scene, its derived bands, its coarse grid.

    `read` takes a box on the same pixel lattice (it may reach outside) and returns ``array`` (C, Y, X) float32, 0
    where invalid, and ``valid`` (Y, X), true where every band is. It is safe to call from several threads.
    """

    @property
    def geobox(self) -> GeoBox:
        """Grid of the whole raster; its CRS may be None, and it may be rotated or south-up."""

    @property
    def bands(self) -> tuple[str, ...]:
        """One name per channel."""

    def read(self, geobox: GeoBox) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Pixels of `geobox`: array (C, Y, X) and valid (Y, X)."""


@dataclass(frozen=True)
class _File:
    """One file of a scene: where it lies on the scene's grid, and how its values are to be read."""

    path: str
    row: int
    col: int
    height: int
    width: int
    bidx: tuple[int, ...]
    nodata: float | None  # given by the user; None: what the file says
    masked: bool  # whether GDAL has a mask for any of the bands
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    plain_nodata: int | None  # the one integer that means nodata, when GDAL's mask is nothing else


class Scene:
    """One or many rasters on one grid; see `Readable` for `read`.

    Where files overlap, the first valid pixel in name order wins. Nothing is read until `read` is called, and each
    thread opens its own handles. Build it with `Scene.open`.
    """

    def __init__(
        self, files: tuple[_File, ...], geobox: GeoBox, bands: tuple[str, ...], block: tuple[int, int], dtype: str
    ) -> None:
        self.files = files
        self.geobox = geobox
        self.bands = bands
        self.block = block
        self.dtype = dtype
        self._handles = threading.local()

    def __getstate__(self) -> dict[str, Any]:
        return {k: v for k, v in self.__dict__.items() if k != "_handles"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _handles=threading.local())

    @classmethod
    def open(
        cls,
        sources: str | Path | Sequence[str | Path],
        bidx: Sequence[int] | None = None,
        nodata: float | None = None,
        allow_network: bool = False,
    ) -> Scene:
        """Open files, a folder, a glob or URLs as one scene.

        `bidx` picks bands, 1-based (default: all but alpha); `nodata` overrides what the files say. Raises
        `InputError` for files GDAL cannot open, without a geotransform, with complex or palette values, or that
        disagree in CRS, grid, bands or dtype; and for local files that refer to the network without `allow_network`.
        """
        paths = resolve_sources(sources)
        if not allow_network:
            for path in paths:
                refuse_hidden_network(path)
        first: SourceFile | None = None
        opened: list[SourceFile] = []
        with gdal_settings(paths):
            for path in paths:
                one = examine(path, bidx, nodata)
                first = first or one
                must_agree(first, one)
                opened.append(one)
        assert first is not None, "resolve_sources returns at least one path"
        geobox, places = _union([one.geobox for one in opened])
        files = tuple(
            _File(
                o.path, row, col, o.geobox.shape[0], o.geobox.shape[1], o.bidx, nodata, o.masked, o.scales, o.offsets,
                o.plain_nodata,
            )  # fmt: skip
            for o, (row, col) in zip(opened, places, strict=True)
        )
        return cls(files, geobox, first.bands, first.block, first.dtype)

    def close(self) -> None:
        """Close the files that this thread holds open; the next read opens them again."""
        handles = self._handles.__dict__.pop("files", OrderedDict())
        for handle in handles.values():
            handle.close()

    @property
    def paths(self) -> tuple[str, ...]:
        """The files, in the order in which they win."""
        return tuple(f.path for f in self.files)

    @property
    def gsd_m(self) -> tuple[float, float] | None:
        """Ground sampling distance (y, x) in metres at the scene's centre; None without a CRS."""
        return ground_sampling_distance(self.geobox)

    def decoded_bytes(self, height: int, width: int) -> int:
        """Bytes of the decoded file blocks under a box of `height` x `width` pixels, at most, wherever it lies."""
        sides = zip((height, width), self.geobox.shape, self.block, strict=True)
        pixels = math.prod(block_pixels(length, whole, block) for length, whole, block in sides)
        return pixels * len(self.bands) * np.dtype(self.dtype).itemsize

    def read(self, geobox: GeoBox) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
        """Pixels of `geobox`; see `Readable`. Raises `RunError` naming the file when GDAL cannot read it."""
        values, valid = self.read_native(geobox)
        array = values.astype(np.float32, copy=False)
        if not valid.all():
            np.copyto(array, 0, where=~valid)
        return array, valid

    def read_native(self, geobox: GeoBox) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """As `read`, but bytes and 16-bit integers come as they are; invalid pixels may hold anything."""
        row, col = pixel_offset(self.geobox, geobox)
        height, width = geobox.shape
        only = self.files[0]
        if len(self.files) == 1 and _holds(only, row, col, height, width):
            values, good = self._read_file(only, Window(col - only.col, row - only.row, width, height))
            return values.astype(self.native_dtype, copy=False), good
        array = np.zeros((len(self.bands), height, width), dtype=self.native_dtype)  # (C, Y, X)
        valid = np.zeros((height, width), dtype=np.bool_)  # (Y, X)
        for file in self.files:
            rows = _overlap(row, height, file.row, file.height)
            cols = _overlap(col, width, file.col, file.width)
            if rows is None or cols is None:
                continue
            target = np.s_[rows[0] : rows[0] + rows[2], cols[0] : cols[0] + cols[2]]
            before = valid[target]
            if before.all():
                continue
            values, good = self._read_file(file, Window(cols[1], rows[1], cols[2], rows[2]))
            if before.any():
                good &= ~before
                np.copyto(array[(slice(None), *target)], values, where=good)
            else:
                array[(slice(None), *target)] = values
            before |= good
        return array, valid

    @property
    def native_dtype(self) -> np.dtype[Any]:
        """Type of what `read_native` gives."""
        return np.dtype(self.dtype if self.dtype in _NATIVE and self._plain else "float32")

    @property
    def _plain(self) -> bool:
        """Whether the values are used as they are, without scale and offset."""
        return all(s == 1 for f in self.files for s in f.scales) and all(o == 0 for f in self.files for o in f.offsets)

    def _read_file(self, file: _File, window: Window) -> tuple[NDArray[Any], NDArray[np.bool_]]:
        """Values (C, Y, X) of a window, scaled if the file says so, and valid (Y, X)."""
        dataset = self._handle(file.path)
        try:
            values = dataset.read(file.bidx, window=window)  # (C, Y, X)
            good = self._good(file, window, values, dataset)
        except RasterioError as error:
            raise RunError(f"{file.path} cannot be read at {window}: {error}") from error
        is_float = values.dtype.kind == "f"
        if self.dtype not in _NATIVE or not self._plain:
            with np.errstate(over="ignore", invalid="ignore"):
                values = values.astype(np.float32, copy=False)
                if not self._plain:
                    values = values * _column(file.scales) + _column(file.offsets)
        if is_float:
            good &= np.isfinite(values).all(axis=0)
        return values, good

    def _good(
        self, file: _File, window: Window, values: NDArray[Any], dataset: rasterio.DatasetReader
    ) -> NDArray[np.bool_]:
        """Where the file has data (Y, X), by the user's nodata value, else by GDAL's rules."""
        if file.nodata is not None:
            return _differs(values, file.nodata)
        if not file.masked:
            return np.ones(values.shape[1:], dtype=np.bool_)
        if file.plain_nodata is not None:  # what GDAL's mask says, ten times faster
            return _differs(values, values.dtype.type(file.plain_nodata))
        return dataset.read_masks(file.bidx, window=window).all(axis=0)

    def _handle(self, path: str) -> rasterio.DatasetReader:
        handles = self._handles.__dict__.setdefault("files", OrderedDict())
        if path not in handles:
            if len(handles) >= _OPEN_FILES:
                handles.popitem(last=False)[1].close()
            handles[path] = open_dataset(path)
        handles.move_to_end(path)
        return handles[path]


def ground_sampling_distance(geobox: GeoBox) -> tuple[float, float] | None:
    """Ground sampling distance (y, x) in metres at the box's centre; None without a CRS.

    Geodesic on the CRS's ellipsoid for geographic CRS and for Web Mercator (whose metres are not ground metres),
    planar times the CRS unit otherwise.
    """
    if geobox.crs is None:
        return None
    crs, affine = geobox.crs.proj, geobox.affine
    if not crs.is_geographic and crs.to_epsg() != 3857:
        unit = crs.axis_info[0].unit_conversion_factor if crs.axis_info else 1.0
        return math.hypot(affine.b, affine.e) * unit, math.hypot(affine.a, affine.d) * unit
    to_lonlat = Transformer.from_crs(crs, crs.geodetic_crs, always_xy=True)
    y, x = geobox.shape[0] / 2, geobox.shape[1] / 2
    middle, right, below = (to_lonlat.transform(*(affine * p)) for p in ((x, y), (x + 1, y), (x, y + 1)))
    geod = crs.get_geod()
    assert geod is not None, "a CRS on the Earth has an ellipsoid"
    across = geod.inv(*middle, *right)[2]
    down = geod.inv(*middle, *below)[2]
    return float(down), float(across)


def gsd_fits(actual: tuple[float, float], expected: float) -> bool:
    """Whether pixels of `actual` (y, x) metres are near enough to what a model expects: 0.8 to 1.25 times."""
    return all(GSD_RANGE[0] <= a / expected <= GSD_RANGE[1] for a in actual)


def _union(boxes: list[GeoBox]) -> tuple[GeoBox, list[tuple[int, int]]]:
    """The box around all, on the grid of the first, and each one's (row, col) in it."""
    corners = [pixel_offset(boxes[0], box) for box in boxes]
    top, left = min(r for r, _ in corners), min(c for _, c in corners)
    bottom = max(r + b.shape[0] for (r, _), b in zip(corners, boxes, strict=True))
    right = max(c + b.shape[1] for (_, c), b in zip(corners, boxes, strict=True))
    whole = shifted(boxes[0], top, left, (bottom - top, right - left))
    return whole, [(r - top, c - left) for r, c in corners]


def _holds(file: _File, row: int, col: int, height: int, width: int) -> bool:
    """Whether a box lies in a file, wholly."""
    rows = file.row <= row and row + height <= file.row + file.height
    return rows and file.col <= col and col + width <= file.col + file.width


def _overlap(start: int, length: int, other: int, other_length: int) -> tuple[int, int, int] | None:
    """Common part of two intervals: offset in the first, offset in the second, length; None when empty."""
    low, high = max(start, other), min(start + length, other + other_length)
    return (low - start, low - other, high - low) if high > low else None


def block_pixels(length: int, whole: int, block: int) -> int:
    """Pixels in the blocks that an interval can touch, among those of an axis of `whole` pixels."""
    return min(math.ceil((length - 1) / block) + 1, math.ceil(whole / block)) * block


def _differs(values: NDArray[Any], nodata: Any) -> NDArray[np.bool_]:
    """Where every band (C, Y, X) differs from a value; band after band, which needs a third of the memory of all."""
    good: NDArray[np.bool_] = values[0] != nodata  # (Y, X)
    for band in values[1:]:
        good &= band != nodata
    return good


def _column(values: tuple[float, ...]) -> NDArray[np.float32]:
    return np.asarray(values, dtype=np.float32)[:, None, None]  # (C, 1, 1)


@contextmanager
def gdal_settings(sources: Sequence[str] = (), cache_bytes: int = DEFAULT_CACHE) -> Iterator[None]:
    """GDAL options for streaming large rasters (https://gdal.org/en/stable/user/configoptions.html).

    A bounded block cache: rasterio takes bytes where GDAL's own option takes megabytes, so that 64 is no cache at all
    (https://github.com/rasterio/rasterio/pull/1042). For remote sources the folder of every opened file is not listed,
    and a request that a busy server refuses is sent again three times; local ones keep the listing, since masks (.msk)
    and world files (.tfw) are found by it.
    """
    options: dict[str, Any] = {"GDAL_CACHEMAX": cache_bytes}
    if any(is_remote(source) for source in sources):
        options |= {
            "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR",
            "GDAL_HTTP_MAX_RETRY": 3,
            "GDAL_HTTP_RETRY_DELAY": 1,
            "GDAL_HTTP_CONNECTTIMEOUT": 20,
        }
    with rasterio.Env(**options):
        yield
