"""Polygons of a class map, measured, and their files."""

from __future__ import annotations

import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyarrow as pa
import pyogrio
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray

from uhrseg.errors import InputError, RunError
from uhrseg.geo.measure import Measure, measure, pixel_areas, planar
from uhrseg.geo.rings import outlines, pixel_counts
from uhrseg.geo.strips import Components, components, open_map
from uhrseg.geo.style import write_layer_style
from uhrseg.legend import Legend

__all__ = ["DRIVERS", "check_polygon_file", "pixel_areas", "polygon_table", "polygonise", "write_polygons"]

DRIVERS: dict[str, str] = {".gpkg": "GPKG", ".fgb": "FlatGeobuf", ".geojson": "GeoJSON", ".parquet": "Parquet"}
"""GDAL's driver for each suffix (Parquet is written by geopandas)."""

_COLUMNS = {
    "class_id": pa.int32(),
    "class": pa.string(),
    "area_m2": pa.float64(),
    "perimeter_m": pa.float64(),
    "confidence": pa.float64(),
    "compactness": pa.float64(),
    "geom": pa.binary(),
}

_WRITE_ERRORS = (OSError, pyogrio.errors.DataSourceError, pyogrio.errors.DataLayerError, sqlite3.Error)

_CHORD_M = 500.0
"""Longest edge that is reprojected as one: on the ground its middle moves by under 5 mm (length^2 / 8 earth radii)."""


def polygonise(
    labels_path: str | Path,
    confidence_path: str | Path | None,
    legend: Legend,
    classes: Sequence[int],
    min_area_m2: float | None = None,
    strip_rows: int | None = None,
) -> Iterator[geopandas.GeoDataFrame]:
    """The 4-connected components of `classes` in a class map (uint8, one band), as tables of valid polygons.

    They come by their last row, then by their first pixel; columns as `polygon_table`.
    `confidence_path`: a plane on the same grid, uint8, value / 254 = probability (`uhrseg.geo.sink.PlanesSink`).
    Area and perimeter (of all rings) are geodesic for geographic CRS and pseudo-Mercator, else planar, in metres.
    Components under `min_area_m2` are left out. The polygons and their order do not depend on `strip_rows` (rows
    traced at a time; default: about 1 Mpx); for memory see `uhrseg.geo.strips.components`.
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
    in_metres = None if crs is None else measure(crs)
    measured = partial(
        _measured, legend=legend, transform=transform, in_metres=in_metres, min_area_m2=min_area_m2 or 0.0,
        with_confidence=confidence_path is not None, crs=crs,
    )  # fmt: skip
    return map(measured, components(labels_path, confidence_path, classes, strip_rows))


def _measured(
    batch: Components,
    legend: Legend,
    transform: Affine,
    in_metres: Measure | None,
    min_area_m2: float,
    with_confidence: bool,
    crs: Any,
) -> geopandas.GeoDataFrame:
    """Components of enough area as polygons with their attributes."""
    polygons = outlines(batch.edges, transform)
    areas, perimeters = (in_metres or planar(1.0))(polygons)
    unknown = np.full(len(polygons), np.nan)
    table = polygon_table(
        polygons,
        batch.class_ids,
        legend,
        areas=areas if in_metres else unknown,
        perimeters=perimeters if in_metres else unknown,
        confidences=batch.confidences / pixel_counts(batch.edges) / 254 if with_confidence else unknown,
        compactness=4 * np.pi * areas / perimeters**2,
        crs=crs,
    )
    return table[areas >= min_area_m2] if min_area_m2 else table


def polygon_table(
    geometry: NDArray[np.object_],
    class_ids: NDArray[np.int64],
    legend: Legend,
    areas: NDArray[np.float64],
    perimeters: NDArray[np.float64],
    confidences: NDArray[np.float64],
    compactness: NDArray[np.float64],
    crs: Any | None,
) -> geopandas.GeoDataFrame:
    """Polygons (P,) and their attributes (P,) as the table that polygon files hold, NaN for what is not known.

    ``confidence`` is the mean of the confidence plane over the component's pixels, 0 to 1; ``compactness`` is
    4 pi area / perimeter^2 (Polsby and Popper 1991): 1 for a disc, 0.785 for a square. Without a CRS ``area_m2`` and
    ``perimeter_m`` are unknown.
    """
    columns = {
        "class_id": class_ids.astype(np.int32),
        "class": np.array(legend.names, object)[class_ids],
        "area_m2": areas,
        "perimeter_m": perimeters,
        "confidence": confidences,
        "compactness": compactness,
        "geom": geopandas.array.from_shapely(geometry, crs=crs),
    }
    return geopandas.GeoDataFrame(columns, geometry="geom")


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


def write_polygons(
    tables: Iterable[geopandas.GeoDataFrame],
    path: str | Path,
    crs: Any | None,
    legend: Legend,
    layer: str | None = None,
    overwrite: bool = False,
) -> int:
    """Write polygons and return how many; the suffix of `path` chooses the format of `DRIVERS`.

    `tables`: see `polygon_table`. `crs`: theirs, anything pyproj reads, or None. The layer is called `layer` (default:
    the file's stem). A GeoPackage gets a default QGIS style; GeoJSON is reprojected to EPSG:4326 with long edges cut
    up. The file takes its name when it is complete. Memory: one table of polygons; for Parquet all of them.
    Raises `InputError` as `check_polygon_file`, `RunError` when the disk does not take it.
    """
    path = Path(path)
    check_polygon_file(path, crs, overwrite)
    name, driver = layer or path.stem, DRIVERS[path.suffix.lower()]
    draft = path.with_name(f".{path.stem}.partial{path.suffix}")
    _discard(draft)
    try:
        count = _write(tables, draft, None if crs is None else pyproj.CRS.from_user_input(crs), driver, name)
        if driver == "GPKG":
            write_layer_style(draft, name, legend)
        os.replace(draft, path)
    except _WRITE_ERRORS as error:
        raise RunError(f"cannot write {path} ({error}): make room on its disk, or write elsewhere") from error
    finally:
        _discard(draft)
    return count


def _write(
    tables: Iterable[geopandas.GeoDataFrame], draft: Path, crs: pyproj.CRS | None, driver: str, layer: str
) -> int:
    """Write all tables to `draft`, one after the other where the format allows it."""
    if driver == "Parquet":
        return _write_parquet(list(tables), draft, crs)
    if driver == "GeoJSON":
        tables = (_to_lonlat(table, crs) for table in tables)
    batches = _Batches(tables)
    _stream(batches, draft, driver, layer, crs)
    _verify(draft, driver, layer, batches.count)
    return batches.count


def _write_parquet(tables: list[geopandas.GeoDataFrame], draft: Path, crs: pyproj.CRS | None) -> int:
    """Write all tables as one to a new GeoParquet file."""
    nothing = {name: np.empty(0, kind.to_pandas_dtype()) for name, kind in _COLUMNS.items()}
    whole = pd.concat(tables, ignore_index=True) if tables else geopandas.GeoDataFrame(nothing, geometry="geom")
    if crs is not None:
        whole = whole.set_crs(crs, allow_override=True)
    whole.to_parquet(draft)
    return len(whole)


class _Batches:
    """Tables as Arrow record batches, counted; keeps the error that GDAL would make a nameless one of."""

    schema = pa.schema(list(_COLUMNS.items()))

    def __init__(self, tables: Iterable[geopandas.GeoDataFrame]) -> None:
        self.count = 0
        self.error: BaseException | None = None
        self._tables = tables

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from map(self._batch, self._tables)  # while GDAL writes one, its table is gone
        except (Exception, KeyboardInterrupt) as error:
            self.error = error
            raise

    def _batch(self, table: geopandas.GeoDataFrame) -> pa.RecordBatch:
        self.count += len(table)
        columns = {**table, "geom": shapely.to_wkb(table.geometry.array)}
        arrays = [pa.array(columns[name], kind, from_pandas=True) for name, kind in _COLUMNS.items()]
        return pa.RecordBatch.from_arrays(arrays, schema=self.schema)


def _stream(batches: _Batches, draft: Path, driver: str, layer: str, crs: pyproj.CRS | None) -> None:
    """Write batches to a new file in one go: appending would build its spatial index polygon by polygon."""
    options = {}
    if driver == "GeoJSON":
        options = {"RFC7946": "YES", "COORDINATE_PRECISION": 9}  # 0.1 mm
        crs = pyproj.CRS.from_epsg(4326)
    epsg = crs and crs.to_epsg()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "'crs' was not provided", UserWarning)
            pyogrio.write_arrow(
                pa.RecordBatchReader.from_batches(batches.schema, batches),
                draft, layer=layer, driver=driver, geometry_name="geom", geometry_type="Polygon",
                crs=f"EPSG:{epsg}" if epsg else crs and crs.to_wkt("WKT1_GDAL"), **options,
            )  # fmt: skip
    except RuntimeError as error:
        raise batches.error or error from None


def _verify(draft: Path, driver: str, layer: str, count: int) -> None:
    """Read the file back (GDAL does not report every failed write); `OSError` when it is not whole."""
    written = [pyogrio.raw.read_arrow(draft, columns=["class_id"], read_geometry=False)[1].num_rows] if count else []
    if driver == "GPKG":
        with closing(sqlite3.connect(draft)) as database:
            index = f"rtree_{layer}_geom".replace('"', '""')
            written += database.execute(f'SELECT count(*) FROM "{index}"').fetchone()
    if any(n != count for n in written):
        raise OSError(f"{min(written)} of {count} polygons were written")


def _to_lonlat(table: geopandas.GeoDataFrame, crs: Any) -> geopandas.GeoDataFrame:
    """Reproject to EPSG:4326; straight edges on a map are curves there, so long ones get points between."""
    geometry = geopandas.GeoSeries(table.geometry.array, crs=crs)
    if crs.is_projected:
        geometry = geometry.segmentize(_CHORD_M / crs.axis_info[0].unit_conversion_factor)
    return table.set_geometry(geometry.to_crs(4326).array)


def _discard(draft: Path) -> None:
    """Delete a draft and what SQLite left beside it."""
    for suffix in ("", "-journal", "-wal", "-shm"):
        draft.with_name(draft.name + suffix).unlink(missing_ok=True)
