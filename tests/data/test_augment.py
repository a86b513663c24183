from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from safetensors.numpy import load_file

from tests.models.golden import find
from uhrseg.data.augment import Pose, crop, crop_nearest, d4
from uhrseg.data.windows import InMemory

SIZE = 32
Y, X = np.indices((200, 240)) + 0.5  # pixel centres in pixel-corner coordinates
COORDINATES = InMemory(np.stack([Y, X]).astype(np.float32), np.array([-1.0, -1.0], np.float32))


def coarse(array: NDArray[np.float32], factor: int = 4) -> NDArray[np.float32]:
    c, y, x = array.shape
    return array.reshape(c, y // factor, factor, x // factor, factor).mean((2, 4))


POSES = st.builds(
    Pose, st.floats(70, 130), st.floats(70, 170), st.floats(0.5, 2.0), st.floats(-90, 90)
)


@given(POSES)
@settings(deadline=None, max_examples=60)
def test_every_pose_samples_the_place_it_says(pose: Pose) -> None:
    """On an image of its own coordinates, bilinear and averaged samples are exact."""
    expected = np.stack(pose.grid(SIZE, SIZE))
    np.testing.assert_allclose(crop(COORDINATES, pose, SIZE), expected, atol=2e-3)
    assert np.abs(crop_nearest(COORDINATES, pose, SIZE) - expected).max() <= 0.5 + 1e-4


@given(POSES)
@settings(deadline=None, max_examples=40)
def test_local_and_context_crops_show_one_place_at_two_resolutions(pose: Pose) -> None:
    cells = InMemory(coarse(COORDINATES.array), np.zeros(2, np.float32))
    context_pose = pose.on_coarse(4)
    middle = np.stack(context_pose.grid(SIZE, SIZE))[:, 12:20, 12:20] * 4
    pooled = coarse(np.stack(pose.grid(SIZE, SIZE)))
    np.testing.assert_allclose(middle, pooled, atol=1e-9)
    if pose.scale <= 1:  # otherwise the context leaves this image
        y, x = context_pose.grid(SIZE, SIZE)
        inside = (y > 0.5) & (y < 49.5) & (x > 0.5) & (x < 59.5)
        context = crop(cells, context_pose, SIZE)
        np.testing.assert_allclose(context[:, inside], np.stack([y, x])[:, inside] * 4, atol=1e-2)


def test_the_angle_turns_the_crop_and_the_scale_widens_it() -> None:
    y, x = Pose(100, 120, 2.0, 90.0).grid(2, 2)
    np.testing.assert_allclose(y, [[99, 101], [99, 101]])
    np.testing.assert_allclose(x, [[121, 121], [119, 119]])


@pytest.mark.parametrize("centre", [(16, 16), (100, 120), (0, 0), (199, 239), (-40, 500)])
def test_a_plain_pose_is_an_exact_copy(centre: tuple[int, int]) -> None:
    got = crop(COORDINATES, Pose(*map(float, centre)), SIZE)
    padded = np.pad(COORDINATES.array, ((0, 0), (100, 100), (300, 300)), constant_values=-1)
    row, col = centre[0] - 16 + 100, centre[1] - 16 + 300
    np.testing.assert_array_equal(got, padded[:, row : row + SIZE, col : col + SIZE])
    np.testing.assert_array_equal(crop_nearest(COORDINATES, Pose(*map(float, centre)), SIZE), got)


def test_plain_and_resampled_paths_agree_where_they_meet() -> None:
    plain, nearly = Pose(100.0, 120.0), Pose(100.0, 120.0, 1.0, 1e-9)
    assert plain.corner(SIZE) is not None and nearly.corner(SIZE) is None
    rng = np.random.default_rng(0)
    noise = InMemory(rng.normal(size=(1, 200, 240)).astype(np.float32), np.zeros(1, np.float32))
    np.testing.assert_allclose(crop(noise, nearly, SIZE), crop(noise, plain, SIZE), atol=1e-4)
    np.testing.assert_array_equal(crop_nearest(noise, nearly, SIZE), crop_nearest(noise, plain, SIZE))


def test_outside_takes_the_padding() -> None:
    source = InMemory(np.ones((2, 40, 40), np.float32), np.array([7.0, 8.0], np.float32))
    turned = crop(source, Pose(0.0, 0.0, 1.5, 30.0), SIZE)
    assert turned[0, 0, 0] == 7 and turned[1, 0, 0] == 8 and turned[0, -4, -4] == 1


def test_shrinking_skips_no_pixel() -> None:
    """A checkerboard, the finest pattern there is, averages to grey instead of aliasing."""
    board = InMemory((np.indices((200, 240)).sum(0) % 2).astype(np.float32)[None], np.zeros(1, np.float32))
    np.testing.assert_allclose(crop(board, Pose(100.0, 120.0, 2.0), SIZE), 0.5, atol=1e-4)


def test_labels_stay_labels() -> None:
    rng = np.random.default_rng(0)
    labels = InMemory(rng.choice([0, 3, 7, 255], (1, 200, 240)).astype(np.uint8), np.array([255], np.uint8))
    got = crop_nearest(labels, Pose(10.0, 120.0, 1.3, 20.0), SIZE)
    assert got.dtype == np.uint8 and {*np.unique(got)} == {0, 3, 7, 255}


def test_d4_are_eight_different_symmetries() -> None:
    array = np.arange(9).reshape(3, 3)
    images = {d4(array, turns, flip).tobytes() for turns in range(4) for flip in (False, True)}
    assert len(images) == 8


@pytest.mark.parametrize("name", ["center", "corner"])
def test_plain_crops_are_those_of_the_authors_loader(name: str) -> None:
    """Unscaled and unturned; resampled ones differ by design: theirs is shifted by half a pixel and not antialiased.

    Their context skips pixels from the square's corner on, which makes it our decimated grid when it starts there.
    """
    golden = load_file(find("relay", "geometry_crops"))
    mean, std = np.array([100, 110, 120])[:, None, None], np.array([50, 60, 70])[:, None, None]
    y, x = {"center": (301, 301), "corner": (591, 11)}[name]
    image, labels = golden["input.image"], golden["input.labels"][None]
    origin = (y - 128) % 4, (x - 128) % 4
    cells = image[:, origin[0] :: 4, origin[1] :: 4].astype(np.float32)
    inside = golden[f"{name}.mask_local"] == 0
    local = crop(InMemory(image, np.zeros(3, np.uint8)), Pose(y, x), 64)
    np.testing.assert_allclose(((local - mean) / std)[:, inside], golden[f"{name}.local"][:, inside], atol=1e-5)
    target = crop_nearest(InMemory(labels, np.array([255], np.uint8)), Pose(y, x), 64)[0]
    np.testing.assert_array_equal(target, golden[f"{name}.target"])
    context = crop(InMemory(cells, np.full(3, np.nan)), Pose((y - origin[0]) / 4, (x - origin[1]) / 4), 64)
    seen = np.isfinite(context[0])
    np.testing.assert_allclose(((context - mean) / std)[:, seen], golden[f"{name}.global"][:, seen], atol=1e-5)
