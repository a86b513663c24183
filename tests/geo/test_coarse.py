"""The coarse grid: block means of valid pixels, anchored at the origin, whatever the file's layout."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.rasters import RELIEF, terrain, write_raster
from uhrseg.card import BandSpec
from uhrseg.geo import coarse as module
from uhrseg.geo.bands import Derived
from uhrseg.geo.coarse import block_means, build_coarse
from uhrseg.geo.plan import TilePlan
from uhrseg.geo.scene import Scene

RAW = (BandSpec(name="a"), BandSpec(name="b"))


def brute_force(array: np.ndarray, valid: np.ndarray, factor: int) -> np.ndarray:
    rows, cols = -(-valid.shape[0] // factor), -(-valid.shape[1] // factor)
    cells = np.full((array.shape[0], rows, cols), np.nan)
    for y, x in np.ndindex(rows, cols):
        block = np.s_[y * factor : (y + 1) * factor, x * factor : (x + 1) * factor]
        if valid[block].any():
            cells[:, y, x] = array[(slice(None), *block)][:, valid[block]].mean(axis=1, dtype=np.float64)
    return cells


@pytest.mark.parametrize("factor", [2, 3, 4])
@pytest.mark.parametrize("shape", [(1, 1), (3, 50), (37, 41)])
def test_block_means_equal_brute_force(shape: tuple[int, int], factor: int) -> None:
    rng = np.random.default_rng(0)
    array, valid = rng.normal(size=(2, *shape)).astype(np.float32), rng.random(shape) > 0.5
    np.testing.assert_allclose(
        block_means(array * valid, valid, factor), brute_force(array, valid, factor), rtol=1e-6, atol=1e-7
    )


@pytest.mark.parametrize("layout", [{}, {"tiled": True, "blockxsize": 32, "blockysize": 16}, {"blockysize": 7}])
def test_grid_and_padding_do_not_depend_on_the_files_layout(
    tmp_path: Path, layout: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_BLOCK_PIXELS", 400)  # many blocks
    ground = terrain(90, 70, bands=2)
    ground[:, 20:40, 30:50] = -1
    scene = Scene.open(write_raster(tmp_path / "a.tif", ground, nodata=-1, **layout))
    derived = Derived(scene, RAW)
    array, valid = scene.read(scene.geobox)
    with build_coarse(derived, 4) as grid:
        cells, seen = grid.read(grid.geobox)
        expected = brute_force(array, valid, 4)
        np.testing.assert_allclose(np.where(seen, cells, np.nan), expected, rtol=1e-6)
        np.testing.assert_allclose(grid.padding, array[:, valid].mean(axis=1, dtype=np.float64), rtol=1e-6)


def test_padding_of_relief_is_zero_and_needs_no_pass(tmp_path: Path) -> None:
    scene = Scene.open(write_raster(tmp_path / "a.tif", terrain(30, 30)))
    assert build_coarse(Derived(scene, RELIEF), None).padding.tolist() == [0, 0]
    assert build_coarse(Derived(scene, RAW[:1]), None).padding[0] == pytest.approx(terrain(30, 30).mean())


def test_decimation_takes_the_first_pixel_of_each_block(tmp_path: Path) -> None:
    ground = terrain(22, 19)
    derived = Derived(Scene.open(write_raster(tmp_path / "a.tif", ground)), RAW[:1])
    with build_coarse(derived, 4, how="decimate") as grid:
        np.testing.assert_array_equal(grid.read(grid.geobox)[0], ground[:, ::4, ::4])


def test_a_large_grid_goes_to_a_file_that_close_removes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    derived = Derived(Scene.open(write_raster(tmp_path / "a.tif", terrain(40, 40))), RAW[:1])
    folder = tmp_path / "cache"
    folder.mkdir()
    grid = build_coarse(derived, 4, folder)
    assert len(list(folder.iterdir())) == 1 and grid.read(grid.geobox)[1].all()
    grid.close()
    assert not list(folder.iterdir())


def test_a_scene_without_a_valid_pixel_pads_with_zero(tmp_path: Path) -> None:
    scene = Scene.open(write_raster(tmp_path / "a.tif", np.full((9, 9), -1, np.float32), nodata=-1))
    with build_coarse(Derived(scene, RAW[:1]), 4) as grid:
        assert grid.padding.tolist() == [0] and not grid.read(grid.geobox)[1].any()


def test_every_context_window_is_a_slice_of_the_grid(tmp_path: Path) -> None:
    scene = Scene.open(write_raster(tmp_path / "a.tif", terrain(150, 130)))
    plan = TilePlan(scene.geobox, 32, 8, 4)
    with build_coarse(Derived(scene, RAW[:1]), 4) as grid:
        whole, _ = grid.read(grid.geobox)
        for row, col in ((1, 1), (plan.rows - 1, 0)):
            box = plan.pair(row, col).context
            assert box is not None
            cells, valid = grid.read(box)
            top, left = plan.context_start(row), plan.context_start(col)
            for y, x in zip(*np.nonzero(valid), strict=True):
                assert cells[0, y, x] == whole[0, y + top, x + left]


def test_a_grid_that_nobody_holds_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_IN_MEMORY", 100)
    derived = Derived(Scene.open(write_raster(tmp_path / "a.tif", terrain(40, 40))), RAW[:1])
    grid = build_coarse(derived, 4, tmp_path)
    assert len(list(tmp_path.iterdir())) == 2
    del grid
    gc.collect()
    assert [p.name for p in tmp_path.iterdir()] == ["a.tif"]
