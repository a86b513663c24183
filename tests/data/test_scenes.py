from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.synthetic import discs, recipe_for, write_discs, write_raster
from uhrseg.data import scenes
from uhrseg.data.datasets import find_rasters
from uhrseg.data.scenes import TrainingScene, band_statistics, class_shares, load_scenes
from uhrseg.errors import InputError
from uhrseg.recipe import Recipe

RELIEF = 'data.band=[{ name = "dtm" }, { name = "relief", kind = "relief", source = "dtm", radius_m = 5.0 }]'


def load(recipe: Recipe) -> list[TrainingScene]:
    rasters = find_rasters(recipe.data, "train")
    return load_scenes(rasters, recipe.data, recipe.context_factor, recipe.window.context)


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
    monkeypatch.setattr(scenes, "_STRIP", 48)
    disk = load(recipe)
    for a, b in zip(memory, disk, strict=True):
        assert type(a.local) is not type(b.local)
        for name in ("local", "context", "labels", "valid"):
            for window in ((0, 0, 64, 64), (-20, 100, 64, 64), (130, -30, 40, 50), (-500, -500, 8, 8)):
                np.testing.assert_array_equal(getattr(a, name).read(*window), getattr(b, name).read(*window), name)
        assert a.centres.keys() == b.centres.keys() == {1, 2}
        for c in a.centres:
            np.testing.assert_array_equal(a.centres[c], b.centres[c])
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


def test_centres_are_the_pixels_of_feature_classes(tmp_path: Path) -> None:
    scene = load(recipe_for(write_discs(tmp_path, ("a",))))[0]
    labels = discs((160, 128), 0)[1]
    for c in (1, 2):
        np.testing.assert_array_equal(scene.centres[c], np.flatnonzero(labels == c))


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
