"""The running accumulator equals a full-size buffer, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from uhrseg.engine.blend import Blender, best_class, quantise
from uhrseg.geo.plan import TilePlan, taper


def full_buffer(plan: TilePlan, logits: dict[tuple[int, int], torch.Tensor], ramp: np.ndarray) -> torch.Tensor:
    """The naive blend: the windows of a row added into one buffer as wide as the lattice, the rows into one as high.

    Each window is tapered across before its row is summed, each row down before the rows are.
    """
    height, width = plan.start(plan.rows - 1) + plan.size, plan.start(plan.cols - 1) + plan.size
    total = torch.zeros(3, height, width)
    for row in range(plan.rows):
        strip = torch.zeros(3, plan.size, width)
        for col in range(plan.cols):
            across = torch.from_numpy(plan.weights(col, plan.cols, ramp))
            strip[:, :, plan.start(col) : plan.start(col) + plan.size] += logits[row, col] * across
        down = torch.from_numpy(plan.weights(row, plan.rows, ramp))[:, None]
        total[:, plan.start(row) : plan.start(row) + plan.size] += strip * down
    return total[:, : plan.geobox.shape[0], : plan.geobox.shape[1]]


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 90), st.integers(1, 90), st.integers(4, 24), st.floats(0, 0.5), st.integers(3, 100),
    st.sampled_from(["hann", "linear", "crop"]), st.integers(0, 5),
)  # fmt: skip
def test_equals_a_full_buffer_for_any_chunk(
    height: int, width: int, size: int, share: float, side: int, name: str, seed: int
) -> None:
    grid = GeoBox((height, width), from_origin(0, 0, 1, 1), None)
    plan = TilePlan(grid, size, int(size * share))
    ramp = taper(name, plan.overlap)
    generator = torch.Generator().manual_seed(seed)
    logits = {
        (row, col): torch.randn(3, size, size, generator=generator)
        for row in range(plan.rows)
        for col in range(plan.cols)
    }
    expected = full_buffer(plan, logits, ramp)
    for chunk in plan.chunks(side):
        blender = Blender(plan, chunk, 3, ramp, torch.device("cpu"))
        found = torch.full_like(expected, torch.nan)
        for row, col in plan.lattice(chunk):
            block = blender.add(row, col, logits[row, col].clone())
            assert torch.isnan(found[:, block.rows, block.cols]).all(), "finished once"
            found[:, block.rows, block.cols] = block.window[:, :, block.across]
        assert torch.equal(found[:, chunk.rows, chunk.cols], expected[:, chunk.rows, chunk.cols])


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 5), st.floats(0, 0.5), st.integers(20, 60))
def test_windows_over_nodata_may_be_left_out(seed: int, share: float, side: int) -> None:
    """Pixels that only windows that were run touch are as if all had been run."""
    plan = TilePlan(GeoBox((70, 80), from_origin(0, 0, 1, 1), None), 16, int(16 * share))
    ramp = taper("hann", plan.overlap)
    random = np.random.default_rng(seed)
    logits = {
        k: torch.from_numpy(random.normal(size=(3, 16, 16)).astype(np.float32))
        for k in np.ndindex(plan.rows, plan.cols)
    }
    missing = {k for k in logits if random.random() < 0.3}
    expected = full_buffer(plan, logits, ramp)
    for chunk in plan.chunks(side):
        blender = Blender(plan, chunk, 3, ramp, torch.device("cpu"))
        for row, col in plan.lattice(chunk):
            if (row, col) in missing:
                continue
            block = blender.add(row, col, logits[row, col].clone())
            rows, cols, found = block.rows, block.cols, block.window[:, :, block.across]
            known = np.ones((70, 80), bool)
            for r, c in missing:
                known[plan.start(r) : plan.start(r) + 16, plan.start(c) : plan.start(c) + 16] = False
            known = torch.from_numpy(known[rows, cols])
            assert torch.equal(found[:, known], expected[:, rows, cols][:, known])


def test_quantise_is_a_softmax_times_254() -> None:
    logits = torch.randn(4, 150, 30) * 3
    labels, confidence = torch.empty(2, 150, 30, dtype=torch.uint8)
    planes = torch.empty(4, 150, 30, dtype=torch.uint8)
    assert torch.isfinite(quantise(logits, slice(0, 30), labels, confidence, planes))
    expected = logits.softmax(0)
    np.testing.assert_array_equal(labels, logits.argmax(0).numpy())
    assert np.abs(confidence.numpy() / 254 - expected.amax(0).numpy()).max() <= 0.5 / 254 + 1e-6
    assert np.abs(planes.numpy() / 254 - expected.numpy()).max() <= 0.5 / 254 + 1e-6
    assert planes.max() <= 254, "255 is nodata"


@pytest.mark.parametrize("across", [slice(0, 30), slice(8, 40), slice(17, 22), slice(9, 9)])
def test_columns_of_a_window_are_reduced_as_if_they_were_cut_out(across: slice) -> None:
    """Few or many of them: on a CPU many are reduced with the whole rows they lie in."""
    window = torch.randn(4, 50, 40)
    width = across.stop - across.start
    first, second = torch.empty(2, 6, 50, width, dtype=torch.uint8)
    quantise(window, across, first[0], first[1], first[2:])
    quantise(window[:, :, across].clone(), slice(0, width), second[0], second[1], second[2:])
    assert torch.equal(first, second)


def test_the_first_of_equal_classes_wins() -> None:
    logits = torch.randint(0, 3, (6, 40, 33)).float()
    best, winner = best_class(logits)
    assert torch.equal(best, logits.amax(0))
    np.testing.assert_array_equal(winner, logits.numpy().argmax(0))


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_values_that_are_not_finite_are_noticed(value: float) -> None:
    logits = torch.randn(3, 70, 20)
    labels = torch.empty(70, 20, dtype=torch.uint8)
    assert torch.isfinite(quantise(logits, slice(0, 20), labels))
    logits[1, 66, 3] = value
    assert not torch.isfinite(quantise(logits, slice(0, 20), labels))
