"""Window geometry: coverage, weights and alignment hold for every size, overlap and factor."""

from __future__ import annotations

import numpy as np
import pytest
from affine import Affine
from hypothesis import given
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox

from uhrseg.errors import InputError
from uhrseg.geo.plan import TAPERS, Chunk, TilePlan, coarse_geobox, overlap_pixels, pixel_offset, shifted, taper

GRIDS = {
    "north-up": Affine(0.5, 0, 500_000, 0, -0.5, 5_000_000),
    "south-up": Affine(2, 0, 500_000, 0, 2, 5_000_000),
    "rotated": Affine.translation(5e5, 5e6) * Affine.rotation(30) * Affine.scale(1, -1),
    "degrees": Affine(1e-5, 0, 14.0, 0, -1e-5, 46.0),
}


def plan(height: int, width: int, size: int, overlap: int, factor: int | None = None) -> TilePlan:
    return TilePlan(GeoBox((height, width), GRIDS["north-up"], "EPSG:32633"), size, overlap, factor)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(2, 64), st.floats(0, 0.5), st.sampled_from(sorted(TAPERS)))
def test_every_pixel_is_covered_and_weights_sum_to_one(
    height: int, width: int, size: int, share: float, name: str
) -> None:
    lattice = plan(height, width, size, int(size * share))
    ramp = taper(name, lattice.overlap)
    for length, count in ((height, lattice.rows), (width, lattice.cols)):
        total = np.zeros(lattice.start(count - 1) + size, dtype=np.float32)
        for k in range(count):
            total[lattice.start(k) : lattice.start(k) + size] += lattice.weights(k, count, ramp)
        assert len(total) >= length, "the last window reaches the edge"
        assert lattice.start(count - 1) < length, "no window lies outside"
        np.testing.assert_array_equal(total[:length], 1)


@given(st.integers(1, 300), st.integers(2, 40), st.integers(0, 20), st.integers(1, 300), st.integers(1, 100))
def test_touching_finds_exactly_the_windows_that_share_a_pixel(
    length: int, size: int, overlap: int, start: int, extent: int
) -> None:
    lattice = plan(length, length, size, min(overlap, size // 2))
    low = min(start, length) - 1
    pixels = slice(low, min(low + extent, length))
    expected = [
        k for k in range(lattice.rows) if lattice.start(k) < pixels.stop and lattice.start(k) + size > pixels.start
    ]
    assert list(lattice.touching(pixels, lattice.rows)) == expected


@given(st.integers(1, 90), st.integers(1, 90), st.integers(1, 50))
def test_chunks_partition_the_scene(height: int, width: int, side: int) -> None:
    seen = np.zeros((height, width), dtype=int)
    for chunk in plan(height, width, 16, 4).chunks(side):
        seen[chunk.rows, chunk.cols] += 1
    assert (seen == 1).all()


def test_without_chunks_the_scene_is_one() -> None:
    assert plan(30, 50, 16, 4).chunks(None) == [Chunk(slice(0, 30), slice(0, 50))]


@pytest.mark.parametrize("grid", GRIDS)
@pytest.mark.parametrize(("size", "overlap", "factor"), [(256, 64, 4), (224, 112, 4), (96, 24, 3), (64, 0, 2)])
def test_context_is_a_slice_of_the_coarse_grid_with_the_same_centre(
    grid: str, size: int, overlap: int, factor: int
) -> None:
    scene = GeoBox((1000, 777), GRIDS[grid], None if grid == "rotated" else "EPSG:32633")
    lattice = TilePlan(scene, size, overlap, factor)
    for row, col in ((0, 0), (1, 2), (lattice.rows - 1, lattice.cols - 1)):
        pair = lattice.pair(row, col)
        assert pair.context is not None
        assert pair.context.shape == pair.local.shape == (size, size)
        middle = (size / 2, size / 2)
        np.testing.assert_allclose(pair.local.affine * middle, pair.context.affine * middle, rtol=1e-12)
        cell = pixel_offset(coarse_geobox(scene, factor), pair.context)
        assert cell == (lattice.context_start(row), lattice.context_start(col))


@pytest.mark.parametrize("grid", GRIDS)
@given(row=st.integers(-5000, 5000), col=st.integers(-5000, 5000))
def test_pixel_offset_undoes_shifted(grid: str, row: int, col: int) -> None:
    scene = GeoBox((800, 600), GRIDS[grid], None)
    assert pixel_offset(scene, shifted(scene, row, col, (10, 20))) == (row, col)


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Affine(0.5, 0, 500_000.2, 0, -0.5, 5_000_000), "out of phase by 0.000 rows and 0.400"),
        (Affine(0.51, 0, 500_000, 0, -0.5, 5_000_000), "pixel size or rotation"),
        (Affine(0.5, 0, 500_000, 0, 0.5, 5_000_000), "pixel size or rotation"),
        (GRIDS["rotated"], "pixel size or rotation"),
    ],
)
def test_other_grids_are_refused(other: Affine, message: str) -> None:
    with pytest.raises(InputError, match=message):
        pixel_offset(GeoBox((100, 100), GRIDS["north-up"], None), GeoBox((100, 100), other, None))


@pytest.mark.parametrize(
    ("size", "share", "factor", "pixels"),
    [(256, 0.25, 4, 64), (256, 0.5, 4, 128), (256, 0, 4, 0), (100, 0.33, None, 33)],
)
def test_overlap_in_pixels(size: int, share: float, factor: int | None, pixels: int) -> None:
    assert overlap_pixels(size, share, factor) == pixels


@pytest.mark.parametrize(
    ("size", "share", "factor", "message"),
    [
        (256, 0.3, 4, "multiple of the context factor 4: the nearest that works is 0.296875"),
        (256, 0.6, 4, "between 0 and 0.5"),
        (252, 0.25, 4, "nearest size that works is 248"),
        (266, 0.25, 4, "nearest size that works is 264"),
    ],
)
def test_overlaps_that_break_the_context_grid_are_refused(size: int, share: float, factor: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        overlap_pixels(size, share, factor)


@given(st.integers(4, 600), st.integers(2, 8), st.floats(0, 0.5))
def test_the_proposed_overlap_works(size: int, factor: int, share: float) -> None:
    try:
        overlap_pixels(size, share, factor)
    except InputError as error:
        proposed = float(str(error).rsplit(" ", 1)[1])
        again = (int(proposed), 0.0) if "do not share a grid" in str(error) else (size, proposed)
        overlap_pixels(*again, factor)


def test_unknown_taper_names_the_known_ones() -> None:
    with pytest.raises(InputError, match="hann, linear, crop"):
        taper("gauss", 8)
