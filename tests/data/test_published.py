"""The four published data sets in their true layouts: files, splits, and what every label value means."""

from __future__ import annotations

import tomllib
from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.trees import (
    GLEASON_CORES,
    SIDE,
    small_recipe,
    stripes,
    write_archaeoscape,
    write_cityscapes,
    write_gleason,
    write_image,
    write_urur,
)
from uhrseg.data.datasets import find_rasters
from uhrseg.data.datasets.gleason import majority, prepare
from uhrseg.data.scenes import labels_on
from uhrseg.errors import InputError
from uhrseg.geo.stack import open_stack
from uhrseg.presets import PRESETS
from uhrseg.recipe import Recipe

CAMVID = Path(__file__).resolve().parents[3] / "shared" / "data" / "camvid_street"
PARCELS = ("01_olinda", "17_fusang", "20_hali")
SPLITS = ("train", "val", "test")
ONE_PARCEL_EACH = tuple(
    f'data.{split}=["data/rasters/rgb/{name}.tif"]' for split, name in zip(SPLITS, PARCELS, strict=True)
)


def labels_of(recipe: Recipe, split: str, index: int = 0) -> np.ndarray:
    source = find_rasters(recipe.data, split)[index]  # type: ignore[arg-type]
    return labels_on(source, open_stack(source.rasters).geobox, recipe.data)


@pytest.mark.parametrize("name", PRESETS)
def test_a_recipe_needs_no_classes_and_a_written_one_has_them(name: str, tmp_path: Path) -> None:
    recipe = small_recipe(name, tmp_path)
    assert "[[data.class]]" not in (Path(__file__).parents[2] / "recipes" / f"{name}.toml").read_text()
    written = recipe.write(tmp_path / "resolved.toml")
    classes = tomllib.loads(written.read_text())["data"]["class"]
    assert [c["name"] for c in classes] == recipe.data.legend.names
    assert Recipe.read(written) == recipe


@pytest.mark.parametrize(
    "name, classes, background, shared, overlap",
    [
        ("archaeoscape", 4, 3, False, 0.5),
        ("urur", 8, None, True, 0.0),
        ("gleason", 4, None, True, 0.0),
        ("cityscapes", 19, None, False, 0.0),
    ],
)
def test_the_recipes_hold_the_papers_settings(
    name: str, classes: int, background: int | None, shared: bool, overlap: float
) -> None:
    recipe = Recipe.read(Path(__file__).parents[2] / "recipes" / f"{name}.toml")
    train = recipe.train
    assert (len(recipe.data.class_), recipe.data.background) == (classes, background)
    assert (recipe.model.share_projector, recipe.window.overlap) == (shared, overlap)
    assert (recipe.window.size, recipe.window.context_factor, recipe.model.relays) == (256, 4, 4)
    assert (train.lr, train.weight_decay, train.warmup, train.schedule) == (1e-4, 0.0, 0.05, "plateau")
    assert (train.batch_size, train.epochs) == (64, 50)
    assert (recipe.loss.global_weight, recipe.loss.consistency_weight) == (0.1, 0.1)


def test_classes_can_be_overridden(tmp_path: Path) -> None:
    recipe = small_recipe("urur", tmp_path, "data.gsd_m=2.0")
    assert recipe.data.gsd_m == 2.0 and recipe.data.legend.names[0] == "others"


def test_urur_palettes_are_read_by_colour(tmp_path: Path) -> None:
    recipe = small_recipe("urur", write_urur(tmp_path))
    for split in SPLITS:
        found = [find.labels.name for find in find_rasters(recipe.data, split)]  # type: ignore[arg-type]
        assert found == [f"{split}1.png"]
        labels = labels_of(recipe, split)
    names = recipe.data.legend.names
    expected = ["others", "building", "greenhouse", "woodland", "farmland", "bareland", "water", "road"]
    assert names == expected
    # index 8 is the ignore colour, index 9 a black filler of the palette
    np.testing.assert_array_equal(labels, stripes([0, 1, 2, 3, 4, 5, 6, 7, 255, 255]))


def test_urur_labels_without_a_palette_are_refused(tmp_path: Path) -> None:
    recipe = small_recipe("urur", write_urur(tmp_path))
    write_image(tmp_path / "train" / "label" / "train1.png", stripes([0, 1]), "PNG")
    with pytest.raises(InputError, match="train1.png has no palette"):
        labels_of(recipe, "train")


def test_gleason_labels_are_the_majority_and_ties_the_smallest(tmp_path: Path) -> None:
    write_gleason(tmp_path)
    with rasterio.open(prepare(tmp_path) / f"{GLEASON_CORES[0]}_classimg_nonconvex.png") as made:
        raw = made.read(1)
    np.testing.assert_array_equal(raw, stripes([0, 1, 3, 3, 5, 6]))  # 3 against 4, three votes each: 3
    recipe = small_recipe("gleason", tmp_path)
    np.testing.assert_array_equal(labels_of(recipe, "train"), stripes([0, 0, 1, 1, 3, 0]))
    splits = {s: [r.name for r in find_rasters(recipe.data, s)] for s in SPLITS}  # type: ignore[arg-type]
    assert splits == {
        "train": ["slide001_core015", "slide006_core120"],
        "val": ["slide001_core003", "slide002_core014"],
        "test": ["slide007_core004"],
    }


def test_gleason_majority_agrees_with_a_count_by_hand(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    maps = [rng.integers(0, 7, (20, 30), dtype=np.uint8) for _ in range(5)]
    paths = [write_image(tmp_path / f"{k}.png", values, "PNG") for k, values in enumerate(maps)]
    expected = [[np.bincount(pixel, minlength=7).argmax() for pixel in row] for row in np.stack(maps, -1)]
    np.testing.assert_array_equal(majority(paths), expected)


def test_gleason_maps_that_do_not_fit_leave_nothing_behind(tmp_path: Path) -> None:
    write_gleason(tmp_path)
    bad = tmp_path / "Maps2_T" / f"{GLEASON_CORES[0]}_classimg_nonconvex.png"
    write_image(bad, np.full((SIDE, SIDE), 9, np.uint8), "PNG")
    with pytest.raises(InputError, match="Maps2_T.*holds the value 9"):
        prepare(tmp_path)
    write_image(bad, np.zeros((8, 8), np.uint8), "PNG")
    with pytest.raises(InputError, match="8 x 8 px"):
        prepare(tmp_path)
    assert not list(tmp_path.glob("Maps_majority*"))
    with pytest.raises(InputError, match="has no Maps1_T"):
        prepare(tmp_path / "Train Imgs")


def test_cityscapes_ids_become_train_ids_and_all_others_are_ignored(tmp_path: Path) -> None:
    recipe = small_recipe("cityscapes", write_cityscapes(tmp_path))
    np.testing.assert_array_equal(labels_of(recipe, "val"), stripes([255, 255, 0, 1, 8, 13, 18]))
    assert recipe.data.test == ()  # the official labels are not public


def test_cityscapes_layout_of_real_frames() -> None:
    if not CAMVID.is_dir():
        pytest.skip("the CamVid frames are not here")
    recipe = small_recipe("cityscapes", CAMVID)
    sources = find_rasters(recipe.data, "train")
    assert len(sources) == 8 and len(find_rasters(recipe.data, "val")) == 4
    for source in sources:
        with rasterio.open(str(source.labels).replace("labelIds", "labelTrainIds")) as published:
            expected = published.read(1)
        labels = labels_on(source, open_stack(source.rasters).geobox, recipe.data)
        np.testing.assert_array_equal(labels, expected)


def test_archaeoscape_stacks_bands_and_burns_features_inside_the_parcel(tmp_path: Path) -> None:
    write_archaeoscape(tmp_path, PARCELS)
    recipe = small_recipe("archaeoscape", tmp_path, *ONE_PARCEL_EACH)
    source = find_rasters(recipe.data, "val")[0]
    scene = open_stack(source.rasters)
    assert len(scene.bands) == 4 and scene.gsd_m == (0.5, 0.5)
    array, valid = scene.read(scene.geobox)
    assert valid.all() and 20 < array[3].min() < array[3].max() < 27
    labels = labels_of(recipe, "val")
    metres = np.full((48, 48), 3, np.uint8)  # (Y, X) in metres
    metres[10:30, 10:30], metres[10:40, 32:40], metres[20:24, 20:24], metres[4:8, 4:8] = 0, 1, 2, 255
    inside = np.zeros((48, 48), bool)
    inside[4:44, 4:44] = True
    np.testing.assert_array_equal(labels[::2, ::2], np.where(inside, metres, 255))


def test_bands_on_another_grid_are_refused(tmp_path: Path) -> None:
    write_archaeoscape(tmp_path, PARCELS)
    recipe = small_recipe("archaeoscape", tmp_path, *ONE_PARCEL_EACH)
    dtm = tmp_path / "data" / "rasters" / "dtm" / "01_olinda.tif"
    write_image(dtm, np.zeros((10, 10), np.float32), "GTiff", crs="EPSG:32648")
    with pytest.raises(InputError, match="01_olinda.tif .10 x 10 px. is not on the grid"):
        labels_of(recipe, "train")


def test_values_of_label_rasters_are_named_one_by_one(tmp_path: Path) -> None:
    recipe = small_recipe("cityscapes", write_cityscapes(tmp_path))
    path = next((tmp_path / "gtFine" / "val").rglob("*.png"))
    write_image(path, stripes([7, 77]), "PNG")
    with pytest.raises(InputError, match="holds the value 77, which data.label_values does not name"):
        labels_of(recipe, "val")
    wrong = small_recipe("cityscapes", tmp_path, 'data.label_values={ seven = "road" }')
    with pytest.raises(InputError, match="has 'seven'"):
        labels_of(wrong, "val")
