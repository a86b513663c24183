"""Whether label files can belong to the rasters they are given with, judged before any pixel is read."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pyproj
from odc.geo.geobox import GeoBox
from shapely import box

from uhrseg.errors import InputError
from uhrseg.geo.labels import VECTOR_SUFFIXES, crs_name, layer_facts
from uhrseg.geo.source import open_dataset

__all__ = ["must_belong"]

Bounds = tuple[float, float, float, float]  # left, bottom, right, top


def must_belong(labels: str | Path, rasters: Mapping[Path, GeoBox]) -> None:
    """Refuse a label file (or AOI) that lies on none of `rasters` (path: grid), is empty, or is of another size.

    A raster without georeference must have the size of the raster it labels, since nothing else says where it lies.
    Raises `InputError` naming the file and what to do.
    """
    path = Path(labels)
    if path.suffix.lower() in VECTOR_SUFFIXES:
        _vector_must_belong(path, rasters)
    else:
        _raster_must_belong(path, rasters)


def _raster_must_belong(path: Path, rasters: Mapping[Path, GeoBox]) -> None:
    with open_dataset(str(path)) as dataset:
        shape, placed = dataset.shape, not dataset.transform.is_identity
        bounds = GeoBox(shape, dataset.transform, None).boundingbox.bbox
    for raster, grid in rasters.items():
        if shape != grid.shape and not (placed and not grid.affine.is_identity):
            raise InputError(
                f"{path} has {shape[1]} x {shape[0]} pixels, but {raster}, which it labels, has {grid.shape[1]} x "
                f"{grid.shape[0]}: labels without georeference must have their raster's size"
            )
    if placed and not any(_meet(bounds, grid.boundingbox.bbox) for grid in rasters.values()):
        raise InputError(
            f"{path} ({_extent(bounds)}) lies nowhere on {_which(rasters)}: check data.labels and its georeference"
        )


def _vector_must_belong(path: Path, rasters: Mapping[Path, GeoBox]) -> None:
    facts = layer_facts(path)
    if not facts["features"]:
        raise InputError(
            f"{path} (layer {facts['layer']!r}) has no polygons: save the layer's edits in QGIS, or name another"
        )
    bounds, crs = tuple(facts["total_bounds"]), facts["crs"]
    if not any(_meet(bounds, _bounds(grid, crs, path, raster)) for raster, grid in rasters.items()):
        raise InputError(
            f"{path} ({crs_name(crs)}, {_extent(bounds)}) lies nowhere on {_which(rasters)}: name the right file, or "
            "give the layer its true CRS (ogr2ogr -a_srs)"
        )


def _bounds(grid: GeoBox, crs: pyproj.CRS | None, path: Path, raster: Path) -> Bounds:
    """The raster's bounding box in `crs`."""
    bounds: Bounds = grid.boundingbox.bbox
    if (crs is None) != (grid.crs is None):
        raise InputError(
            f"{path} is in {crs_name(crs)}, but {raster} is in {crs_name(grid.crs)}: give both their CRS "
            "(in QGIS: Assign projection; ogr2ogr -a_srs, gdal_edit -a_srs)"
        )
    if crs is None or grid.crs is None or grid.crs.proj == crs:
        return bounds
    return pyproj.Transformer.from_crs(grid.crs.proj, crs, always_xy=True).transform_bounds(*bounds)


def _meet(one: tuple[float, ...], other: tuple[float, ...]) -> bool:
    return bool(box(*one).intersects(box(*other)))


def _which(rasters: Mapping[Path, GeoBox]) -> str:
    """The raster in question with its extent, or how many there are."""
    raster, grid = next(iter(rasters.items()))
    one = f"{raster} ({crs_name(grid.crs)}, {_extent(grid.boundingbox.bbox)})"
    return one if len(rasters) == 1 else f"any of the {len(rasters)} rasters it is for, such as {one}"


def _extent(bounds: tuple[float, ...]) -> str:
    left, bottom, right, top = bounds
    return f"x {left:.6g} to {right:.6g}, y {bottom:.6g} to {top:.6g}"
