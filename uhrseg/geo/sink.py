"""Rasters of bytes: pixels go into a tiled partial that takes its name when complete; `publish` makes COGs of such.

The partial is an uncompressed tiled GeoTIFF (rewriting part of a compressed tile leaves the old one in the file),
sparse where nothing was written. GDAL reports some failed writes to nobody: a block that does not fit on the disk
when a dataset closes is dropped, and a truncated COG can be "created" without an error. So every `write` leaves a
checksum, and partial and COG are read back against them before they take their names.
"""

from __future__ import annotations

import os
import shutil
import threading
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio._err import CPLE_BaseError
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.windows import Window

from uhrseg.errors import InputError, RunError
from uhrseg.legend import NODATA

__all__ = ["PROBABILITY_SCALE", "PlanesSink", "Region", "publish", "reads_back", "write_cog"]

PROBABILITY_SCALE = 1 / 254
"""A plane's value times this is a probability (255 is nodata)."""

_BLOCK = 512
"""Side of the tiles in pixels: the default of GDAL's COG driver."""

_LEVEL = 5
"""Of deflate: on class maps 1.5 to 3 times faster than GDAL's 6, files 3 to 18 % larger; probabilities 1.3 and 7 %."""

Region = tuple[int, int, int, int]  # row start, row stop, column start, column stop
_GDAL_ERRORS = (OSError, RasterioError, CPLE_BaseError)


class PlanesSink:
    """Bytes on `geobox` in a tiled GeoTIFF: one uint8 band per name, scale 1/254, nodata 255 (so is what nobody wrote).

    A context manager: leaving it normally closes, an exception aborts. Regions given to `write` are disjoint, or equal
    to one given before (which they replace). Raises `InputError` for a missing folder, `RunError` when the disk does
    not take it.
    """

    def __init__(self, path: str | Path, geobox: GeoBox, names: Sequence[str]) -> None:
        self.path = Path(path)
        if not self.path.parent.is_dir():
            raise InputError(f"cannot write {self.path}: the folder {self.path.parent} does not exist, create it first")
        self.geobox = geobox
        self.names = tuple(names)
        self._draft = self.path.with_name(f".{self.path.name}.partial.tif")
        self._lock = threading.Lock()
        self._checksums: dict[Region, int] = {}
        with _run_errors(self.path):
            self._partial = _create(self._draft, geobox, len(self.names))
        try:
            with _run_errors(self.path):
                self._partial.scales = (PROBABILITY_SCALE,) * len(self.names)
                self._partial.offsets = (0.0,) * len(self.names)
                self._partial.descriptions = self.names
        except RunError:
            self.abort()
            raise

    def write(self, rows: slice, cols: slice, planes: NDArray[np.uint8]) -> None:
        """Write planes (C, Y, X) to a region in pixels of the geobox; any thread may call it."""
        region = (rows.start, rows.stop, cols.start, cols.stop)
        height, width = rows.stop - rows.start, cols.stop - cols.start
        if planes.dtype != np.uint8 or planes.shape != (len(self.names), height, width):
            raise ValueError(
                f"{planes.dtype} {planes.shape} given for uint8 ({len(self.names)}, {height}, {width}) at {region}"
            )
        checksum = 0
        for plane in planes:
            checksum = zlib.crc32(np.ascontiguousarray(plane).data, checksum)
        with self._lock, _run_errors(self.path):
            if self._partial.closed:
                raise ValueError(f"{self.path} takes no more pixels after close()")
            self._partial.write(planes, window=Window(cols.start, rows.start, width, height))
            self._checksums[region] = checksum

    @property
    def checksums(self) -> dict[Region, int]:
        """CRC-32 of every region written."""
        return dict(self._checksums)

    def abort(self) -> None:
        """Leave nothing behind but what was there before."""
        with self._lock:
            self._partial.close()
        _remove(self._draft)

    def close(self) -> None:
        """Give the file its final name; `RunError`, and nothing left behind, when it does not hold what was written."""
        try:
            with self._lock:
                self._partial.close()
            _verify(self._draft, self._checksums, self.path)
            with _run_errors(self.path):
                _rename(self._draft, self.path)
        finally:
            self.abort()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()


def publish(tiled_path: Path, path: Path, checksums: dict[Region, int], resampling: Literal["mode", "average"]) -> None:
    """Make a COG of a raster beside `path`, read it back against `checksums`, and give it its name.

    Raises `RunError`, and leaves nothing behind, when it cannot be written or does not read back.
    """
    draft = path.with_name(f".{path.name}.cog.tif")
    try:
        write_cog(tiled_path, draft, resampling)
        _verify(draft, checksums, path)
        with _run_errors(path):
            _rename(draft, path)
    finally:
        _remove(draft)


def write_cog(tiled_path: Path, path: Path, resampling: Literal["mode", "average"]) -> None:
    """Copy a GeoTIFF to a Cloud Optimized GeoTIFF (https://gdal.org/drivers/raster/cog.html).

    Overviews by `resampling`: ``mode`` for classes, ``average`` for probabilities, which also take a predictor.
    Raises `RunError` and removes `path` when GDAL fails.
    """
    options: dict[str, Any] = {
        "compress": "DEFLATE",
        "level": _LEVEL,
        "blocksize": _BLOCK,
        "overview_resampling": resampling,
        "predictor": "YES" if resampling == "average" else "NO",
        "bigtiff": "IF_SAFER",
        "sparse_ok": True,
        "num_threads": "ALL_CPUS",
    }
    try:
        with _run_errors(path):
            rasterio.shutil.copy(tiled_path, path, driver="COG", **options)
    except RunError:
        _remove(path)
        raise


def _create(path: Path, geobox: GeoBox, count: int) -> rasterio.io.DatasetWriter:
    """An empty tiled GeoTIFF on `geobox`; blocks never written read as nodata and take no space."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        return rasterio.open(
            path,
            "w",
            driver="GTiff",
            height=geobox.height, width=geobox.width, count=count, dtype="uint8", nodata=NODATA,
            crs=None if geobox.crs is None else CRS.from_wkt(geobox.crs.to_wkt()),
            transform=geobox.transform,
            tiled=True, blockxsize=_BLOCK, blockysize=_BLOCK, interleave="band",
            photometric="MINISBLACK",  # three planes are not red, green and blue
            bigtiff="IF_SAFER",
            sparse_ok=True,
        )  # fmt: skip


def _verify(file: Path, checksums: dict[Region, int], path: Path) -> None:
    """Read back every region written; `RunError` when `file` holds anything else."""
    with _run_errors(path):
        intact = _intact(file, checksums)
    if not intact:
        raise _failure(path, "what was written does not read back")


def reads_back(file: Path, checksums: dict[Region, int]) -> bool:
    """Whether a file can be read and holds, in every region, what was written there."""
    try:
        return _intact(file, checksums)
    except _GDAL_ERRORS:
        return False


def _intact(file: Path, checksums: dict[Region, int]) -> bool:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        source = rasterio.open(file)
    with source:
        return all(_checksum(source, region) == value for region, value in checksums.items())


def _checksum(source: rasterio.io.DatasetReader, region: Region) -> int:
    """CRC-32 of a region, band by band, read a row of tiles at a time."""
    top, bottom, left, right = region
    checksum = 0
    for band in source.indexes:
        for row in range(top, bottom, _BLOCK):
            window = Window(left, row, right - left, min(_BLOCK, bottom - row))
            checksum = zlib.crc32(source.read(band, window=window), checksum)
    return checksum


@contextmanager
def _run_errors(path: Path) -> Iterator[None]:
    """Errors of GDAL and of the file system as one `RunError` about the output."""
    try:
        yield
    except _GDAL_ERRORS as error:
        raise _failure(path, str(error).rstrip(".")) from error


def _failure(path: Path, reason: str) -> RunError:
    free = shutil.disk_usage(path.parent).free / 1e9
    return RunError(f"cannot write {path} ({reason}): {free:.1f} GB are free there, make room or write elsewhere")


def _sidecar(path: Path) -> Path:
    """Where GDAL keeps what a GeoTIFF has no tag for."""
    return path.with_name(path.name + ".aux.xml")


def _rename(draft: Path, path: Path) -> None:
    """Move a finished file and its sidecar to their final names; an old sidecar goes with the old file."""
    if _sidecar(draft).exists():
        os.replace(_sidecar(draft), _sidecar(path))
    else:
        _sidecar(path).unlink(missing_ok=True)
    os.replace(draft, path)


def _remove(draft: Path) -> None:
    """Delete a draft and its sidecar, as far as they exist."""
    draft.unlink(missing_ok=True)
    _sidecar(draft).unlink(missing_ok=True)
