"""Reference labels, raster or vector, on the pixels of a GeoBox."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.errors import RasterioError
from rasterio.features import rasterize
from rasterio.windows import Window

from uhrseg.errors import InputError, RunError
from uhrseg.geo.label_values import IGNORED, SKIPPED, translated, value_meaning
from uhrseg.geo.plan import pixel_offset
from uhrseg.geo.source import open_dataset
from uhrseg.legend import Legend

__all__ = [
    "VECTOR_SUFFIXES", "crs_name", "geometry_layer", "geometry_layers", "layer_facts", "read_area", "read_labels",
]  # fmt: skip

VECTOR_SUFFIXES = (".gpkg", ".fgb", ".geojson", ".json", ".shp")
"""Files with these suffixes are vector labels, all others raster labels."""

_COLUMNS = ("class_id", "class")
"""Where a class is looked for when no column is named."""

_SNAP = 6
"""Decimals of pixel coordinates kept, so that every window decides alike on edges through pixel centres."""


def read_labels(
    source: str | Path,
    geobox: GeoBox,
    legend: Legend,
    column: str | Sequence[str] | None = None,
    values: Mapping[str, str] | None = None,
    every: str | None = None,
) -> NDArray[np.uint8]:
    """Class ids (Y, X) uint8 on `geobox`, which may be any window of the labels' area or reach outside it.

    Raster labels lie on the same pixel lattice and in the same CRS; their nodata, masked and outside pixels become
    ``legend.ignore``. Vector labels are polygons in any CRS; `column` holds class ids or class names (default:
    ``class_id``, else ``class``), `values` gives the class names of attribute values that are neither ("ignore":
    ``legend.ignore``; "skip": the polygon is left out), and with `every` no column is read: each polygon is of that
    class. For raster labels `values` gives the class name of every value, or of every colour ("#rrggbb") of a palette.
    A pixel takes the class of the polygon over its centre, of the last one (by feature id) where several overlap, and
    ``legend.background`` (``legend.ignore`` without one) where none is.
    Only what lies under `geobox` is read. Raises `InputError` for labels that fit neither grid nor legend.
    """
    if not 0 <= legend.ignore <= 255:
        raise InputError(f"ignore = {legend.ignore} does not fit the 8 bits of labels: choose a value from 0 to 255")
    path = Path(source)
    if path.suffix.lower() in VECTOR_SUFFIXES:
        background = legend.ignore if legend.background is None else legend.background
        if every is not None:
            table = _polygons(path, geobox, [])
            return _burn(table, np.full(len(table), legend.ids_of([every])[0], np.uint8), geobox, background)
        column = _column(path, column)
        table = _polygons(path, geobox, [column])
        drawn = [(values or {}).get(_text(value)) != SKIPPED for value in table[column]]
        table = table[np.array(drawn, np.bool_)]
        return _burn(table, _class_ids(path, column, table[column].to_numpy(), legend, values), geobox, background)
    if every is not None:
        raise InputError(
            f"{path} is a raster of class ids, but label_class says what polygons are: leave it out "
            "or give vector labels"
        )
    return _read_raster(path, geobox, legend, values)


def read_area(
    source: str | Path, geobox: GeoBox, column: str | Sequence[str] | None = None, name: str = ""
) -> NDArray[np.bool_]:
    """Whether each pixel (Y, X) of `geobox` has its centre in a polygon of `source`, a vector file in any CRS.

    With `column` (of several the first that exists) only the polygons count whose value there is `name`.
    """
    path = Path(source)
    if column is None:
        table = _polygons(path, geobox, [])
    else:
        column = _column(path, column)
        table = _polygons(path, geobox, [column])
        table = table[np.array([_text(value) == name for value in table[column]], np.bool_)]
    return _burn(table, np.ones(len(table), np.uint8), geobox, 0).astype(np.bool_)


def _read_raster(path: Path, geobox: GeoBox, legend: Legend, values: Mapping[str, str] | None) -> NDArray[np.uint8]:
    labels = np.full(geobox.shape, legend.ignore, np.uint8)
    with open_dataset(str(path)) as dataset:
        if dataset.count != 1:
            raise InputError(
                f"{path} has {dataset.count} bands, but labels are one band of class ids: name that band's file"
            )
        crs = dataset.crs.to_wkt() if dataset.crs else None
        grid = GeoBox(dataset.shape, dataset.transform, crs)
        _must_share_grid(path, grid, geobox)
        if not values and dataset.nodata is not None and dataset.nodata in range(len(legend)):
            raise InputError(
                f"{path} declares nodata = {dataset.nodata:g}, which is also the class "
                f"{legend.names[int(dataset.nodata)]!r}: take nodata away (gdal_edit -unsetnodata) or renumber"
            )
        row, col = pixel_offset(grid, geobox)
        rows, cols = _inside(row, geobox.shape[0], grid.shape[0]), _inside(col, geobox.shape[1], grid.shape[1])
        if not rows or not cols:
            return labels
        window = Window(cols.start, rows.start, len(cols), len(rows))
        try:
            found = dataset.read(1, window=window, masked=True)
        except RasterioError as error:
            raise RunError(f"{path} cannot be read, its file may be damaged: {error}") from error
        meaning = {} if not values else value_meaning(path, dataset, legend, values)
    part = labels[rows.start - row : rows.stop - row, cols.start - col : cols.stop - col]
    known = ~np.ma.getmaskarray(found)
    if values:
        part[known] = translated(path, found.data[known], meaning)
    else:
        _must_be_classes(path, np.unique(found.data[known]), legend)
        part[known] = found.data[known]
    return labels


def _inside(start: int, length: int, limit: int) -> range:
    """The pixels of an interval that lie in 0 to `limit`."""
    return range(max(start, 0), min(start + length, limit))


def _must_share_grid(path: Path, grid: GeoBox, geobox: GeoBox) -> None:
    if grid.crs != geobox.crs:
        raise InputError(
            f"{path} is in {crs_name(grid.crs)}, but the raster it labels is in {crs_name(geobox.crs)}: "
            "warp it to the raster's grid (gdalwarp -t_srs ... -r near), or give vector labels"
        )
    try:
        pixel_offset(grid, geobox)
    except InputError as error:
        raise InputError(f"{path} is not on the grid of the raster it labels: {error}") from error


def _must_be_classes(path: Path, values: NDArray[np.generic], legend: Legend) -> None:
    """Refuse a value that is neither a class id nor the ignore value."""
    for value in values.tolist():
        if value not in range(len(legend)) and value != legend.ignore:
            raise InputError(
                f"{path} holds the value {value:g}, which is no class of the legend "
                f"(0 to {len(legend) - 1}, ignore {legend.ignore}): correct the labels or the legend"
            )


def layer_facts(path: Path) -> dict[str, Any]:
    """Facts of the one layer with geometries: ``layer``, ``fields``, ``features``, ``total_bounds``, ``crs``.

    The CRS is a `pyproj.CRS` or None. Raises `InputError` for a file that cannot be opened or has no such layer.
    """
    layer = geometry_layer(path)
    info = pyogrio.read_info(path, layer=layer, force_feature_count=True, force_total_bounds=True)
    return info | {"layer": layer, "crs": None if info["crs"] is None else pyproj.CRS.from_user_input(info["crs"])}


def _polygons(path: Path, geobox: GeoBox, columns: list[str]) -> geopandas.GeoDataFrame:
    """The polygons around `geobox`, in the order of their feature ids."""
    layer = geometry_layer(path)
    info = pyogrio.read_info(path, layer=layer)
    crs = None if info["crs"] is None else pyproj.CRS.from_user_input(info["crs"])
    if (crs is None) != (geobox.crs is None):
        raise InputError(
            f"{path} is in {crs_name(crs)}, but the raster it labels is in {crs_name(geobox.crs)}: "
            "give both their CRS (ogr2ogr -a_srs, gdal_edit -a_srs)"
        )
    try:
        table = pyogrio.read_dataframe(path, layer=layer, columns=columns, bbox=_bounds(geobox, crs), fid_as_index=True)
    except (pyogrio.errors.DataSourceError, pyogrio.errors.FeatureError, shapely.errors.GEOSException) as error:
        raise RunError(f"{path} cannot be read, its file may be damaged: {error}") from error
    table = table.sort_index()  # a spatial index answers in an order of its own
    table = table[~(table.geometry.isna() | table.geometry.is_empty)]
    wrong = set(table.geom_type) - {"Polygon", "MultiPolygon"}
    if wrong:
        raise InputError(
            f"{path} holds {', '.join(sorted(wrong))}, but labels are polygons: convert them first "
            "(in QGIS: Buffer, or Lines to polygons)"
        )
    return table


def geometry_layers(path: Path) -> list[str]:
    """The layers with geometries; `InputError` for what is no vector file, and for GeoParquet, which few GDALs read."""
    if path.suffix.lower() == ".parquet":
        raise InputError(f"{path}: GeoParquet is not read here: convert it (ogr2ogr, or geopandas) to a GeoPackage")
    try:
        return [str(name) for name, geometry in pyogrio.list_layers(path) if geometry is not None]
    except pyogrio.errors.DataSourceError as error:
        raise InputError(
            f"{path} cannot be opened as polygons: name a GeoPackage, FlatGeobuf, GeoJSON or Shapefile"
        ) from error


def geometry_layer(path: Path) -> str:
    """The one layer with geometries; `InputError` for a file without one, or with several."""
    layers = geometry_layers(path)
    if len(layers) != 1:
        raise InputError(f"{path} has {len(layers)} layers of geometries ({', '.join(layers)}), but labels need one")
    return layers[0]


def _column(path: Path, wanted: str | Sequence[str] | None) -> str:
    fields = list(pyogrio.read_info(path, layer=geometry_layer(path))["fields"])
    columns = _COLUMNS if wanted is None else (wanted,) if isinstance(wanted, str) else wanted
    for column in columns:
        if column in fields:
            return column
    raise InputError(
        f"{path} has no column {' or '.join(columns)} (its columns: {', '.join(fields) or 'none'}): name the one that "
        "holds class ids or names (--label-column, in a recipe data.label_column; there data.label_class makes all "
        "polygons one class)"
    )


def _bounds(geobox: GeoBox, crs: pyproj.CRS | None) -> tuple[float, float, float, float]:
    """Where to look for polygons in the labels' CRS: around the box, with a hundredth of its size to spare."""
    left, bottom, right, top = geobox.boundingbox.bbox
    spare_x, spare_y = (right - left) / 100, (top - bottom) / 100
    bounds = left - spare_x, bottom - spare_y, right + spare_x, top + spare_y
    if crs is None or geobox.crs is None or geobox.crs.proj == crs:
        return bounds
    return pyproj.Transformer.from_crs(geobox.crs.proj, crs, always_xy=True).transform_bounds(*bounds)


def _class_ids(
    path: Path, column: str, found: NDArray[np.generic], legend: Legend, values: Mapping[str, str] | None
) -> NDArray[np.uint8]:
    """Class ids (N,) of a column of ids, names or `values`."""
    if any(value is None or value != value or value == "" for value in found):  # NaN differs from itself
        raise InputError(f"{path} has polygons without a {column}: fill that column")
    if not values and found.dtype.kind in "iuf":
        _must_be_classes(path, np.unique(found), legend)
        return found.astype(np.uint8)
    known = {IGNORED: legend.ignore} | {c.name: c.id for c in legend.classes}
    texts = [_text(value) for value in found]
    unknown = sorted(set(texts) - known.keys() - (values or {}).keys())
    if unknown:
        raise InputError(
            f"{path}: {column} holds {', '.join(map(repr, unknown[:5]))}, but the legend has "
            f"{', '.join(legend.names)}: map it in data.label_values, or correct the labels"
        )
    return np.array([known[(values or {}).get(text, text)] for text in texts], np.uint8)


def _text(value: object) -> str:
    """An attribute value as it is written in a recipe: 3 and 3.0 are "3"."""
    return f"{value:g}" if isinstance(value, (int, float, np.number)) else str(value)


def _burn(
    table: geopandas.GeoDataFrame, class_ids: NDArray[np.uint8], geobox: GeoBox, background: int
) -> NDArray[np.uint8]:
    """Rasterise in pixel coordinates, so that rotated and south-up boxes are like any other."""
    if geobox.crs is not None:
        table = table.to_crs(geobox.crs.proj)
    inverse = np.array(~geobox.transform).reshape(3, 3)
    geometries = shapely.transform(
        table.geometry.to_numpy(), lambda xy: (xy @ inverse[:2, :2].T + inverse[:2, 2]).round(_SNAP)
    )
    if not len(geometries):
        return np.full(geobox.shape, background, np.uint8)
    return rasterize(zip(geometries, class_ids, strict=True), geobox.shape, fill=background, dtype="uint8")


def crs_name(crs: CRS | pyproj.CRS | None) -> str:
    """A CRS in a few words."""
    if crs is None:
        return "no CRS"
    known = pyproj.CRS.from_user_input(crs)
    code = known.to_epsg()
    return known.name if code is None else f"EPSG:{code}"
