"""Held-out blocks: decided per pixel, alike in every window."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import maximum_filter

from uhrseg.data.blocks import Blocks


@st.composite
def blocks(draw: st.DrawFn) -> Blocks:
    size = draw(st.integers(1, 9))
    shape = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    cells = draw(st.lists(st.booleans(), min_size=shape[0] * shape[1], max_size=shape[0] * shape[1]))
    val = np.array(cells).reshape(shape)
    return Blocks(size, draw(st.integers(0, size // 2)), tuple(tuple(row) for row in val.tolist()))


@given(blocks())
def test_training_keeps_the_buffer_and_validation_its_blocks(part: Blocks) -> None:
    held_out = np.kron(np.array(part.val), np.ones((part.size, part.size), bool))
    near = maximum_filter(held_out, 2 * part.buffer + 1, mode="constant", cval=False)
    np.testing.assert_array_equal(part.of("val").counts(0, 0, *held_out.shape), held_out)
    np.testing.assert_array_equal(part.counts(0, 0, *held_out.shape), ~near)


@given(blocks(), st.integers(-12, 40), st.integers(-12, 40), st.integers(1, 20), st.integers(1, 20))
def test_windows_are_slices_of_the_whole(part: Blocks, row: int, col: int, height: int, width: int) -> None:
    for role in (part, part.of("val")):
        whole = role.counts(-12, -12, 80, 80)
        window = role.counts(row, col, height, width)
        np.testing.assert_array_equal(window, whole[12 + row : 12 + row + height, 12 + col : 12 + col + width])
    assert not (part.counts(row, col, height, width) & part.of("val").counts(row, col, height, width)).any()
