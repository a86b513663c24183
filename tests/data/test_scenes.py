from __future__ import annotations

from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely

from tests.synthetic import discs, recipe_for, write_discs, write_raster
from uhrseg.data import scenes
from uhrseg.data.datasets import find_rasters
from uhrseg.data.scenes import TrainingScene, band_statistics, class_shares, load_scenes
from uhrseg.errors import InputError
from uhrseg.geo import coarse
from uhrseg.recipe import Recipe

RELIEF = 'data.band=[{ name = "dtm" }, { name = "relief", kind = "relief", source = "dtm", radius_m = 5.0 }]'


def load(recipe: Recipe, folder: Path | None = None) -> list[TrainingScene]:
    rasters = find_rasters(recipe.data, "train")
    return load_scenes(rasters, recipe.data, recipe.context_factor, recipe.window.context, folder)


def test_a_scene_is_its_raster_padded_with_its_mean(tmp_path: Path) -> None:
    scene = load(recipe_for(write_discs(tmp_path, ("a",))))[0]
    values, labels = discs((160, 128), 0)
    known = labels != 255
    mean = values[known].mean(dtype=np.float64)
    window = scene.local.read(-10, -5, 180, 140)[0]
    np.testing.assert_array_equal(window[10:170, 5:133][known], values[known])
    outside = np.pad(~known, ((10, 10), (5, 7)), constant_values=True)
    np.testing.assert_allclose(window[outside], mean, rtol=1e-5)
    np.testing.assert_array_equal(scene.labels.read(0, 0, 160, 128)[0], labels)
    np.testing.assert_array_equal(scene.valid.read(-1, 0, 161, 128)[0], np.pad(known, ((1, 0), (0, 0))))


def test_a_context_cell_is_the_mean_of_its_valid_pixels(tmp_path: Path) -> None:
    scene = load(recipe_for(write_discs(tmp_path, ("a",))))[0]
    values, labels = discs((160, 128), 0)
    masked = np.ma.array(values.astype(np.float64), mask=labels == 255)
    means = masked.reshape(40, 4, 32, 4).mean((1, 3)).filled(masked.mean())
    assert scene.context is not None
    np.testing.assert_allclose(scene.context.read(0, 0, 40, 32)[0], means, atol=1e-6)


def test_decimated_context_is_the_first_pixel(tmp_path: Path) -> None:
    scene = load(recipe_for(write_discs(tmp_path, ("a",)), "window.context=decimate"))[0]
    assert scene.context is not None
    np.testing.assert_array_equal(scene.context.read(10, 10, 20, 20)[0], discs((160, 128), 0)[0][40:120:4, 40:120:4])


def test_scenes_on_disk_give_the_windows_of_scenes_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = recipe_for(write_discs(tmp_path), RELIEF)
    memory = load(recipe)
    monkeypatch.setattr(scenes, "MEMORY_PIXELS", 1)
    monkeypatch.setattr(coarse, "_BLOCK_PIXELS", 48 * 128)
    disk = load(recipe, tmp_path)
    for a, b in zip(memory, disk, strict=True):
        assert type(a.local) is not type(b.local)
        for name in ("local", "context", "labels", "valid"):
            for window in ((0, 0, 64, 64), (-20, 100, 64, 64), (130, -30, 40, 50), (-500, -500, 8, 8)):
                np.testing.assert_array_equal(getattr(a, name).read(*window), getattr(b, name).read(*window), name)
        np.testing.assert_array_equal(a.counts, b.counts)
        assert len(a.tiles) < len(b.tiles)
    np.testing.assert_allclose(band_statistics(memory), band_statistics(disk), rtol=1e-9)


def test_statistics_are_those_of_all_valid_pixels(tmp_path: Path) -> None:
    both = [discs((160, 128), seed) for seed in (0, 1)]
    values = np.concatenate([v[m != 255] for v, m in both]).astype(np.float64)
    mean, std = band_statistics(load(recipe_for(write_discs(tmp_path))))
    assert (mean[0], std[0]) == (pytest.approx(values.mean()), pytest.approx(values.std()))


def test_class_shares_are_those_of_labelled_valid_pixels(tmp_path: Path) -> None:
    labels = np.concatenate([discs((160, 128), seed)[1].ravel() for seed in (0, 1)])
    expected = np.bincount(labels[labels != 255]) / np.sum(labels != 255)
    np.testing.assert_allclose(class_shares(load(recipe_for(write_discs(tmp_path))), 3), expected)


def test_cells_count_the_labelled_pixels(tmp_path: Path) -> None:
    scene = load(recipe_for(write_discs(tmp_path, ("a",), (300, 530))))[0]
    labels = np.pad(discs((300, 530), 0)[1], ((0, 212), (0, 238)), constant_values=255)
    cells = labels.reshape(2, 256, 3, 256).swapaxes(1, 2).reshape(2, 3, -1)
    np.testing.assert_array_equal(scene.counts, (cells[..., None] == np.arange(3)).sum(2))


def test_labels_on_disk_know_the_area_of_interest_and_the_polygons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Polygons are burnt once, into the run's scratch folder; every window is the same."""
    write_discs(tmp_path, ("a",))
    square, area = (
        shapely.box(500_040, 5_099_940, 500_050, 5_099_960),
        shapely.box(500_020, 5_099_910, 500_100, 5_099_990),
    )
    for name, shape in (("mounds", square), ("area", area)):
        geopandas.GeoDataFrame(geometry=[shape], crs="EPSG:32633").to_crs(4326).to_file(tmp_path / f"{name}.gpkg")
    recipe = recipe_for(tmp_path, "data.labels=mounds.gpkg", "data.label_class=bright", "data.aoi=area.gpkg")
    monkeypatch.setattr(scenes, "MEMORY_PIXELS", 1)
    (tmp_path / "scratch").mkdir()
    plain, burnt = load(recipe)[0], load(recipe, tmp_path / "scratch")[0]
    (tmp_path / "mounds.gpkg").unlink()
    labels = burnt.labels.read(-5, -5, 170, 138)[0]
    inside = 80 * 80 - 10 * 10  # without the corner of nodata
    assert [int((labels == value).sum()) for value in (0, 1)] == [inside - 200, 200]
    assert (labels == 255).sum() == labels.size - inside
    np.testing.assert_array_equal(plain.counts, burnt.counts)


@pytest.mark.parametrize("value, said", [(1.0, "is constant"), (-9999.0, "no valid pixel")])
def test_rasters_without_information_are_refused(tmp_path: Path, value: float, said: str) -> None:
    write_raster(tmp_path / "a_dtm.tif", np.full((80, 80), value, np.float32), -9999)
    write_raster(tmp_path / "a_mask.tif", np.zeros((80, 80), np.uint8), 255)
    with pytest.raises(InputError, match=said):
        band_statistics(load(recipe_for(tmp_path)))


def test_a_raster_of_another_gsd_is_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a_dtm.tif", np.zeros((80, 80), np.float32), -9999, gsd=2.0)
    write_raster(tmp_path / "a_mask.tif", np.zeros((80, 80), np.uint8), 255, gsd=2.0)
    with pytest.raises(InputError, match="2 x 2 m, but data.gsd_m is 1 m"):
        load(recipe_for(tmp_path))


def test_labels_without_any_class_are_refused(tmp_path: Path) -> None:
    write_discs(tmp_path, ("a",))
    write_raster(tmp_path / "a_mask.tif", np.full((160, 128), 255, np.uint8), 255)
    with pytest.raises(InputError, match="hold no class"):
        class_shares(load(recipe_for(tmp_path)), 3)
