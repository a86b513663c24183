"""Reference labels, raster or vector, on the pixels of a GeoBox."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pyproj
import shapely
from numpy.typing import NDArray
from odc.geo.crs import CRS
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize
from rasterio.windows import Window

from uhrseg.errors import InputError
from uhrseg.geo.plan import pixel_offset
from uhrseg.geo.source import open_dataset
from uhrseg.legend import Legend

__all__ = ["VECTOR_SUFFIXES", "geometry_layer", "read_labels"]

VECTOR_SUFFIXES = (".gpkg", ".fgb", ".geojson", ".json", ".shp")
"""Files with these suffixes are vector labels, all others raster labels."""

_COLUMNS = ("class_id", "class")
"""Where a class is looked for when no column is named."""

_SNAP = 6
"""Decimals of pixel coordinates kept, so that every window decides alike on edges through pixel centres."""


def read_labels(source: str | Path, geobox: GeoBox, legend: Legend, column: str | None = None) -> NDArray[np.uint8]:
    """Class ids (Y, X) uint8 on `geobox`, which may be any window of the labels' area or reach outside it.

    Raster labels lie on the same pixel lattice and in the same CRS; their nodata, masked and outside pixels become
    ``legend.ignore``. Vector labels are polygons in any CRS; `column` holds class ids or class names (default:
    ``class_id``, else ``class``). A pixel takes the class of the polygon over its centre, of the last one (by
    feature id) where several overlap, and ``legend.background`` (``legend.ignore`` without one) where none is.
    Only what lies under `geobox` is read. Raises `InputError` for labels that fit neither grid nor legend.
    """
    if not 0 <= legend.ignore <= 255:
        raise InputError(f"ignore = {legend.ignore} does not fit the 8 bits of labels: choose a value from 0 to 255")
    path = Path(source)
    if path.suffix.lower() in VECTOR_SUFFIXES:
        return _read_vector(path, geobox, legend, column)
    return _read_raster(path, geobox, legend)


def _read_raster(path: Path, geobox: GeoBox, legend: Legend) -> NDArray[np.uint8]:
    labels = np.full(geobox.shape, legend.ignore, np.uint8)
    with open_dataset(str(path)) as dataset:
        if dataset.count != 1:
            raise InputError(
                f"{path} has {dataset.count} bands, but labels are one band of class ids: name that band's file"
            )
        crs = dataset.crs.to_wkt() if dataset.crs else None
        grid = GeoBox(dataset.shape, dataset.transform, crs)
        _must_share_grid(path, grid, geobox)
        if dataset.nodata is not None and dataset.nodata in range(len(legend)):
            raise InputError(
                f"{path} declares nodata = {dataset.nodata:g}, which is also the class "
                f"{legend.names[int(dataset.nodata)]!r}: take nodata away (gdal_edit -unsetnodata) or renumber"
            )
        row, col = pixel_offset(grid, geobox)
        rows, cols = _inside(row, geobox.shape[0], grid.shape[0]), _inside(col, geobox.shape[1], grid.shape[1])
        if not rows or not cols:
            return labels
        window = Window(cols.start, rows.start, len(cols), len(rows))
        found = dataset.read(1, window=window, masked=True)
    part = labels[rows.start - row : rows.stop - row, cols.start - col : cols.stop - col]
    known = ~np.ma.getmaskarray(found)
    _must_be_classes(path, np.unique(found.data[known]), legend)
    part[known] = found.data[known]
    return labels


def _inside(start: int, length: int, limit: int) -> range:
    """The pixels of an interval that lie in 0 to `limit`."""
    return range(max(start, 0), min(start + length, limit))


def _must_share_grid(path: Path, grid: GeoBox, geobox: GeoBox) -> None:
    if grid.crs != geobox.crs:
        raise InputError(
            f"{path} is in {_name(grid.crs)}, but the raster it labels is in {_name(geobox.crs)}: "
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


def _read_vector(path: Path, geobox: GeoBox, legend: Legend, column: str | None) -> NDArray[np.uint8]:
    layer = geometry_layer(path)
    info = pyogrio.read_info(path, layer=layer)
    crs = None if info["crs"] is None else pyproj.CRS.from_user_input(info["crs"])
    if (crs is None) != (geobox.crs is None):
        raise InputError(
            f"{path} is in {_name(crs)}, but the raster it labels is in {_name(geobox.crs)}: "
            "give both their CRS (ogr2ogr -a_srs, gdal_edit -a_srs)"
        )
    column = _column(path, list(info["fields"]), column)
    table = pyogrio.read_dataframe(
        path, layer=layer, columns=[column], bbox=_bounds(geobox, crs), fid_as_index=True
    ).sort_index()  # a spatial index answers in an order of its own
    table = table[~(table.geometry.isna() | table.geometry.is_empty)]
    wrong = set(table.geom_type) - {"Polygon", "MultiPolygon"}
    if wrong:
        raise InputError(f"{path} holds {', '.join(sorted(wrong))}, but labels are polygons: convert them first")
    background = legend.ignore if legend.background is None else legend.background
    return _burn(table, _class_ids(path, column, table[column].to_numpy(), legend), geobox, background)


def geometry_layer(path: Path) -> str:
    """The one layer with geometries; `InputError` for a file without one, or with several."""
    try:
        layers = [name for name, geometry in pyogrio.list_layers(path) if geometry is not None]
    except pyogrio.errors.DataSourceError as error:
        raise InputError(f"{path} cannot be opened as vector labels: {error}") from error
    if len(layers) != 1:
        raise InputError(f"{path} has {len(layers)} layers of geometries ({', '.join(layers)}), but labels need one")
    return str(layers[0])


def _column(path: Path, fields: list[str], wanted: str | None) -> str:
    for column in _COLUMNS if wanted is None else (wanted,):
        if column in fields:
            return column
    raise InputError(
        f"{path} has no column {wanted or ' or '.join(_COLUMNS)}: name the one that holds class ids or names, "
        f"of {', '.join(fields) or 'none'}"
    )


def _bounds(geobox: GeoBox, crs: pyproj.CRS | None) -> tuple[float, float, float, float]:
    """Where to look for polygons in the labels' CRS: around the box, with a hundredth of its size to spare."""
    left, bottom, right, top = geobox.boundingbox.bbox
    spare_x, spare_y = (right - left) / 100, (top - bottom) / 100
    bounds = left - spare_x, bottom - spare_y, right + spare_x, top + spare_y
    if crs is None or geobox.crs is None or geobox.crs.proj == crs:
        return bounds
    return pyproj.Transformer.from_crs(geobox.crs.proj, crs, always_xy=True).transform_bounds(*bounds)


def _class_ids(path: Path, column: str, values: NDArray[np.generic], legend: Legend) -> NDArray[np.uint8]:
    """Class ids (N,) of a column of ids or names."""
    if any(value is None or value != value for value in values):  # NaN differs from itself
        raise InputError(f"{path} has polygons without a {column}: fill that column")
    if values.dtype.kind in "iuf":
        _must_be_classes(path, np.unique(values), legend)
        return values.astype(np.uint8)
    known = {c.name: c.id for c in legend.classes}
    unknown = sorted(set(map(str, values)) - known.keys())
    if unknown:
        raise InputError(f"{path} holds the class {unknown[0]!r}, but the legend has {', '.join(known)}")
    return np.array([known[str(value)] for value in values], np.uint8)


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


def _name(crs: CRS | pyproj.CRS | None) -> str:
    """A CRS in a few words."""
    if crs is None:
        return "no CRS"
    known = pyproj.CRS.from_user_input(crs)
    code = known.to_epsg()
    return known.name if code is None else f"EPSG:{code}"
