from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.synthetic import discs, recipe_for, write_discs
from uhrseg.data.datasets import find_rasters
from uhrseg.data.sampling import Centres, StepSampler, draw_pose, sample_rng
from uhrseg.data.scenes import TrainingScene, load_scenes
from uhrseg.recipe import TrainTable


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingScene]:
    root: Path = tmp_path_factory.mktemp("discs")
    write_discs(root, ("a",), (160, 128))
    write_discs(root, ("b",), (80, 128))
    recipe = recipe_for(root)
    return load_scenes(find_rasters(recipe.data, "train"), recipe.data, 4)


class Counting:
    """Random numbers 0, 1, 2, ...: asks for every centre in turn."""

    def __init__(self) -> None:
        self.next = -1

    def random(self) -> float:
        return 0.5

    def integers(self, high: int) -> int:
        self.next += high > 2  # the draw of a pixel, not of one of two classes
        return self.next if high > 2 else 0


@pytest.mark.parametrize("balanced", [0.0, 1.0])
def test_centres_are_each_labelled_pixel_once(tmp_path: Path, balanced: float) -> None:
    """Over scenes of several cells: uniform numbers make uniform centres."""
    write_discs(tmp_path, ("a",), (270, 70))
    write_discs(tmp_path, ("b",), (40, 300))
    recipe = recipe_for(tmp_path)
    scenes = load_scenes(find_rasters(recipe.data, "train"), recipe.data, 4)
    wanted = [discs(scene.shape, 0)[1] for scene in scenes]
    count = sum(int((w == 1).sum() if balanced else (w != 255).sum()) for w in wanted)
    centres, rng = Centres(scenes, (1, 2)), Counting()
    seen = [np.zeros(s.shape, int) for s in scenes]
    for _ in range(count):
        scene, row, col = centres.draw(rng, balanced)  # type: ignore[arg-type]
        seen[scenes.index(scene)][row, col] += 1
    for found, labels in zip(seen, wanted, strict=True):
        np.testing.assert_array_equal(found, labels == 1 if balanced else labels != 255)


def test_balanced_centres_draw_classes_alike(scenes: list[TrainingScene]) -> None:
    rng, centres = np.random.default_rng(0), Centres(scenes, (1, 2))
    drawn = [centres.draw(rng, 1.0) for _ in range(1000)]
    classes = [int(s.labels.read(r, c, 1, 1)[0, 0, 0]) for s, r, c in drawn]
    assert {*classes} == {1, 2}
    assert abs(classes.count(1) / 1000 - 0.5) < 0.05


@pytest.mark.parametrize("factor", [4, None])
def test_an_unaugmented_crop_starts_on_the_lattice_within_half_a_step(factor: int | None) -> None:
    plain = TrainTable(scale_probability=0, rotate_probability=0)
    for row in range(40, 60):
        pose = draw_pose(np.random.default_rng(0), row, 77, 64, factor, plain)
        corner = pose.corner(64)
        assert corner is not None and corner[0] % (factor or 1) == corner[1] % (factor or 1) == 0
        assert abs(pose.y - row) <= (factor or 1) / 2
        if factor:
            assert pose.on_coarse(factor).corner(64) is not None


def test_scale_and_rotation_come_half_the_time_in_the_papers_ranges() -> None:
    table = TrainTable()
    poses = [draw_pose(np.random.default_rng(k), 50, 50, 64, 4, table) for k in range(2000)]
    scales, angles = (np.array([getattr(p, name) for p in poses]) for name in ("scale", "angle"))
    assert abs((scales != 1).mean() - 0.5) < 0.04 and abs((angles != 0).mean() - 0.5) < 0.04
    assert 0.5 <= scales.min() < 0.55 and 1.95 < scales.max() <= 2
    assert -90 <= angles.min() < -85 and 85 < angles.max() <= 90


def test_random_numbers_belong_to_seed_epoch_and_index() -> None:
    keys = [(s, e, i) for s in (0, 1) for e in (0, 1) for i in (0, 1)]
    assert len({sample_rng(s, (e, i)).random() for s, e, i in keys}) == 8
    assert sample_rng(3, (4, 5)).random() == sample_rng(3, (4, 5)).random()


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(1, 5), st.integers(0, 7))
def test_processes_together_see_what_one_sees_and_a_resumed_run_goes_on(
    batch: int, accumulate: int, processes: int, per_epoch: int, start: int
) -> None:
    stop = 8
    one = list(StepSampler(0, stop, per_epoch, batch * processes, accumulate))
    many = [list(StepSampler(0, stop, per_epoch, batch, accumulate, r, processes)) for r in range(processes)]
    assert [sum(parts, []) for parts in zip(*many, strict=True)] == one
    assert list(StepSampler(start, stop, per_epoch, batch * processes, accumulate)) == one[start * accumulate :]
    keys = sum(one, [])
    assert len({*keys}) == len(keys) == stop * accumulate * batch * processes
    assert {e for e, _ in keys} == {*range((stop - 1) // per_epoch + 1)}
    assert len(StepSampler(start, stop, per_epoch, batch, accumulate)) == (stop - start) * accumulate


def test_discs_hold_both_classes() -> None:
    assert {*np.unique(discs((80, 128), 0)[1])} == {0, 1, 2, 255}
