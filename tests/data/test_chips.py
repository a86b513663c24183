from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from tests.synthetic import recipe_for, write_discs, write_raster
from uhrseg.data import chips as chips_module
from uhrseg.data import scenes as scenes_module
from uhrseg.data.chips import Chips
from uhrseg.data.datasets import find_rasters
from uhrseg.data.sampling import StepSampler
from uhrseg.data.scenes import TrainingScene, load_scenes
from uhrseg.errors import InputError, RunError
from uhrseg.legend import Legend, LegendClass
from uhrseg.recipe import TrainTable

LEGEND = Legend(tuple(LegendClass(i, name, "#804020") for i, name in enumerate("abc")), background=0)
PLAIN: dict[str, Any] = {"scale_probability": 0, "rotate_probability": 0}


@pytest.fixture(scope="module")
def scenes(tmp_path_factory: pytest.TempPathFactory) -> list[TrainingScene]:
    recipe = recipe_for(write_discs(tmp_path_factory.mktemp("discs")))
    return load_scenes(find_rasters(recipe.data, "train"), recipe.data, 4)


def chips(scenes: list[TrainingScene], factor: int | None = 4, seed: int = 0, **train: Any) -> Chips:
    std = np.array([2.0])
    return Chips(scenes, TrainTable(**train), size=64, factor=factor, legend=LEGEND, seed=seed, std=std)


def test_plain_chips_are_exact_copies_of_the_raster_and_the_coarse_grid(scenes: list[TrainingScene]) -> None:
    scene = scenes[0]
    assert scene.context is not None
    for index in range(8):
        chip = chips([scene], **PLAIN)[0, index]
        whole = scene.local.read(-64, -64, 288, 256)[0]
        places = [
            (r, c) for r in range(0, 225, 4) for c in range(0, 193, 4)
            if np.array_equal(whole[r : r + 64, c : c + 64], chip["local"][0].numpy())
        ]  # fmt: skip
        assert len(places) == 1
        row, col = places[0][0] - 64, places[0][1] - 64
        np.testing.assert_array_equal(chip["labels"], scene.labels.read(row, col, 64, 64)[0])
        context = scene.context.read((row - 96) // 4, (col - 96) // 4, 64, 64)
        np.testing.assert_array_equal(chip["context"], context)


@pytest.mark.parametrize("train", [PLAIN, {}, {"flips": True}], ids=["plain", "paper", "flips"])
def test_bright_pixels_are_labelled_bright_in_every_pose(scenes: list[TrainingScene], train: dict[str, Any]) -> None:
    """Local crop, context crop and labels stay one place: brightness follows the labels in both."""
    for index in range(20):
        chip = chips(scenes, **train)[1, index]
        for c, low, high in ((0, -0.3, 0.3), (1, 0.7, 1.3), (2, -1.3, -0.7)):
            here = chip["local"][0][chip["labels"] == c]
            if len(here) > 100:
                assert low < here.median() < high
        pooled = torch.nn.functional.avg_pool2d(chip["local"], 4)[0]
        difference = (pooled - chip["context"][0, 24:40, 24:40]).abs()
        assert difference.median() < 0.1


def test_a_chip_depends_on_seed_and_key_only(scenes: list[TrainingScene]) -> None:
    one, other = chips(scenes, flips=True), chips(scenes, flips=True)
    [other[3, k] for k in range(3)]
    assert torch.equal(one[2, 5]["local"], other[2, 5]["local"])
    assert not torch.equal(one[2, 5]["local"], one[2, 6]["local"])
    assert not torch.equal(one[2, 5]["local"], chips(scenes, seed=1, flips=True)[2, 5]["local"])


def test_workers_change_nothing(scenes: list[TrainingScene]) -> None:
    def batches(workers: int) -> list[Any]:
        return list(DataLoader(chips(scenes), batch_sampler=StepSampler(1, 4, 2, 2), num_workers=workers))

    for a, b in zip(batches(0), batches(2), strict=True):
        assert a.keys() == b.keys() == {"local", "context", "labels", "key"}
        assert all(torch.equal(a[name], b[name]) for name in a)


def test_the_eighty_per_cent_rule(scenes: list[TrainingScene]) -> None:
    shares = [float((chips(scenes)[0, k]["labels"] != 255).float().mean()) for k in range(60)]
    assert 0.2 <= min(shares) < 0.6


def test_one_scale_has_no_context(scenes: list[TrainingScene]) -> None:
    assert "context" not in chips(scenes, factor=None)[0, 0]


def test_jitter_is_one_gain_and_one_offset_for_both_windows(scenes: list[TrainingScene]) -> None:
    plain, jittered = (chips(scenes, jitter=jitter, **PLAIN)[0, 3] for jitter in (0.0, 0.2))
    for name in ("local", "context"):
        x, y = plain[name].double().ravel().numpy(), jittered[name].double().ravel().numpy()  # type: ignore[literal-required]
        gain, offset = np.polyfit(x, y, 1)
        np.testing.assert_allclose(y, gain * x + offset, atol=1e-5)
        assert 0.8 <= gain <= 1.2 and abs(offset) <= 0.4 and (gain, offset) != (1, 0)
    assert torch.equal(plain["labels"], jittered["labels"])


def test_more_scenes_than_a_process_may_hold_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Chips of scenes that were closed and opened again are those of scenes in memory."""
    recipe = recipe_for(write_discs(tmp_path, tuple("abcdefgh"), (80, 80)))
    rasters = find_rasters(recipe.data, "train")
    memory = chips(load_scenes(rasters, recipe.data, 4))
    monkeypatch.setattr(scenes_module, "MEMORY_PIXELS", 1)
    monkeypatch.setattr(chips_module, "_OPEN_SCENES", 2)
    (tmp_path / "scratch").mkdir()
    disk = chips(load_scenes(rasters, recipe.data, 4, folder=tmp_path / "scratch"))
    asked = chips(load_scenes(rasters, recipe.data, 4, folder=tmp_path / "scratch", in_memory=True))
    assert all(torch.equal(a, b) for a, b in zip(memory[0, 0].values(), asked[0, 0].values(), strict=True))
    before = open_files(tmp_path)
    for key in ((0, k) for k in range(40)):
        assert all(torch.equal(a, b) for a, b in zip(memory[key].values(), disk[key].values(), strict=True))
    assert before == 0 and 0 < open_files(tmp_path) <= 2 * 2


def test_data_that_memory_cannot_hold_are_refused() -> None:
    scenes_module._check_memory(1e6)
    with pytest.raises(InputError, match="set train.in_memory = false"):
        scenes_module._check_memory(1e18)


def open_files(folder: Path) -> int:
    """Files inside `folder` that this process holds open (Linux)."""
    if not Path("/proc/self/fd").exists():
        pytest.skip("open files are counted in /proc")
    return sum(os.path.realpath(fd).startswith(str(folder)) for fd in Path("/proc/self/fd").iterdir())


def test_scenes_too_small_for_the_window_are_refused(tmp_path: Path) -> None:
    write_raster(tmp_path / "a_dtm.tif", np.random.default_rng(0).random((20, 20), np.float32), -9999)
    write_raster(tmp_path / "a_mask.tif", np.zeros((20, 20), np.uint8), 255)
    recipe = recipe_for(tmp_path)
    small = load_scenes(find_rasters(recipe.data, "train"), recipe.data, 4)
    with pytest.raises(RunError, match="choose a smaller window.size"):
        chips(small, **PLAIN)[0, 0]
