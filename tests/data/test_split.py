"""What is trained and what is validated: blocks held out of one raster, and label files that cannot belong."""

from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from hypothesis import given
from hypothesis import strategies as st

from tests.synthetic import discs, recipe_for, write_discs, write_raster
from uhrseg.data.scenes import labels_on, load_scenes
from uhrseg.data.split import choose_blocks, split_rasters, write_blocks
from uhrseg.errors import InputError, RunError
from uhrseg.geo.plan import shifted
from uhrseg.geo.scene import Scene

BLOCKS = ("data.blocks.size_m=32", "data.blocks.buffer_m=6", "data.blocks.val_share=0.25")
UTM = "EPSG:32633"
X, Y = 500_000, 5_100_000  # the corner of the rasters of tests.synthetic, whose pixels are 1 m


def write_vector(path: Path, shapes: list[shapely.Geometry], crs: str | None = UTM, **columns: list[object]) -> Path:
    geopandas.GeoDataFrame(columns, geometry=shapes, crs=crs).to_file(path)
    return path


def box(left: float, top: float, right: float, bottom: float) -> shapely.Polygon:
    """A rectangle in pixels of the synthetic rasters."""
    return shapely.box(X + left, Y - bottom, X + right, Y - top)


@given(st.integers(0, 100), st.floats(0.1, 0.4), st.integers(2, 4))
def test_held_out_blocks_hold_every_class_that_two_blocks_have(seed: int, share: float, classes: int) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 50, (30, classes)) * (rng.random((30, classes)) < rng.random(classes))
    chosen = choose_blocks(counts, share, seed)
    np.testing.assert_array_equal(chosen, choose_blocks(counts, share, seed))
    for c in range(classes):
        holders = (counts[:, c] > 0).sum()
        if holders > 1:
            assert counts[chosen, c].sum() > 0
    assert not chosen[counts.sum(1) == 0].any()
    whole = counts.sum(0) > 0
    if (counts[:, whole] > 0).sum(0).min(initial=30) > 20:
        np.testing.assert_allclose(counts[chosen][:, whole].sum(0) / counts[:, whole].sum(0), share, atol=0.15)


def test_blocks_split_one_raster_into_labels_to_train_and_labels_to_score(tmp_path: Path) -> None:
    data = recipe_for(write_discs(tmp_path), *BLOCKS).data
    train, val = split_rasters(data)
    assert [s.raster for s in train] == [s.raster for s in val] and len(train) == 2
    held_out = 0
    for a, b, seed in zip(train, val, (0, 1), strict=True):
        grid, labels = Scene.open(a.raster).geobox, discs((160, 128), seed)[1]
        trained, scored = labels_on(a, grid, data), labels_on(b, grid, data)
        assert not ((trained != 255) & (scored != 255)).any()
        for part in (trained, scored):
            np.testing.assert_array_equal(part[part != 255], labels[part != 255])
        window = shifted(grid, 30, 50, (40, 20))
        np.testing.assert_array_equal(labels_on(b, window, data, grid), scored[30:70, 50:70])
        held_out += int((scored != 255).sum())
    assert 0.15 < held_out / (2 * 160 * 128) < 0.35
    np.testing.assert_array_equal(load_scenes(train, data, 4)[1].labels.read(0, 0, 160, 128)[0], trained)


def test_blocks_are_written_for_qgis(tmp_path: Path) -> None:
    data = recipe_for(write_discs(tmp_path, ("a",)), *BLOCKS).data
    train, val = split_rasters(data)
    table = pyogrio.read_dataframe(write_blocks(train, tmp_path / "blocks.geojson"))
    assert table.crs.to_epsg() == 4326 and len(table) == 5 * 4 and set(table["split"]) == {"train", "val"}
    back = table.to_crs(UTM)
    np.testing.assert_allclose(back.total_bounds, (X, Y - 160, X + 128, Y), atol=0.01)
    scored = labels_on(val[0], Scene.open(val[0].raster).geobox, data)
    mask = rasterio.features.rasterize(
        back[back["split"] == "val"].geometry.buffer(0.01),
        scored.shape,
        transform=Scene.open(val[0].raster).geobox.affine,
    )
    assert (mask[scored != 255] == 1).all()


def test_blocks_that_cannot_divide_the_features_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="choose a smaller data.blocks.size_m"):
        split_rasters(recipe_for(write_discs(tmp_path, ("a",)), "data.blocks.size_m=400").data)


@pytest.mark.parametrize("crs", ["EPSG:4326", "EPSG:3857", UTM])
def test_mounds_without_a_column_and_an_area_of_interest(tmp_path: Path, crs: str) -> None:
    """One layer of polygons in any CRS, digitised in a part of two rasters only."""
    write_discs(tmp_path)
    for path, shapes in {
        "mounds.gpkg": [box(40, 40, 50, 60), box(80, 50, 90, 55)],
        "area.gpkg": [box(20, 30, 100, 90)],
    }.items():
        geopandas.GeoDataFrame(geometry=shapes, crs=UTM).to_crs(crs).to_file(tmp_path / path)
    data = recipe_for(tmp_path, "data.labels=mounds.gpkg", "data.label_class=bright", "data.aoi=area.gpkg").data
    train, val = split_rasters(data)
    expected = np.full((160, 128), 255, np.uint8)
    expected[30:90, 20:100] = 0
    expected[40:60, 40:50] = expected[50:55, 80:90] = 1
    assert val == [] and len(train) == 2
    for source in train:
        np.testing.assert_array_equal(labels_on(source, Scene.open(source.raster).geobox, data), expected)


@pytest.mark.parametrize("column", [["tumulus", "pond", "doubtful"], [1, 2, 3], [1.0, 2.0, 3.0]])
def test_attribute_values_become_class_names(tmp_path: Path, column: list[object]) -> None:
    write_discs(tmp_path, ("a",))
    write_vector(tmp_path / "v.gpkg", [box(40, 40, 50, 60), box(60, 40, 70, 60), box(80, 40, 90, 60)], kind=column)
    first, second, third = ("1", "2", "3") if column[0] == 1 else column
    values = f'data.label_values={{ "{first}" = "dark", "{second}" = "bright", "{third}" = "ignore" }}'
    data = recipe_for(tmp_path, "data.labels=v.gpkg", "data.label_column=kind", values).data
    labels = labels_on(split_rasters(data)[0][0], Scene.open(tmp_path / "a_dtm.tif").geobox, data)
    assert [labels[50, x] for x in (45, 65, 85, 100)] == [2, 1, 255, 0]


def test_layers_that_cannot_be_the_labels_are_refused(tmp_path: Path) -> None:
    write_discs(tmp_path)
    mound = box(40, 40, 50, 60)
    write_vector(tmp_path / "nowhere.gpkg", [shapely.box(400_000, 5_100_000, 400_010, 5_100_010)], kind=["x"])
    write_vector(tmp_path / "degrees_said_utm.gpkg", [shapely.box(15.0, 46.0, 15.1, 46.1)], kind=["x"])
    write_vector(tmp_path / "no_crs.gpkg", [mound], crs=None, kind=["x"])
    write_vector(tmp_path / "points.gpkg", [mound.centroid], kind=["x"])
    write_vector(tmp_path / "unknown.gpkg", [mound, mound], kind=["huts", "bright"])
    write_vector(tmp_path / "unfilled.gpkg", [mound, mound], kind=[None, "bright"])
    geopandas.GeoDataFrame({"kind": []}, geometry=[], crs=UTM).to_file(tmp_path / "empty.gpkg")
    (tmp_path / "corrupt.gpkg").write_bytes(b"SQLite format 3\x00" + bytes(600))
    for name, said in {
        "nowhere": "lies nowhere on any of the 2 rasters it is for",
        "degrees_said_utm": r"x 15 to 15.1, y 46 to 46.1\) lies nowhere",
        "no_crs": "is in no CRS, but .*a_dtm.tif is in EPSG:32633",
        "points": "holds Point, but labels are polygons",
        "unknown": "kind holds 'huts', but the legend has ground, bright, dark: map it in data.label_values",
        "unfilled": "has polygons without a kind",
        "empty": "has no polygons",
        "corrupt": "cannot be opened as polygons",
    }.items():
        data = recipe_for(tmp_path, f"data.labels={name}.gpkg", "data.label_column=kind").data
        with pytest.raises(InputError, match=said):
            load_scenes(split_rasters(data)[0], data, 4)
        area = recipe_for(tmp_path, f"data.aoi={name}.gpkg").data
        if name in ("nowhere", "no_crs", "points", "empty", "corrupt"):
            with pytest.raises(InputError, match=said):
                load_scenes(split_rasters(area)[0], area, 4)


def test_label_rasters_that_cannot_be_the_labels_are_refused(tmp_path: Path) -> None:
    write_discs(tmp_path, ("a",))
    data = recipe_for(tmp_path).data
    labels = discs((160, 128), 0)[1]
    with rasterio.open(tmp_path / "a_mask.tif", "r+") as mask:
        mask.transform = rasterio.transform.from_origin(X + 5000, Y, 1, 1)
    with pytest.raises(InputError, match="a_mask.tif .* lies nowhere on .*a_dtm.tif"):
        split_rasters(data)
    write_raster(tmp_path / "a_mask.tif", np.where(labels == 2, 7, labels).astype(np.uint8), 255)
    with pytest.raises(InputError, match="holds the value 7, which is no class of the legend"):
        load_scenes(split_rasters(data)[0], data, 4)


def test_a_validation_split_without_labels_is_refused(tmp_path: Path) -> None:
    write_discs(tmp_path)
    write_raster(tmp_path / "b_mask.tif", np.full((160, 128), 255, np.uint8), 255)
    only_a = ('data.train=["a_dtm.tif"]', 'data.val=["b_dtm.tif"]')
    with pytest.raises(InputError, match="labels of the 1 validation rasters hold no class"):
        split_rasters(recipe_for(tmp_path, *only_a).data)


def test_what_polygons_are_is_not_said_of_rasters(tmp_path: Path) -> None:
    data = recipe_for(write_discs(tmp_path), "data.label_class=bright").data
    with pytest.raises(InputError, match="a_mask.tif is a raster of class ids, but label_class"):
        load_scenes(split_rasters(data)[0], data, 4)


@pytest.mark.parametrize(
    "overrides, said",
    [
        (["data.label_class=hut"], "no class is called 'hut'"),
        (['data.label_values={ a = "hut" }'], "no class is called 'hut'"),
        (["data.label_class=bright", "data.label_column=kind"], "not both"),
        ([*BLOCKS, 'data.val=["b_dtm.tif"]'], "give one of the two"),
        ([*BLOCKS, "data.blocks.buffer_m=17"], "more than half of blocks.size_m"),
        ([*BLOCKS, "data.aoi=gone.gpkg"], "has no aoi: data.aoi = 'gone.gpkg' leads to"),
    ],
)
def test_recipes_that_contradict_themselves_are_refused(tmp_path: Path, overrides: list[str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        split_rasters(recipe_for(write_discs(tmp_path), *overrides).data)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pictures_without_georeference_need_labels_of_their_size(tmp_path: Path) -> None:
    for name, shape in (("a_dtm", (60, 50)), ("a_mask", (60, 40))):
        profile = {"driver": "PNG", "count": 1, "height": shape[0], "width": shape[1], "dtype": "uint8"}
        with rasterio.open(tmp_path / f"{name}.png", "w", **profile) as out:
            out.write(np.zeros((1, *shape), np.uint8))
    data = recipe_for(tmp_path, 'data.train=["a_dtm.png"]', "data.labels={name}_mask.png").data
    with pytest.raises(
        InputError, match="a_mask.png has 40 x 60 pixels, but .*a_dtm.png, which it labels, has 50 x 60"
    ):
        split_rasters(data)


@pytest.mark.parametrize("name", ["a_dtm.tif", "a_mask.tif"])
def test_damaged_rasters_are_named(tmp_path: Path, name: str) -> None:
    write_discs(tmp_path, ("a",), (400, 400))
    path = tmp_path / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    data = recipe_for(tmp_path).data
    with pytest.raises((InputError, RunError), match=name):
        load_scenes(split_rasters(data)[0], data, 4)
