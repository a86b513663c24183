from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.image import imread
from safetensors.torch import load_file
from torch import Tensor

from tests.synthetic import discs, recipe_for, write_discs
from uhrseg.data.scenes import labels_on
from uhrseg.data.split import split_rasters
from uhrseg.engine.checkpoint import CHECKPOINT
from uhrseg.engine.predict import load_model, predict_labels
from uhrseg.engine.runlog import RunLog
from uhrseg.engine.score import Confusion
from uhrseg.engine.train import train
from uhrseg.errors import InputError, RunError
from uhrseg.geo.scene import Scene
from uhrseg.recipe import Recipe

VALIDATED = ('data.train=["a_dtm.tif"]', 'data.val=["b_dtm.tif"]')


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_discs(tmp_path / "data")


def weights(model: Path) -> dict[str, Tensor]:
    return load_file(model / "model.safetensors")


def log(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]


def assert_same_weights(a: Path, b: Path) -> None:
    left, right = weights(a), weights(b)
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


@pytest.mark.parametrize("strategy", ["relays", "single"])
def test_a_small_model_learns_and_predicts_what_it_was_shown(root: Path, tmp_path: Path, strategy: str) -> None:
    recipe = recipe_for(
        root, f"model.strategy={strategy}", "model.drop_path=0.0", "train.lr=1e-2", "train.steps_per_epoch=40",
        "train.batch_size=4", "train.rotate_probability=0.2", "train.scale_probability=0.2", *VALIDATED
    )
    run = tmp_path / "run"
    model = train(recipe, run)
    losses = [record["local"] for record in log(run)]
    assert np.mean(losses[-5:]) < 0.35 * losses[0]
    module, card = load_model(model)
    assert card.window.context_factor == (4 if strategy == "relays" else None)
    values, labels = discs((160, 128), 0)
    confusion = Confusion(3)
    confusion.update(labels, predict_labels(root / "a_dtm.tif", module, card, precision="fp32"))
    assert confusion.scores(card.legend)["miou"] > 0.6
    valid = values[labels != 255]
    other = discs((160, 128), 1)
    assert card.input.band[0].mean == pytest.approx(valid.mean(dtype=np.float64), abs=1e-6)
    rows = list(csv.DictReader((run / "metrics.csv").open()))
    confusion = Confusion(3)
    confusion.update(other[1], predict_labels(root / "b_dtm.tif", module, card, precision="fp32"))
    assert float(rows[-1]["val_miou"]) == pytest.approx(confusion.scores(card.legend)["miou"], abs=1e-9)
    assert card.training["validation"]["miou"] == pytest.approx(float(rows[-1]["val_miou"]))
    assert rows[0]["val_miou"] == ""  # val_every = 0: looked at once
    assert float(rows[1]["loss"]) == pytest.approx(np.mean([r["loss"] for r in log(run) if r["epoch"] == 1]))


def test_the_run_folder_is_that_of_the_contract(root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(root)
    run = tmp_path / "run"
    assert train(recipe, run) == run / "model"
    found = {str(p.relative_to(run)) for p in run.rglob("*") if p.is_file()}
    assert found == {
        "recipe.toml", "log.jsonl", "metrics.csv", "curves.png", "checkpoints/last",
        "model/card.toml", "model/model.safetensors",
    }  # fmt: skip
    assert Recipe.read(run / "recipe.toml") == recipe
    assert [r["step"] for r in log(run)] == [1, 2, 3, 4, 5, 6]
    assert imread(run / "curves.png").std() > 0.01


@pytest.mark.parametrize("stop_after", [4, 5])
def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Bitwise, with drop path and a plateau schedule, wherever between two checkpoints it stopped."""
    recipe = recipe_for(
        root, "train.epochs=4", "train.steps_per_epoch=2", "train.checkpoint_every=3", "train.schedule=plateau",
        "train.val_every=1", *VALIDATED,
    )  # fmt: skip
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    train(recipe, whole)
    write = RunLog.step

    def write_and_stop(self: RunLog, record: dict[str, Any]) -> None:
        write(self, record)
        if record["step"] == stop_after:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunLog, "step", write_and_stop)
        train(recipe, stopped)
    train(recipe, stopped, resume=True)
    assert_same_weights(whole / "model", stopped / "model")
    assert [r["loss"] for r in log(whole)] == [r["loss"] for r in log(stopped)]
    rows = [list(csv.DictReader((run / "metrics.csv").open())) for run in (whole, stopped)]
    for a, b in zip(*rows, strict=True):
        assert {k: a[k] for k in a if k not in ("samples_per_s", "data_wait")} == {
            k: b[k] for k in b if k not in ("samples_per_s", "data_wait")
        }


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_with_a_prior_bias_the_first_loss_is_the_entropy_of_the_classes(root: Path, tmp_path: Path, head: str) -> None:
    first = {}
    for prior in ("true", "false"):
        recipe = recipe_for(
            root, "train.epochs=1", "train.steps_per_epoch=1", "train.batch_size=16", f"train.prior_bias={prior}"
        )
        network = {"head": head, "head_channels": 16 if head == "upernet" else None}
        recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=network)})
        train(recipe, tmp_path / prior)
        first[prior] = log(tmp_path / prior)[0]["local"]
    assert first["true"] < 0.75 * first["false"]


def test_resuming_a_finished_run_gives_the_same_model_again(root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(root, *VALIDATED)
    model = train(recipe, tmp_path / "run")
    card = (model / "card.toml").read_text()
    train(recipe, tmp_path / "run", resume=True)
    assert (model / "card.toml").read_text() == card


def test_accumulated_passes_are_one_big_batch(root: Path, tmp_path: Path) -> None:
    same = ("model.drop_path=0.0", "train.epochs=1", "train.clip_norm=1.0")
    one = train(recipe_for(root, *same, "train.batch_size=4"), tmp_path / "one")
    two = train(recipe_for(root, *same, "train.batch_size=1", "train.accumulate=4"), tmp_path / "two")
    losses = [[r["loss"] for r in log(model.parent)] for model in (one, two)]
    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-4)


@pytest.mark.parametrize("passes", [("train.batch_size=2",), ("train.batch_size=1", "train.accumulate=2")])
def test_two_processes_are_one_with_the_doubled_batch(root: Path, tmp_path: Path, passes: tuple[str, ...]) -> None:
    """Over 50 steps. Crops with ignored pixels included: sums and counts are those of all passes and processes."""
    same = ("model.drop_path=0.0", "train.epochs=1", "train.steps_per_epoch=50", "train.lr=1e-3", "window.size=32",
            "model.window=4", "loss.dice_weight=1.0", *VALIDATED)
    train(recipe_for(root, *same, "train.batch_size=4"), tmp_path / "one")
    recipe = recipe_for(root, *same, *passes).write(root / "two.toml")
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m", "uhrseg"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [*launch, "train", str(recipe), "-o", str(tmp_path / "two")],
        env=environment, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    assert len(one) == len(two) == 50
    assert done.stderr.count("wrote") == 1  # the first process speaks for all
    for term in ("loss", "local", "global", "consistency", "dice"):
        np.testing.assert_allclose([r[term] for r in one], [r[term] for r in two], atol=1e-4)
    rows = [list(csv.DictReader((tmp_path / run / "metrics.csv").open()))[-1] for run in ("one", "two")]
    assert float(rows[0]["val_miou"]) == pytest.approx(float(rows[1]["val_miou"]), abs=0.02)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(root, "train.lr=1e30", "train.warmup=0.0", "train.checkpoint_every=1", "train.epochs=3")
    with pytest.raises(RunError, match=r"step \d is not finite.*index \d of epoch 0 \(scene [ab]_dtm, centre"):
        train(recipe, tmp_path / "run")
    checkpoint = torch.load(tmp_path / "run" / CHECKPOINT, weights_only=True)
    assert checkpoint["step"] >= 1
    assert not (tmp_path / "run" / "model").exists()


def test_folders_in_use_or_of_another_recipe_are_refused(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    with pytest.raises(InputError, match="no checkpoint to resume"):
        train(recipe_for(root), run, resume=True)
    train(recipe_for(root), run, fast_dev_run=True)
    with pytest.raises(InputError, match="is not empty"):
        train(recipe_for(root), run)
    with pytest.raises(InputError, match="recipe differs"):
        train(recipe_for(root), run, resume=True)


def test_a_recipe_that_does_not_fit_its_data_leaves_the_folder_free(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="has no labels"):
        train(recipe_for(root, "data.labels={stem}_x.tif"), tmp_path / "run")
    assert train(recipe_for(root), tmp_path / "run", fast_dev_run=True).is_dir()


def test_an_overlap_off_the_coarse_grid_is_refused_before_training(root: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nearest that works"):
        train(recipe_for(root, "window.overlap=0.15"), tmp_path / "run")


def test_blocks_of_one_raster_validate_a_run_where_it_was_not_trained(root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(
        root, 'data.train=["a_dtm.tif"]', "data.blocks.size_m=32", "data.blocks.buffer_m=4", "train.val_every=1",
        "train.schedule=plateau",
    )  # fmt: skip
    run = tmp_path / "run"
    module, card = load_model(train(recipe, run))
    val = split_rasters(recipe.data)[1][0]
    confusion = Confusion(3)
    labels = labels_on(val, Scene.open(val.raster).geobox, recipe.data)
    confusion.update(labels, predict_labels(val.raster, module, card, precision="fp32"))
    scores = confusion.scores(card.legend)
    assert 0 < (labels != 255).mean() < 0.5
    assert card.training["validation"]["miou"] == pytest.approx(scores["miou"])
    assert (run / "blocks.geojson").is_file()
