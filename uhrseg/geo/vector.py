"""Polygons of a class map, measured, and their files."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from affine import Affine

from uhrseg.errors import InputError, RunError
from uhrseg.geo.measure import Measure, measure, pixel_areas, planar, to_map
from uhrseg.geo.rings import Geometries, unite
from uhrseg.geo.strips import Component, components, open_map
from uhrseg.geo.style import write_layer_style
from uhrseg.legend import Legend

__all__ = ["DRIVERS", "PolygonRecord", "check_polygon_file", "pixel_areas", "polygonise", "write_polygons"]

DRIVERS: dict[str, str] = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON", ".parquet": "Parquet"}
"""GDAL's driver for each suffix (Parquet is written by geopandas)."""

_BATCH = 50_000
"""Polygons written at a time."""

_WRITE_ERRORS = (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, sqlite3.Error)

_CHORD_M = 500.0
"""Longest edge that is reprojected as one: on the ground its middle moves by under 5 mm (length^2 / 8 earth radii)."""


@dataclass(frozen=True, slots=True)
class PolygonRecord:
    """One component in the raster's CRS; ``None`` where the raster has no CRS or no confidence was given.

    ``confidence`` is the mean of the confidence plane over the component's pixels, 0 to 1;
    ``compactness`` is 4 pi area / perimeter^2 (Polsby and Popper 1991): 1 for a disc, 0.785 for a square.
    """

    geometry: shapely.Polygon
    class_id: int
    class_name: str
    area_m2: float | None
    perimeter_m: float | None
    confidence: float | None
    compactness: float


def polygonise(
    labels_path: str | Path,
    confidence_path: str | Path | None,
    legend: Legend,
    classes: Sequence[int],
    min_area_m2: float | None = None,
    strip_rows: int | None = None,
) -> Iterator[PolygonRecord]:
    """The 4-connected components of `classes` in a class map (uint8, one band), as valid polygons.

    `confidence_path`: a plane on the same grid, uint8, value / 254 = probability (`uhrseg.geo.sink.PlanesSink`).
    Area and perimeter (of all rings) are geodesic for geographic CRS and pseudo-Mercator, else planar, in metres.
    Components under `min_area_m2` are left out. The set of polygons does not depend on `strip_rows` (rows read at
    a time; default: about 1 Mpx); memory is that of one strip and of the components that cross its last row.
    Raises `InputError` for `min_area_m2` without a CRS, `RunError` when a file cannot be read.
    """
    with open_map(labels_path) as source:
        crs = None if source.crs is None else pyproj.CRS.from_wkt(source.crs.to_wkt())
        transform = source.transform
    if min_area_m2 is not None and crs is None:
        raise InputError(
            f"{labels_path} has no CRS, so areas in square metres are unknown: leave out the minimal area, "
            "or give the raster a CRS"
        )
    measured = None if crs is None else measure(crs)
    batches = components(labels_path, confidence_path, classes, strip_rows)
    return _records(batches, legend, transform, measured, min_area_m2 or 0.0, confidence_path is not None)


def _records(
    batches: Iterator[list[Component]],
    legend: Legend,
    transform: Affine,
    in_metres: Measure | None,
    min_area_m2: float,
    with_confidence: bool,
) -> Iterator[PolygonRecord]:
    """Unite and measure complete components, a batch at a time."""
    names = legend.names
    for batch in filter(None, batches):
        polygons = _whole(batch)
        pixels = shapely.area(polygons)
        outlines = to_map(polygons, transform)
        areas, perimeters = (in_metres or planar(1.0))(outlines)
        compactness = 4 * np.pi * areas / perimeters**2
        for i in np.flatnonzero(areas >= min_area_m2):
            yield PolygonRecord(
                geometry=outlines[i],
                class_id=batch[i].class_id,
                class_name=names[batch[i].class_id],
                area_m2=float(areas[i]) if in_metres else None,
                perimeter_m=float(perimeters[i]) if in_metres else None,
                confidence=float(batch[i].confidence / pixels[i] / 254) if with_confidence else None,
                compactness=float(compactness[i]),
            )


def _whole(batch: list[Component]) -> Geometries:
    """One polygon (P,) per component, in pixel coordinates."""
    polygons = np.array([component.pieces[0] for component in batch], object)
    parted = np.array([len(component.pieces) > 1 for component in batch])
    pieces = [component.pieces for component, several in zip(batch, parted, strict=True) if several]
    group = np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])
    polygons[parted] = unite(np.array([piece for p in pieces for piece in p], object), group)
    return polygons


def check_polygon_file(path: str | Path, crs: Any | None, overwrite: bool = False) -> None:
    """What `write_polygons` would refuse, before any work: raises `InputError` with the way out."""
    path = Path(path)
    driver = DRIVERS.get(path.suffix.lower())
    if driver is None:
        raise InputError(f"{path} ends in {path.suffix!r}, but polygons are written to {', '.join(DRIVERS)}")
    if not path.parent.is_dir():
        raise InputError(f"cannot write {path}: the folder {path.parent} does not exist, create it first")
    if path.exists() and not overwrite:
        raise InputError(f"{path} exists already: overwrite it (--overwrite), or choose another name")
    if driver == "GeoJSON" and crs is None:
        raise InputError(f"{path} must be in EPSG:4326 (RFC 7946), but the raster has no CRS: write a .gpkg instead")
    if driver == "Parquet" and find_spec("pyarrow") is None:
        raise InputError(f"{path} needs the package pyarrow: install it (pip install pyarrow), or write a .gpkg")


def write_polygons(
    records: Iterable[PolygonRecord],
    path: str | Path,
    crs: Any | None,
    legend: Legend,
    layer: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write polygons and return how many; the suffix of `path` chooses the format of `DRIVERS`.

    `crs`: anything pyproj reads, or None. The columns are ``class_id class area_m2 perimeter_m confidence
    compactness``, the geometries polygons, the layer is called `layer` (default: the file's stem). A GeoPackage
    gets a default QGIS style; GeoJSON is reprojected to EPSG:4326 with long edges cut up. The file takes its
    name when it is complete. Memory: one batch of polygons; for Parquet all of them.
    Raises `InputError` as `check_polygon_file`, `RunError` when the disk does not take it.
    """
    path = Path(path)
    check_polygon_file(path, crs, overwrite)
    name, driver = layer or path.stem, DRIVERS[path.suffix.lower()]
    draft = path.with_name(f".{path.stem}.partial{path.suffix}")
    _discard(draft)
    try:
        count = _write(iter(records), draft, None if crs is None else pyproj.CRS.from_user_input(crs), driver, name)
        if driver == "GPKG":
            write_layer_style(draft, name, legend)
        os.replace(draft, path)
    except _WRITE_ERRORS as error:
        raise RunError(f"cannot write {path} ({error}): make room on its disk, or write elsewhere") from error
    finally:
        _discard(draft)
    return count


def _write(records: Iterator[PolygonRecord], draft: Path, crs: pyproj.CRS | None, driver: str, layer: str) -> int:
    """Write all records to `draft`, in batches where the format can be appended to."""
    if driver == "Parquet":
        frame = _frame(list(records), crs)
        frame.to_parquet(draft)
        return len(frame)
    count = 0
    for number, batch in enumerate(_batches(records)):
        frame = _frame(batch, crs)
        count += len(frame)
        _append(frame, draft, driver, layer, number > 0)
    _verify(draft, driver, layer, count)
    return count


def _verify(draft: Path, driver: str, layer: str, count: int) -> None:
    """Read the file back (GDAL does not report every failed write); `OSError` when it is not whole."""
    written = [len(pyogrio.raw.read(draft, columns=["class_id"], read_geometry=False)[3][0])] if count else []
    if driver == "GPKG":
        with closing(sqlite3.connect(draft)) as database:
            index = f"rtree_{layer}_geom".replace('"', '""')
            written += database.execute(f'SELECT count(*) FROM "{index}"').fetchone()
    if any(n != count for n in written):
        raise OSError(f"{min(written)} of {count} polygons were written")


def _batches(records: Iterator[PolygonRecord]) -> Iterator[list[PolygonRecord]]:
    """Lists of records; the first one may be empty, so that a file without polygons has its columns too."""
    yield list(islice(records, _BATCH))
    while batch := list(islice(records, _BATCH)):
        yield batch


def _frame(records: list[PolygonRecord], crs: pyproj.CRS | None) -> geopandas.GeoDataFrame:
    """Records as a table with the columns of the contract."""
    columns = {
        "class_id": np.array([r.class_id for r in records], np.int32),
        "class": np.array([r.class_name for r in records], object),
        "area_m2": np.array([r.area_m2 for r in records], np.float64),  # None becomes NaN, written as null
        "perimeter_m": np.array([r.perimeter_m for r in records], np.float64),
        "confidence": np.array([r.confidence for r in records], np.float64),
        "compactness": np.array([r.compactness for r in records], np.float64),
        "geom": geopandas.array.from_shapely([r.geometry for r in records], crs=crs),
    }
    return geopandas.GeoDataFrame(columns, geometry="geom")


def _append(frame: geopandas.GeoDataFrame, draft: Path, driver: str, layer: str, append: bool) -> None:
    """Write a table to a new file, or to the end of one."""
    options = {}
    if driver == "GeoJSON":
        frame = _to_lonlat(frame)
        options = {"RFC7946": "YES", "COORDINATE_PRECISION": 9}  # 0.1 mm
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
        pyogrio.write_dataframe(
            frame, draft, layer=layer, driver=driver, geometry_type="Polygon", append=append, **options
        )


def _to_lonlat(frame: geopandas.GeoDataFrame) -> geopandas.GeoDataFrame:
    """Reproject to EPSG:4326; straight edges on a map are curves there, so long ones get points between."""
    if frame.crs.is_projected:
        chord = _CHORD_M / frame.crs.axis_info[0].unit_conversion_factor
        frame = frame.set_geometry(frame.geometry.segmentize(chord))
    return frame.to_crs(4326)


def _discard(draft: Path) -> None:
    """Delete a draft and what SQLite left beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
