"""Polygons: the same components as the whole raster has, however it is cut into strips; measured in metres."""

from __future__ import annotations

import json
import sqlite3
import subprocess
import sys
import tempfile
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pandas as pd
import pyogrio
import pyproj
import pytest
import rasterio
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import rasterize, shapes
from scipy import ndimage

from uhrseg.errors import InputError, RunError
from uhrseg.geo import strips
from uhrseg.geo.vector import DRIVERS, pixel_areas, polygon_table, polygonise, write_polygons
from uhrseg.legend import Legend, LegendClass

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LEGEND = Legend(tuple(LegendClass(i, name, "#804020") for i, name in enumerate(["background", "a", "b"])), background=0)
UTM = "EPSG:32633"
NORTH_UP = Affine(2, 0, 500000, 0, -2, 5000000)


def write_raster(path: Path, image: NDArray[np.uint8], transform: Affine | None = None, crs: str | None = None) -> Path:
    height, width = image.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=1, dtype="uint8", transform=transform, crs=crs
    ) as target:
        target.write(image, 1)
    return path


def polygons(*args: Any, **options: Any) -> list[Any]:
    """The rows of all tables of `polygonise`."""
    return [row for table in polygonise(*args, **options) for row in rows(table)]


def rows(table: geopandas.GeoDataFrame) -> list[Any]:
    return list(pd.DataFrame(table).rename(columns={"class": "class_name", "geom": "geometry"}).itertuples(index=False))


def four_connected(image: NDArray[np.uint8], value: int) -> tuple[NDArray[np.int32], int]:
    return ndimage.label(image == value)


images = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(
    lambda shape: arrays(np.uint8, shape, elements=st.sampled_from([0, 1, 1, 2, 255]))
)


@settings(max_examples=150, deadline=None)
@given(image=images, strip_rows=st.integers(1, 20), seed=st.integers(0, 9))
def test_any_strip_height_gives_the_components_of_the_whole_raster(
    image: NDArray[np.uint8], strip_rows: int, seed: int
) -> None:
    confidence = np.random.default_rng(seed).integers(0, 255, image.shape, dtype=np.uint8)
    with tempfile.TemporaryDirectory() as folder:
        labels_path = write_raster(Path(folder, "labels.tif"), image)
        confidence_path = write_raster(Path(folder, "confidence.tif"), confidence)
        records = polygons(labels_path, confidence_path, LEGEND, [0, 1, 2], strip_rows=strip_rows)
    geometries = [r.geometry for r in records]
    assert all(g.geom_type == "Polygon" and g.is_valid for g in geometries)
    whole = [(shapely.geometry.shape(g), v) for g, v in shapes(image, mask=image != 255, connectivity=4)]
    assert {(shapely.normalize(r.geometry).wkb, r.class_id) for r in records} == {
        (shapely.normalize(g).wkb, int(v)) for g, v in whole
    }
    for value in (0, 1, 2):
        labelled, count = four_connected(image, value)
        mine = [r for r in records if r.class_id == value]
        assert len(mine) == count
        assert sum(r.geometry.area for r in mine) == (labelled > 0).sum()
        for record in mine:
            inside = rasterize([record.geometry], image.shape).astype(bool)
            assert (np.unique(labelled[inside]) > 0).all() and inside.sum() == record.geometry.area
            assert record.confidence == pytest.approx(confidence[inside].mean() / 254, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(image=images, strip_rows=st.integers(1, 20), batch=st.integers(1, 40))
def test_polygons_come_by_their_last_row_then_by_their_first_pixel(
    image: NDArray[np.uint8], strip_rows: int, batch: int
) -> None:
    """Whatever the strips and batches: the file is the same, to the last bit."""
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        path = write_raster(Path(folder, "labels.tif"), image, NORTH_UP, UTM)
        whole = polygons(path, path, LEGEND, [0, 1, 2])
        patch.setattr(strips, "_BATCH", batch)
        patch.setattr(strips, "_READ_PIXELS", 50)
        cut = polygons(path, path, LEGEND, [0, 1, 2], strip_rows=strip_rows)
    assert [(r.geometry.wkb, *r[:-1]) for r in cut] == [(r.geometry.wkb, *r[:-1]) for r in whole]
    pixels = [np.argwhere(rasterize([r.geometry], image.shape, transform=NORTH_UP)) for r in whole]
    places = [(own[-1, 0], *own[0]) for own in pixels]
    assert places == sorted(places)


@pytest.mark.parametrize("strip_rows", [1, 37, 256])
def test_a_noisy_raster_of_many_strips(tmp_path: Path, strip_rows: int) -> None:
    """Near the percolation threshold components are long, tangled and full of holes that touch at corners."""
    image = (np.random.default_rng(3).random((256, 200)) < 0.6).astype(np.uint8)
    records = polygons(write_raster(tmp_path / "n.tif", image), None, LEGEND, [1], strip_rows=strip_rows)
    labelled, count = four_connected(image, 1)
    assert len(records) == count
    assert sorted(r.geometry.area for r in records) == sorted(np.bincount(labelled.ravel())[1:])
    assert all(r.geometry.is_valid for r in records)
    np.testing.assert_array_equal(rasterize([r.geometry for r in records], image.shape), image)


def test_nested_rings_stay_whole(tmp_path: Path) -> None:
    image = np.zeros((41, 41), np.uint8)
    for inset in range(0, 20, 4):
        image[inset : 41 - inset, inset : 41 - inset] = 1
        image[inset + 2 : 39 - inset, inset + 2 : 39 - inset] = 0
    records = polygons(write_raster(tmp_path / "r.tif", image), None, LEGEND, [1], strip_rows=3)
    assert len(records) == 5 == four_connected(image, 1)[1]
    assert sorted(len(r.geometry.interiors) for r in records) == [1, 1, 1, 1, 1]


def test_confidence_of_a_strip_whose_sum_passes_32_bits(tmp_path: Path) -> None:
    labels = write_raster(tmp_path / "l.tif", np.ones((4200, 4200), np.uint8))
    confidence = write_raster(tmp_path / "c.tif", np.full((4200, 4200), 254, np.uint8))
    (record,) = polygons(labels, confidence, LEGEND, [1], strip_rows=4200)
    assert record.confidence == 1


def test_polygons_have_no_needless_corners(tmp_path: Path) -> None:
    image = np.ones((50, 7), np.uint8)
    (record,) = polygons(write_raster(tmp_path / "one.tif", image), None, LEGEND, [1], strip_rows=4)
    assert shapely.get_num_coordinates(record.geometry) == 5
    assert record.geometry.equals(shapely.box(0, 0, 7, 50))


@pytest.mark.parametrize(
    ("transform", "crs", "square_metres", "metres"),
    [
        (NORTH_UP, UTM, 4.0, 2.0),
        (Affine(1.2, 1.6, 5e5, 1.6, -1.2, 5e6), UTM, 4.0, 2.0),
        (Affine(2, 0, 5e5, 0, 2, 5e6), UTM, 4.0, 2.0),
        (Affine(10, 0, 6e6, 0, -10, 2e6), "EPSG:2263", (10 * 0.30480060960121924) ** 2, 10 * 0.30480060960121924),
    ],
    ids=["north_up", "rotated", "south_up", "us_survey_feet"],
)
def test_planar_measures(tmp_path: Path, transform: Affine, crs: str, square_metres: float, metres: float) -> None:
    image = np.zeros((9, 9), np.uint8)
    image[1:6, 2:6] = 1
    image[3, 4] = 0
    (record,) = polygons(write_raster(tmp_path / "p.tif", image, transform, crs), None, LEGEND, [1], strip_rows=2)
    assert record.area_m2 == pytest.approx(19 * square_metres)
    assert record.perimeter_m == pytest.approx((18 + 4) * metres)
    assert record.compactness == pytest.approx(4 * np.pi * 19 / 22**2)
    assert np.isnan(record.confidence) and record.class_name == "a"
    assert shapely.box(0, 0, 9, 9).area * square_metres >= record.area_m2
    expected = shapely.Point(transform @ (2, 1))
    assert record.geometry.distance(expected) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", "EPSG:4807"])
def test_geodesic_measures_agree_with_a_local_projection(tmp_path: Path, crs: str) -> None:
    """At 60 degrees north a degree of longitude is half as long, and pseudo-Mercator areas are four times too big."""
    to_crs = pyproj.Transformer.from_crs(4326, crs, always_xy=True)
    left, top = to_crs.transform(3.0, 60.0)
    step = 10.0 if crs == "EPSG:3857" else 1e-4
    transform = Affine(step, 0, left, 0, -step, top)
    image = np.zeros((40, 60), np.uint8)
    image[5:35, 10:50] = 1
    image[10:20, 20:30] = 0
    path = write_raster(tmp_path / "g.tif", image, transform, crs)
    (record,) = polygons(path, None, LEGEND, [1], strip_rows=7)
    to_equal_area = pyproj.Transformer.from_crs(crs, "+proj=laea +lat_0=60 +lon_0=3 +ellps=WGS84", always_xy=True)
    local = shapely.transform(record.geometry, lambda xy: np.stack(to_equal_area.transform(*xy.T), axis=1))
    assert record.area_m2 == pytest.approx(local.area, rel=2e-4)  # other ellipsoid for EPSG:4807
    assert record.perimeter_m == pytest.approx(local.length, rel=2e-4)
    by_row = pixel_areas(GeoBox(image.shape, transform, crs))
    assert by_row is not None
    assert (image.sum(axis=1) * by_row).sum() == pytest.approx(record.area_m2, rel=1e-6)


def test_pixel_areas_of_a_plane_and_of_nothing() -> None:
    assert pixel_areas(GeoBox((3, 4), NORTH_UP, UTM)).tolist() == [4, 4, 4]
    assert pixel_areas(GeoBox((3, 4), NORTH_UP, None)) is None


def test_min_area_is_in_square_metres(tmp_path: Path) -> None:
    image = np.zeros((9, 9), np.uint8)
    image[0, 0] = image[4:6, 4:6] = 1
    path = write_raster(tmp_path / "m.tif", image, NORTH_UP, UTM)
    areas = [[r.area_m2 for r in polygons(path, None, LEGEND, [1], min_area_m2=m)] for m in (4, 4.1, 16, 17)]
    assert areas == [[4, 16], [16], [16], []]


def test_without_crs_there_are_no_metres(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "n.tif", np.ones((2, 2), np.uint8))
    (record,) = polygons(path, None, LEGEND, [1])
    assert np.isnan(record.area_m2) and np.isnan(record.perimeter_m)
    assert record.compactness == pytest.approx(np.pi / 4)
    with pytest.raises(InputError, match="has no CRS"):
        polygonise(path, None, LEGEND, [1], min_area_m2=1)


def test_only_the_classes_asked_for_and_never_nodata(tmp_path: Path) -> None:
    image = np.array([[0, 1, 2, 255]], np.uint8)
    path = write_raster(tmp_path / "c.tif", image)
    for classes in ([1], [0, 2], []):
        assert [r.class_id for r in polygons(path, None, LEGEND, classes)] == classes


def test_unreadable_map(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"cannot read .*none\.tif"):
        polygonise(tmp_path / "none.tif", None, LEGEND, [1])


COLUMNS = ["class_id", "class", "area_m2", "perimeter_m", "confidence", "compactness"]


def read(path: Path) -> geopandas.GeoDataFrame:
    if path.suffix == ".parquet":
        return geopandas.read_parquet(path)
    return pyogrio.read_dataframe(path, layer=path.stem)


def noisy_table(folder: Path, crs: str | None = UTM) -> geopandas.GeoDataFrame:
    image = (np.random.default_rng(3).random((60, 70)) < 0.6).astype(np.uint8)
    path = write_raster(folder / ".labels.tif", image, NORTH_UP, crs)
    (table,) = polygonise(path, path, LEGEND, [0, 1])
    return table


@pytest.mark.parametrize("suffix", DRIVERS)
def test_files_hold_every_polygon(tmp_path: Path, suffix: str) -> None:
    records, path = noisy_table(tmp_path), tmp_path / f"mounds{suffix}"
    assert len(records) > 250
    parts = (records[i : i + 100] for i in range(0, len(records), 100))
    assert write_polygons(parts, path, UTM, LEGEND) == len(records)
    table = read(path)
    assert len(table) == len(records) and table.is_valid.all() and set(table.geom_type) == {"Polygon"}
    assert [c for c in table.columns if c != table.geometry.name] == COLUMNS
    assert table.crs == (4326 if suffix == ".geojson" else UTM)
    back = table.to_crs(UTM)
    assert sorted(back.area) == pytest.approx(sorted(records["area_m2"]), rel=1e-4)
    assert back.area.to_numpy() == pytest.approx(table["area_m2"].to_numpy(), rel=1e-4)
    assert table["class"].tolist() == [LEGEND.names[i] for i in table["class_id"]]
    for column in COLUMNS if suffix != ".fgb" else []:  # which puts them in the order of its index
        assert table[column].tolist() == records[column].tolist()
    assert sorted(p.name for p in tmp_path.iterdir()) == [".labels.tif", path.name]


@pytest.mark.parametrize("suffix", DRIVERS)
def test_no_polygons_still_make_a_file_with_its_columns(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"none{suffix}"
    assert write_polygons([], path, UTM, LEGEND) == 0
    table = read(path)
    assert len(table) == 0
    if suffix != ".geojson":  # which has no schema
        assert table.crs == UTM and [c for c in table.columns if c != table.geometry.name] == COLUMNS


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb"])
def test_files_without_crs_have_null_areas(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"plain{suffix}"
    write_polygons([noisy_table(tmp_path, None)], path, None, LEGEND)
    table = read(path)
    assert table.crs is None and table["area_m2"].isna().all() and table["confidence"].notna().all()


def test_geopackage_opens_coloured_in_qgis(tmp_path: Path) -> None:
    path = tmp_path / "my mounds.gpkg"
    write_polygons([noisy_table(tmp_path)], path, UTM, LEGEND)
    info = pyogrio.read_info(path, layer="my mounds")
    assert (info["geometry_name"], info["geometry_type"], info["fid_column"]) == ("geom", "Polygon", "fid")
    with sqlite3.connect(path) as database:
        database.row_factory = sqlite3.Row
        (style,) = database.execute("SELECT * FROM layer_styles")
        assert database.execute("PRAGMA integrity_check").fetchone()[0] == "ok"
        listed = dict(database.execute("SELECT table_name, data_type FROM gpkg_contents"))
    assert listed == {"my mounds": "features", "layer_styles": "attributes"}
    assert (style["f_table_name"], style["f_geometry_column"], style["useAsDefault"]) == ("my mounds", "geom", 1)
    assert "categorizedSymbol" in style["styleQML"]


def test_geojson_is_rfc_7946(tmp_path: Path) -> None:
    write_polygons([noisy_table(tmp_path)], tmp_path / "m.geojson", UTM, LEGEND)
    document = json.loads((tmp_path / "m.geojson").read_text())
    assert "crs" not in document  # EPSG:4326 is implied
    assert len(document["features"]) == len(noisy_table(tmp_path))
    lon, lat = document["features"][0]["geometry"]["coordinates"][0][0][:2]
    assert 14 < lon < 16 and 44 < lat < 46  # the middle of UTM zone 33, 5000 km north


def test_long_edges_bend_in_geojson(tmp_path: Path) -> None:
    """A straight edge of 200 km in UTM passes 0.5 km beside the chord between its ends in degrees."""
    box = shapely.box(600000, 5000000, 800000, 5000100)
    one = np.ones(1)
    table = polygon_table(np.array([box]), np.array([1]), LEGEND, one, one, one, one, UTM)
    write_polygons([table], tmp_path / "m.geojson", UTM, LEGEND)
    (back,) = pyogrio.read_dataframe(tmp_path / "m.geojson").to_crs(UTM).geometry
    assert back.symmetric_difference(box).area < 1e-4 * box.area


@pytest.mark.parametrize("suffix", [".shp", ".tif", ""])
def test_unknown_suffixes_are_refused(tmp_path: Path, suffix: str) -> None:
    with pytest.raises(InputError, match=r"\.gpkg, \.fgb, \.geojson, \.parquet"):
        write_polygons([], tmp_path / f"m{suffix}", UTM, LEGEND)


def test_geojson_without_crs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no CRS: write a \.gpkg"):
        write_polygons([], tmp_path / "m.geojson", None, LEGEND)


def test_existing_files_are_kept_unless_told(tmp_path: Path) -> None:
    table, path = noisy_table(tmp_path), tmp_path / "m.gpkg"
    write_polygons([table[:5]], path, UTM, LEGEND)
    with pytest.raises(InputError, match="exists already"):
        write_polygons([table], path, UTM, LEGEND)
    assert len(read(path)) == 5
    assert write_polygons([table[:7]], path, UTM, LEGEND, overwrite=True) == len(read(path)) == 7


def test_an_error_while_polygonising_leaves_the_old_file(tmp_path: Path) -> None:
    table, path = noisy_table(tmp_path), tmp_path / "m.gpkg"
    write_polygons([table[:5]], path, UTM, LEGEND)

    def breaks(error: BaseException) -> Iterator[geopandas.GeoDataFrame]:
        yield table[:1]
        raise error

    for error in (RunError("the map is gone"), KeyboardInterrupt()):
        with pytest.raises(type(error), match="^the map is gone$|^$"):
            write_polygons(breaks(error), path, UTM, LEGEND, overwrite=True)
    assert len(read(path)) == 5 and sorted(p.name for p in tmp_path.iterdir()) == [".labels.tif", "m.gpkg"]


FULL_DISK = textwrap.dedent("""
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    import shapely
    from uhrseg.errors import RunError
    from uhrseg.geo.vector import polygon_table, write_polygons
    from uhrseg.legend import Legend, LegendClass
    legend, folder = Legend((LegendClass(0, "a", "#000000"),)), Path(sys.argv[1])
    left, one = np.arange(2_000), np.ones(2_000)
    boxes = shapely.box(left, 0, left + 1, 1)
    table = polygon_table(boxes, np.zeros(2_000, int), legend, one, one, one, one, "EPSG:32633")
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in map(int, sys.argv[2:]):
        for suffix in (".gpkg", ".fgb", ".geojson"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
            try:
                result = write_polygons([table], folder / f"m{suffix}", "EPSG:32633", legend)
            except RunError as error:
                result = "refused" if "make room" in str(error) else str(error)
            print(limit, suffix, result, *sorted(p.name for p in folder.iterdir()))
""")


def test_a_full_disk_is_an_error_at_every_point(tmp_path: Path) -> None:
    limits = [0, 120_000, 471_500]  # at the last, GDAL loses the index of one and the end of another, silently
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), *map(str, limits)], capture_output=True, text=True, check=True
    )
    assert run.stdout.splitlines() == [f"{n} {s} refused" for n in limits for s in (".gpkg", ".fgb", ".geojson")]
