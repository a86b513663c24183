"""Overviews of class maps: the most frequent of four, as GDAL has it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from tests.rasters import write_raster
from uhrseg.errors import RunError
from uhrseg.geo.overviews import most_frequent, write_levels
from uhrseg.legend import NODATA


def first_to_be_most_frequent(values: NDArray[np.uint8]) -> int:
    counts: dict[int, int] = {}
    best = NODATA
    for value in values.ravel().tolist():
        if value != NODATA:
            counts[value] = counts.get(value, 0) + 1
            best = value if counts[value] > counts.get(best, 0) else best
    return best


def test_every_block_of_four_values_has_its_most_frequent() -> None:
    kinds = np.array([0, 1, 2, 7, NODATA], dtype=np.uint8)
    blocks = np.stack(np.meshgrid(*[kinds] * 4, indexing="ij"), axis=-1).reshape(-1, 2, 2)  # all of them
    expected = [first_to_be_most_frequent(block) for block in blocks]
    assert most_frequent(np.hstack(list(blocks))).ravel().tolist() == expected


@pytest.mark.parametrize("shape", [(1, 1), (1, 4), (5, 3), (2, 7)])
def test_odd_sides_have_narrower_blocks_at_the_end(shape: tuple[int, int]) -> None:
    pixels = np.random.default_rng(0).integers(0, 3, shape).astype(np.uint8)
    made = most_frequent(pixels)
    for y, x in np.ndindex(made.shape):
        assert made[y, x] == first_to_be_most_frequent(pixels[2 * y : 2 * y + 2, 2 * x : 2 * x + 2])


def test_levels_are_those_that_gdal_makes(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 5, (140, 520)), np.ones((8, 8))).astype(np.uint8)
    pixels ^= (rng.random(pixels.shape) < 0.2).astype(np.uint8)
    pixels[rng.random(pixels.shape) < 0.1] = NODATA
    source = write_raster(tmp_path / "map.tif", pixels, nodata=NODATA)
    levels = write_levels(source, GeoBox(pixels.shape, Affine(1, 0, 500_000, 0, -1, 5_000_000), "EPSG:32633"), tmp_path)
    rasterio.shutil.copy(source, tmp_path / "gdal.tif", driver="COG", overview_resampling="mode")
    with rasterio.open(tmp_path / "gdal.tif") as made:
        count = len(made.overviews(1))
    assert len(levels) == count == 4
    for number, level in enumerate(levels):
        with rasterio.open(level) as ours, rasterio.open(tmp_path / "gdal.tif", overview_level=number) as theirs:
            np.testing.assert_array_equal(ours.read(1), theirs.read(1))


def test_a_map_that_cannot_be_read_is_a_run_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"gone\.vrt cannot be read"):
        write_levels(tmp_path / "gone.vrt", GeoBox((600, 600), Affine.identity(), None), tmp_path)
