"""Source files: which files a scene is made of, and what each says about itself before a pixel is read."""

from __future__ import annotations

import glob
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import rasterio
from affine import Affine
from odc.geo.geobox import GeoBox
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import CRSError, RasterioIOError

from uhrseg.errors import InputError
from uhrseg.geo.network import is_remote
from uhrseg.geo.plan import pixel_offset

__all__ = ["RASTER_SUFFIXES", "SourceFile", "examine", "must_agree", "open_dataset", "resolve_sources"]

RASTER_SUFFIXES = (".tif", ".tiff", ".vrt", ".jp2", ".img", ".png", ".jpg", ".jpeg", ".asc", ".bil", ".hgt")
"""Suffixes looked for when a source is a folder."""


@dataclass(frozen=True)
class SourceFile:
    """What one file says about itself: its grid, the bands asked for, and how their values are to be read."""

    path: str
    geobox: GeoBox
    bidx: tuple[int, ...]
    bands: tuple[str, ...]
    dtype: str
    masked: bool
    scales: tuple[float, ...]
    offsets: tuple[float, ...]
    block: tuple[int, int]
    plain_nodata: int | None


def resolve_sources(sources: str | Path | Sequence[str | Path]) -> list[str]:
    """Paths that GDAL opens for files, folders, globs and URLs, in name order within each; `InputError` for none."""
    given = [sources] if isinstance(sources, str | Path) else list(sources)
    paths = [path for source in given for path in _expand(str(source))]
    if not paths:
        raise InputError("no source was given: name a raster, a folder or a glob")
    return paths


def _expand(source: str) -> list[str]:
    if is_remote(source):
        return [f"/vsicurl/{source}" if "://" in source else source]
    path = Path(source).expanduser()
    if path.is_dir():
        found = sorted(str(p) for p in path.iterdir() if p.suffix.lower() in RASTER_SUFFIXES)
        if not found:
            raise InputError(f"{path} holds no raster ({', '.join(RASTER_SUFFIXES)})")
        return found
    if path.exists() or source.startswith("/vsi") or ":" in source:
        return [str(path)]
    found = sorted(glob.glob(str(path)))
    if not found:
        raise InputError(f"{source} does not exist")
    return found


def open_dataset(path: str) -> rasterio.DatasetReader:
    """A handle of its own, not shared between threads; `InputError` for what GDAL cannot open."""
    try:
        return rasterio.open(path, sharing=False)
    except RasterioIOError as error:
        raise InputError(f"{path} cannot be opened as a raster: {error}") from error


def examine(path: str, bidx: Sequence[int] | None, nodata: float | None) -> SourceFile:
    """Open a file and read its header; `InputError` for what a scene cannot be made of."""
    with open_dataset(path) as dataset:
        bands = _choose_bands(dataset, path, bidx)
        picked = [b - 1 for b in bands]
        _must_be_numbers(dataset, path, picked)
        flags = [dataset.mask_flag_enums[b] for b in picked]
        return SourceFile(
            path=path,
            geobox=_geobox(dataset, path),
            bidx=bands,
            bands=tuple(_band_name(dataset, b) for b in bands),
            dtype=str(np.result_type(*(dataset.dtypes[b] for b in picked))),
            masked=nodata is None
            and not _only_nan(dataset, picked)
            and any(MaskFlags.all_valid not in f for f in flags),
            scales=tuple(dataset.scales[b] for b in picked),
            offsets=tuple(dataset.offsets[b] for b in picked),
            block=dataset.block_shapes[picked[0]],
            plain_nodata=_plain_nodata(dataset, picked),
        )


def _only_nan(dataset: rasterio.DatasetReader, picked: list[int]) -> bool:
    """Whether NaN alone means nodata: what is not finite is nodata anyway, so that no mask need be read."""
    return all(dataset.mask_flag_enums[b] == [MaskFlags.nodata] and math.isnan(dataset.nodatavals[b]) for b in picked)


def _plain_nodata(dataset: rasterio.DatasetReader, picked: list[int]) -> int | None:
    """The integer that alone decides what is valid, or None: other bands, masks or alpha have a say, or a fraction."""
    values = {dataset.nodatavals[b] for b in picked}
    if len(values) > 1 or any(dataset.mask_flag_enums[b] != [MaskFlags.nodata] for b in picked):
        return None
    (value,) = values
    kinds = {np.dtype(dataset.dtypes[b]) for b in picked}
    if value is None or not float(value).is_integer() or any(k.kind not in "ui" for k in kinds):
        return None
    return int(value) if all(np.iinfo(k).min <= value <= np.iinfo(k).max for k in kinds) else None


def _choose_bands(dataset: rasterio.DatasetReader, path: str, bidx: Sequence[int] | None) -> tuple[int, ...]:
    if dataset.count == 0:
        names = dataset.subdatasets[:1]
        hint = f": name one of its parts, e.g. {names[0]}" if names else ""
        raise InputError(f"{path} has no bands{hint}")
    if bidx is None:
        return tuple(i for i in dataset.indexes if dataset.colorinterp[i - 1] is not ColorInterp.alpha) or tuple(
            dataset.indexes
        )
    outside = [b for b in bidx if b not in dataset.indexes]
    if outside:
        raise InputError(f"{path} has bands 1 to {dataset.count}, not {outside[0]}: correct --bidx")
    return tuple(bidx)


def _must_be_numbers(dataset: rasterio.DatasetReader, path: str, picked: list[int]) -> None:
    for b in picked:
        if dataset.dtypes[b].startswith("c"):
            raise InputError(
                f"{path} holds complex values ({dataset.dtypes[b]}): write its amplitude to a new file first"
            )
        if dataset.colorinterp[b] is ColorInterp.palette:
            raise InputError(
                f"{path} is a palette image, whose values are colour numbers: expand it with gdal_translate -expand rgb"
            )


def _band_name(dataset: rasterio.DatasetReader, band: int) -> str:
    described = dataset.descriptions[band - 1]
    kind = dataset.colorinterp[band - 1]
    named = kind.name if kind in (ColorInterp.red, ColorInterp.green, ColorInterp.blue) else f"band{band}"
    return described or named


def _geobox(dataset: rasterio.DatasetReader, path: str) -> GeoBox:
    affine = dataset.transform
    if affine == Affine.identity() and dataset.gcps[0]:
        raise InputError(
            f"{path} has ground control points but no geotransform: rectify it first with gdalwarp {path} rectified.tif"
        )
    if affine.is_degenerate:
        raise InputError(
            f"{path} has pixels of no size (geotransform {tuple(affine)[:6]}): set it with gdal_edit -a_ullr"
        )
    try:
        crs = dataset.crs.to_wkt() if dataset.crs else None
        return GeoBox((dataset.height, dataset.width), affine, crs)
    except (CRSError, ValueError) as error:
        raise InputError(
            f"{path} has a CRS that cannot be understood ({error}): set it with gdal_edit -a_srs"
        ) from error


def must_agree(first: SourceFile, other: SourceFile) -> None:
    """Raise `InputError` unless two files can be parts of one scene; the message names both."""
    pairs = {
        "CRS": (first.geobox.crs, other.geobox.crs),
        "number of bands": (len(first.bands), len(other.bands)),
        "data type": (first.dtype, other.dtype),
        "scale of values": (first.scales + first.offsets, other.scales + other.offsets),
    }
    for what, (a, b) in pairs.items():
        if a != b:
            raise InputError(
                f"{first.path} and {other.path} differ in {what} ({a} against {b}): one scene needs one; "
                "convert one of them, e.g. with gdalwarp -t_srs ... -tr ... -tap"
            )
    try:
        pixel_offset(first.geobox, other.geobox)
    except InputError as error:
        raise InputError(f"{first.path} and {other.path}: {error}") from error
