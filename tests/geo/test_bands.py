"""Relief is a function of place: the same bits wherever the box is cut, equal to the brute-force local mean."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.transform import from_origin

from tests.rasters import RELIEF, terrain, write_raster
from uhrseg.card import BandSpec
from uhrseg.errors import InputError
from uhrseg.geo.bands import Derived, fill, local_mean
from uhrseg.geo.plan import shifted
from uhrseg.geo.scene import Scene


def with_holes(height: int, width: int) -> np.ndarray:
    ground = terrain(height, width)
    ground[:, 10:14, 5:25] = -9999
    ground[:, -3:, :] = -9999
    return ground


def test_local_mean_equals_brute_force() -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(300, 20, (30, 26)).astype(np.float32)
    valid = rng.random((30, 26)) > 0.4
    mean = local_mean(values, valid, (3, 2))
    assert mean.shape == (24, 22)
    for y, x in np.ndindex(mean.shape):
        box = np.s_[y : y + 7, x : x + 5]
        assert mean[y, x] == pytest.approx(values[box][valid[box]].mean(dtype=np.float64), abs=1.3e-4)


@settings(deadline=None, max_examples=30)
@given(st.integers(-20, 70), st.integers(-20, 60), st.integers(1, 60), st.integers(1, 60))
def test_derived_pixels_do_not_depend_on_the_box(tmp: Path, row: int, col: int, height: int, width: int) -> None:
    derived = Derived(Scene.open(tmp), RELIEF)
    whole, seen = derived.read(shifted(derived.geobox, -20, -20, (150, 150)))
    array, valid = derived.read(shifted(derived.geobox, row, col, (height, width)))
    part = np.s_[row + 20 : row + 20 + height, col + 20 : col + 20 + width]
    np.testing.assert_array_equal(array, whole[(slice(None), *part)])
    np.testing.assert_array_equal(valid, seen[part])


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_raster(tmp_path_factory.mktemp("bands") / "dtm.tif", with_holes(80, 70), nodata=-9999)


def test_relief_ignores_absolute_height(tmp_path: Path) -> None:
    ground = terrain(60, 60)
    low = Derived(Scene.open(write_raster(tmp_path / "a.tif", ground)), RELIEF)
    high = Derived(Scene.open(write_raster(tmp_path / "b.tif", ground + 1024)), RELIEF)
    np.testing.assert_allclose(low.read(low.geobox)[0], high.read(high.geobox)[0], atol=5e-4)


def test_relief_makes_no_cliff_at_nodata(tmp: Path) -> None:
    derived = Derived(Scene.open(tmp), RELIEF)
    array, valid = derived.read(derived.geobox)
    assert np.abs(array[:, valid]).max() < 6 and not array[:, ~valid].any()


def test_radius_is_in_metres(tmp_path: Path) -> None:
    ground = terrain(40, 40)
    spec = [BandSpec(name="relief", kind="relief", source="dtm", radius_m=4)]
    one = Derived(Scene.open(write_raster(tmp_path / "a.tif", ground)), spec)
    two = Derived(Scene.open(write_raster(tmp_path / "b.tif", ground, transform=from_origin(5e5, 5e6, 2, 2))), spec)
    raw, seen = one.scene.read(shifted(one.geobox, 8, 8, (20, 20)))
    for derived, radius in ((one, 4), (two, 2)):
        around, good = derived.scene.read(shifted(derived.geobox, 8 - radius, 8 - radius, (20 + 2 * radius,) * 2))
        expected = raw[0] - local_mean(around[0], good, (radius, radius))
        got, _ = derived.read(shifted(derived.geobox, 8, 8, (20, 20)))
        np.testing.assert_array_equal(got[0], expected.astype(np.float32))
    assert seen.all()


@pytest.mark.parametrize(
    ("spec", "crs", "message"),
    [
        ([RELIEF[0]], None, "no CRS and so no metres"),
        ([RELIEF[0].model_copy(update={"radius_m": 0.2})], "EPSG:32633", "less than a pixel"),
        ([BandSpec(name="red"), BandSpec(name="green")], "EPSG:32633", r"expects 2 band\(s\), red, green"),
    ],
)
def test_what_cannot_be_derived_is_refused(tmp_path: Path, spec: list, crs: str | None, message: str) -> None:
    scene = Scene.open(write_raster(tmp_path / "a.tif", terrain(20, 20), crs=crs))
    with pytest.raises(InputError, match=message):
        Derived(scene, spec)


def test_an_undeclared_nodata_value_is_named(tmp_path: Path) -> None:
    ground = terrain(20, 20)
    ground[0, 3, 3] = -3.4e38
    derived = Derived(Scene.open(write_raster(tmp_path / "a.tif", ground)), RELIEF)
    with pytest.raises(InputError, match="declare it with --nodata"):
        derived.read(derived.geobox)


def test_fill_pads_only_invalid_pixels() -> None:
    array = np.ones((2, 2, 2), dtype=np.float32)
    filled = fill(array, np.array([[True, False], [True, True]]), np.array([5, 6], dtype=np.float32))
    np.testing.assert_array_equal(filled, [[[1, 5], [1, 1]], [[1, 6], [1, 1]]])


@pytest.mark.parametrize("kind", ["uint8", "float32", "relief"])
def test_the_memory_of_a_read_is_foreseen(tmp_path: Path, kind: str) -> None:
    """What NumPy holds at the peak and afterwards, against what `--dry-run` counts."""
    ground = np.clip(terrain(700, 700), 1, 250).astype("uint8" if kind == "uint8" else "float32")
    specs = RELIEF if kind == "relief" else (BandSpec(name="dtm"),)
    derived = Derived(Scene.open(write_raster(tmp_path / f"{kind}.tif", ground)), specs)
    box = shifted(derived.geobox, 100, 100, (400, 500))
    derived.read_native(box)  # opens the file
    tracemalloc.start()
    try:
        held = derived.read_native(box)
        now, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    given, meanwhile = derived.read_bytes(400, 500)
    assert given == sum(array.nbytes for array in held)
    assert now == pytest.approx(given, rel=0.05)
    assert 0.5 * (given + meanwhile) < peak < 1.1 * (given + meanwhile)
