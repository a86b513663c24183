"""The suites that put context on trial keep what their names promise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from scipy.ndimage import label

from uhrseg.data.earthworks import ground
from uhrseg.data.parcels import parcel
from uhrseg.data.simulate import CUES, LANDMARK, Simulation, write_dataset
from uhrseg.errors import InputError

BARE = np.zeros((4000, 4000), np.float32)


def drawn(name: str, sites: int = 3, seed: int = 0) -> tuple[Simulation, NDArray[np.float32], NDArray[np.uint8]]:
    """A suite's earthworks on perfectly flat ground."""
    simulation = CUES[name](64, 8)
    heights, labels = simulation.scene(sites, seed, BARE)
    return simulation, heights, labels


def far_from(cue: NDArray[np.bool_], y: int, x: int, window: int) -> bool:
    return not cue[max(y - window, 0) : y + window + 1, max(x - window, 0) : x + window + 1].any()


@pytest.mark.parametrize("name", ["mark", "dyke", "moat", "mark-beyond"])
def test_no_local_window_holds_a_mound_and_a_cue(name: str) -> None:
    simulation, heights, labels = drawn(name)
    cue = labels == LANDMARK
    assert cue.any()
    places = np.argwhere((labels == 1) | (labels == 2))[::20]
    assert all(far_from(cue, y, x, simulation.window - 1) for y, x in places)


def test_every_context_window_around_a_mound_holds_its_cue() -> None:
    simulation, heights, labels = drawn("mark")
    cue = labels == LANDMARK
    sure = simulation.window * (simulation.factor - 1) // 2
    for y, x in np.argwhere((labels == 1) | (labels == 2))[::20]:
        seen = cue[max(y - sure, 0) : y + sure + 1, max(x - sure, 0) : x + sure + 1]
        assert (seen.sum() > 700) == (labels[y, x] == 2)  # a whole platform near a temple, none near a mound


def test_beyond_no_context_window_sees_the_cue() -> None:
    simulation, heights, labels = drawn("mark-beyond")
    cue = labels == LANDMARK
    sight = simulation.window * (simulation.factor + 1) // 2
    assert all(far_from(cue, y, x, sight - 1) for y, x in np.argwhere((labels == 1) | (labels == 2))[::20])


def test_mounds_and_temples_look_alike_but_not_in_the_control() -> None:
    def steepness(name: str, kind: int) -> float:
        _, heights, labels = drawn(name, sites=7)
        parts, count = label(labels == kind)
        tops = [np.mean(heights[parts == i] > 0.9 * heights[parts == i].max()) for i in range(1, count + 1)]
        return float(np.mean(tops))

    assert steepness("mark", 1) == pytest.approx(steepness("mark", 2), rel=0.2)
    assert steepness("control", 2) > 1.5 * steepness("control", 1)


def test_half_of_the_sites_are_of_each_class_and_a_seed_decides_all(tmp_path: Path) -> None:
    assert Simulation("mark").scene(2, 5)[0].tobytes() == Simulation("mark").scene(2, 5)[0].tobytes()
    with pytest.raises(InputError, match="larger window"):
        Simulation("mark", window=64, factor=4).scene(2, 0)
    folder = write_dataset(Simulation("mark"), tmp_path, 3, train=1, val=1, sites=2)
    a, b = (rasterio.open(folder / split / f"{split}0_mask.tif").read(1) for split in ("train", "val"))
    assert set(np.unique(a)) == {0, 1, 2, LANDMARK}
    assert (a != b).any()


def test_a_parcel_holds_every_feature_on_hills() -> None:
    heights, labels = parcel(600, 1)
    assert set(np.unique(labels)) == {0, 1, 2, 3, 4}
    same, again = parcel(600, 1)
    assert (same == heights).all() and (again == labels).all()
    bare = ground((600, 600), 1)
    assert ((heights == bare) | (labels > 0)).mean() > 0.97  # only ring ditches and platform edges are unlabelled
    assert (heights - bare)[labels == 4].max() < 0 < (heights - bare)[labels == 1].mean()
