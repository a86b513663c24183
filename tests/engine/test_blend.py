"""The running accumulator equals a full-size buffer, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin

from uhrseg.engine.blend import Blender, quantise
from uhrseg.geo.plan import TilePlan, taper


def full_buffer(plan: TilePlan, logits: dict[tuple[int, int], torch.Tensor], ramp: np.ndarray) -> torch.Tensor:
    """The naive blend: all windows added into one buffer as large as the lattice."""
    height, width = plan.start(plan.rows - 1) + plan.size, plan.start(plan.cols - 1) + plan.size
    total = torch.zeros(3, height, width)
    for (row, col), window in logits.items():
        y, x = plan.start(row), plan.start(col)
        weight = np.outer(plan.weights(row, plan.rows, ramp), plan.weights(col, plan.cols, ramp))
        total[:, y : y + plan.size, x : x + plan.size] += window * torch.from_numpy(weight)
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
        finished = []
        for row in plan.touching(chunk.rows, plan.rows):
            for col in plan.touching(chunk.cols, plan.cols):
                blender.add(row, col, logits[row, col])
            rows, strip = blender.finish(row)
            finished.append(strip.clone())
            assert strip.shape[1] == rows.stop - rows.start
            blender.advance()
        assert torch.equal(torch.cat(finished, dim=1), expected[:, chunk.rows, chunk.cols])


def test_quantise_is_a_softmax_times_254() -> None:
    logits = torch.randn(4, 150, 30) * 3
    labels, confidence, planes = quantise(logits, probabilities=True)
    expected = logits.softmax(0)
    assert labels.dtype == np.uint8 and confidence is not None and planes is not None
    np.testing.assert_array_equal(labels, logits.argmax(0).numpy())
    assert np.abs(confidence / 254 - expected.amax(0).numpy()).max() <= 0.5 / 254 + 1e-6
    assert np.abs(planes / 254 - expected.numpy()).max() <= 0.5 / 254 + 1e-6
    assert planes.max() <= 254, "255 is nodata"


@pytest.mark.parametrize("probabilities", [False, True])
def test_labels_alone_need_no_softmax(probabilities: bool) -> None:
    logits = torch.randn(3, 70, 20)
    labels, confidence, planes = quantise(logits, labels_only=True, probabilities=probabilities)
    np.testing.assert_array_equal(labels, logits.argmax(0).numpy())
    assert confidence is None and planes is None
