"""Reference labels: every window reads the same pixels, and what fits neither grid nor legend is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.errors import InputError
from uhrseg.geo.labels import read_labels
from uhrseg.geo.vector import polygonise, write_polygons
from uhrseg.legend import Legend, LegendClass

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LEGEND = Legend(tuple(LegendClass(i, n, "#804020") for i, n in enumerate(["background", "mound", "pit"])), background=0)
UTM = "EPSG:32633"
GRIDS = {
    "north_up": GeoBox((40, 50), Affine(2, 0, 500000, 0, -2, 5000000), UTM),
    "south_up": GeoBox((40, 50), Affine(2, 0, 500000, 0, 2, 5000000), UTM),
    "rotated": GeoBox((40, 50), Affine(1.2, 1.6, 500000, 1.6, -1.2, 5000000), UTM),
    "degrees": GeoBox((40, 50), Affine(1e-5, 0, 15, 0, -1e-5, 45), "EPSG:4326"),
    "no_crs": GeoBox((40, 50), Affine.identity(), None),
}
GRID = GRIDS["north_up"]


def image() -> NDArray[np.uint8]:
    noise = np.random.default_rng(0).integers(0, 3, (10, 10), dtype=np.uint8)
    return np.kron(noise, np.ones((4, 5), np.uint8))


def write_raster(path: Path, values: NDArray[np.generic], geobox: GeoBox = GRID, nodata: float | None = None) -> Path:
    bands = values[np.newaxis] if values.ndim == 2 else values
    crs = None if geobox.crs is None else geobox.crs.to_wkt()
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=geobox.height, width=geobox.width, dtype=bands.dtype.name,
        crs=crs, transform=geobox.transform, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(bands)
    return path


def window(geobox: GeoBox, row: int, col: int, height: int, width: int) -> GeoBox:
    return GeoBox((height, width), geobox.transform @ Affine.translation(col, row), geobox.crs)


def write_vector(path: Path, shapes: list[shapely.Geometry], crs: str | None = UTM, **columns: list[object]) -> Path:
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


@pytest.mark.parametrize("name", GRIDS)
@pytest.mark.parametrize("part", [(0, 0, 40, 50), (3, 7, 10, 20), (-5, -6, 20, 90), (39, 49, 5, 5), (100, 0, 4, 4)])
def test_raster_windows_are_slices_and_ignore_outside(
    tmp_path: Path, name: str, part: tuple[int, int, int, int]
) -> None:
    path = write_raster(tmp_path / "l.tif", image(), GRIDS[name])
    row, col, height, width = part
    padded = np.pad(image(), 200, constant_values=255)
    expected = padded[200 + row : 200 + row + height, 200 + col : 200 + col + width]
    np.testing.assert_array_equal(read_labels(path, window(GRIDS[name], *part), LEGEND), expected)


@pytest.mark.parametrize("dtype", ["int16", "float32"])
def test_raster_nodata_becomes_ignore(tmp_path: Path, dtype: str) -> None:
    values = image().astype(dtype)
    values[5:9] = -9999
    path = write_raster(tmp_path / "l.tif", values, nodata=-9999)
    labels = read_labels(path, GRID, replace(LEGEND, ignore=7))
    assert labels.dtype == np.uint8 and (labels[5:9] == 7).all()
    np.testing.assert_array_equal(labels[9:], image()[9:])


@pytest.mark.parametrize(
    ("values", "nodata", "message"),
    [
        (np.full((40, 50), 3, np.uint8), None, r"l\.tif holds the value 3"),
        (np.full((40, 50), 0.5, np.float32), None, "holds the value 0.5"),
        (np.full((40, 50), -1, np.int16), None, "holds the value -1"),
        (np.zeros((40, 50), np.uint8), 0, "nodata = 0, which is also the class 'background'"),
        (np.zeros((3, 40, 50), np.uint8), None, "has 3 bands"),
    ],
)
def test_rasters_that_do_not_fit_the_legend(
    tmp_path: Path, values: NDArray[np.generic], nodata: float | None, message: str
) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(write_raster(tmp_path / "l.tif", values, nodata=nodata), GRID, LEGEND)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (GeoBox((40, 50), GRID.transform, "EPSG:32634"), "EPSG:32633, but the raster it labels is in EPSG:32634"),
        (GeoBox((40, 50), GRID.transform, None), "EPSG:32633, but the raster it labels is in no CRS"),
        (GeoBox((40, 50), Affine(1, 0, 500000, 0, -1, 5000000), UTM), "not on the grid .* pixel size"),
        (GeoBox((40, 50), Affine(2, 0, 500001, 0, -2, 5000000), UTM), "not on the grid .* out of phase"),
    ],
)
def test_rasters_on_another_grid(tmp_path: Path, other: GeoBox, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read_labels(write_raster(tmp_path / "l.tif", image()), other, LEGEND)


@pytest.mark.parametrize("name", ["north_up", "south_up", "rotated", "degrees", "no_crs"])
@pytest.mark.parametrize("column", [None, "class"])
def test_polygons_of_a_map_give_the_map_back(tmp_path: Path, name: str, column: str | None) -> None:
    geobox = GRIDS[name]
    raster = write_raster(tmp_path / "l.tif", image(), geobox)
    crs = None if geobox.crs is None else geobox.crs.proj
    write_polygons(polygonise(raster, None, LEGEND, [1, 2]), tmp_path / "l.gpkg", crs, LEGEND)
    np.testing.assert_array_equal(read_labels(tmp_path / "l.gpkg", geobox, LEGEND, column), image())


@pytest.mark.parametrize("name", ["north_up", "rotated"])
def test_vector_windows_are_slices_of_the_whole(tmp_path: Path, name: str) -> None:
    """Also with edges exactly through pixel centres, which is where windows could decide differently."""
    geobox, rng = GRIDS[name], np.random.default_rng(5)
    corners = rng.integers(0, 80, (30, 4)) / 2  # half pixels
    boxes = [shapely.box(min(a, c), min(b, d), max(a, c) + 3, max(b, d) + 3) for a, b, c, d in corners]
    matrix = np.array(geobox.transform).reshape(3, 3)
    shapes = [shapely.transform(b, lambda xy: xy @ matrix[:2, :2].T + matrix[:2, 2]) for b in boxes]
    path = write_vector(tmp_path / "v.gpkg", shapes, class_id=rng.integers(0, 3, 30).tolist())
    whole = read_labels(path, geobox, LEGEND)
    assert set(np.unique(whole)) == {0, 1, 2}
    for row, col in [(0, 0), (7, 3), (13, 29), (33, 41)]:
        part = read_labels(path, window(geobox, row, col, 7, 9), LEGEND)
        np.testing.assert_array_equal(part, whole[row : row + 7, col : col + 9])


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:32632"])
@pytest.mark.parametrize("suffix", [".gpkg", ".geojson", ".fgb", ".shp"])
def test_polygons_in_another_crs(tmp_path: Path, crs: str, suffix: str) -> None:
    square = shapely.box(500020, 4999940, 500060, 4999980)  # columns 10 to 30, rows 10 to 30
    table = geopandas.GeoDataFrame({"class_id": [1]}, geometry=[square], crs=UTM).to_crs(crs)
    if suffix == ".geojson" and crs != "EPSG:4326":
        pytest.skip("GeoJSON is in EPSG:4326")
    table.to_file(tmp_path / f"v{suffix}")
    labels = read_labels(tmp_path / f"v{suffix}", GRID, LEGEND)
    expected = np.zeros((40, 50), np.uint8)
    expected[10:30, 10:30] = 1
    np.testing.assert_array_equal(labels, expected)


def test_later_polygons_win_however_they_are_found(tmp_path: Path) -> None:
    """Through a spatial index features come in an order of its own."""
    rng = np.random.default_rng(2)
    order = rng.permutation(800)
    squares = [shapely.box(500000 + i % 97, 4999920, 500100.5, 5000000.5 - i % 79) for i in order]
    path = write_vector(tmp_path / "v.gpkg", squares, class_id=[1 + i % 2 for i in order])
    expected = np.zeros((40, 50), np.uint8)
    south, east = np.mgrid[0:40, 0:50] * 2 + 1  # metres from the corner to pixel centres
    for i in order:
        expected[(south > i % 79 - 0.5) & (east > i % 97)] = 1 + i % 2
    labels = read_labels(path, window(GRID, 10, 20, 6, 7), LEGEND)
    np.testing.assert_array_equal(labels, expected[10:16, 20:27])


def test_without_background_unlabelled_ground_is_ignored(tmp_path: Path) -> None:
    path = write_vector(tmp_path / "v.gpkg", [shapely.box(500000, 4999990, 500010, 5000000)], class_id=[2])
    labels = read_labels(path, GRID, replace(LEGEND, background=None))
    assert (labels[:5, :5] == 2).all() and (labels == 255).sum() == 40 * 50 - 25


def test_far_away_polygons_and_empty_geometries(tmp_path: Path) -> None:
    shapes = [shapely.box(0, 0, 1, 1), shapely.Polygon()]
    path = write_vector(tmp_path / "v.gpkg", shapes, class_id=[1, 2])
    assert (read_labels(path, GRID, LEGEND) == 0).all()


SQUARE = shapely.box(500000, 4999990, 500010, 5000000)


@pytest.mark.parametrize(
    ("shape", "crs", "columns", "column", "message"),
    [
        (SQUARE, UTM, {"class_id": [3]}, None, "holds the value 3"),
        (SQUARE, UTM, {"class": ["hut"]}, None, "class holds 'hut', but the legend has background, mound, pit"),
        (SQUARE, UTM, {"class": [None]}, None, "without a class"),
        (SQUARE, UTM, {"kind": [1]}, None, "no column class_id or class .its columns: kind"),
        (SQUARE, UTM, {"class_id": [1]}, "kind", "no column kind"),
        (SQUARE, None, {"class_id": [1]}, None, "is in no CRS, but the raster it labels is in EPSG:32633"),
        (SQUARE.boundary, UTM, {"class_id": [1]}, None, "holds LineString"),
    ],
)
def test_vectors_that_do_not_fit(
    tmp_path: Path, shape: shapely.Geometry, crs: str | None, columns: dict[str, list[object]], column: str | None,
    message: str,
) -> None:  # fmt: skip
    path = write_vector(tmp_path / "v.gpkg", [shape], crs, **columns)
    with pytest.raises(InputError, match=message):
        read_labels(path, GRID, LEGEND, column)


def test_two_layers_and_no_file(tmp_path: Path) -> None:
    table = geopandas.GeoDataFrame({"class_id": [1]}, geometry=[SQUARE], crs=UTM)
    for layer in ("one", "two"):
        table.to_file(tmp_path / "v.gpkg", layer=layer)
    with pytest.raises(InputError, match=r"2 layers of geometries \(one, two\)"):
        read_labels(tmp_path / "v.gpkg", GRID, LEGEND)
    for name in ("none.gpkg", "none.tif"):
        with pytest.raises(InputError, match=f"{name} cannot be opened"):
            read_labels(tmp_path / name, GRID, LEGEND)


def test_ignore_must_fit_a_byte(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="ignore = -1"):
        read_labels(write_raster(tmp_path / "l.tif", image()), GRID, replace(LEGEND, ignore=-1))
