"""Nothing is lost: kill -9 at any moment, a full disk, a run that goes on elsewhere."""

from __future__ import annotations

import random
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import ENVIRONMENT, assert_same_weights, command, log
from tests.synthetic import recipe_for, write_discs
from uhrseg.engine.checkpoint import BEST, CHECKPOINT
from uhrseg.engine.train import train
from uhrseg.errors import InputError, RunError
from uhrseg.recipe import Recipe

LONG = (
    "train.epochs=4", "train.steps_per_epoch=6", "train.checkpoint_every=4", "train.schedule=plateau",
    "train.val_every=2", "train.workers=1", 'data.train=["a_dtm.tif"]', 'data.val=["b_dtm.tif"]',
)  # fmt: skip


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_discs(tmp_path / "data")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Recipe, Path]:
    """A recipe and its uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    recipe = recipe_for(write_discs(folder / "data"), *LONG)
    train(recipe, folder / "run")
    return recipe, folder / "run"


def test_kill_9_at_a_random_moment_then_resume_gives_the_same_weights(
    whole: tuple[Recipe, Path], tmp_path: Path
) -> None:
    recipe, finished = whole
    run, moment = tmp_path / "killed", random.randint(4, 20)
    written = recipe.write(tmp_path / "recipe.toml")
    process = subprocess.Popen(command(written, run), env=ENVIRONMENT, start_new_session=True)
    while process.poll() is None and not ((run / "log.jsonl").exists() and len(log(run)) >= moment):
        time.sleep(0.002)
    time.sleep(random.random() * 0.05)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (run / "model").exists()
    train(recipe, run, resume=(run / CHECKPOINT).exists())
    assert_same_weights(finished / "model", run / "model")
    assert [r["loss"] for r in log(run)] == [r["loss"] for r in log(finished)], f"killed after step {moment}"


DYING = """
import os, signal, sys
from pathlib import Path
from uhrseg.engine.train import train
from uhrseg.recipe import Recipe
real, calls = os.fsync, 0
def fsync(fd):
    global calls
    calls += 1
    if calls == 3:  # two calls a checkpoint: the second checkpoint, half of it on disk
        os.ftruncate(fd, os.fstat(fd).st_size // 2)
        os.kill(os.getpid(), signal.SIGKILL)
    real(fd)
os.fsync = fsync
train(Recipe.read(sys.argv[1]), Path(sys.argv[2]))
"""


def test_killed_while_a_checkpoint_is_half_written_then_resumed(whole: tuple[Recipe, Path], tmp_path: Path) -> None:
    recipe, finished = whole
    run = tmp_path / "killed"
    written = recipe.write(tmp_path / "recipe.toml")
    died = subprocess.run([sys.executable, "-c", DYING, str(written), str(run)], env=ENVIRONMENT)
    assert died.returncode == -signal.SIGKILL
    assert (run / "checkpoints" / "last.partial").exists()
    assert torch.load(run / CHECKPOINT, weights_only=True)["step"] == 4
    train(recipe, run, resume=True)
    assert_same_weights(finished / "model", run / "model")
    assert not (run / "checkpoints" / "last.partial").exists()


def test_a_disk_that_is_full_keeps_the_checkpoint_before_and_says_so(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    recipe = recipe_for(root, "train.checkpoint_every=1")
    train(recipe, run)
    before = (run / CHECKPOINT).read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) // 2, hard))
    try:
        with pytest.raises(RunError, match="cannot be written.*the one before it is kept: make room"):
            train(recipe, run, resume=True)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert (run / CHECKPOINT).read_bytes() == before
    assert not (run / "checkpoints" / "last.partial").exists()


def test_the_model_is_that_of_the_best_validation_unless_the_last_is_asked_for(root: Path, tmp_path: Path) -> None:
    """A rate that explodes half-way: later validations are worse."""
    split = ('data.train=["a_dtm.tif"]', 'data.val=["b_dtm.tif"]', "train.val_every=1", "train.epochs=4")
    grow = ("train.lr=0.5", "train.warmup=0.9", "train.schedule=plateau", "train.steps_per_epoch=6")
    best = recipe_for(root, *split, *grow)
    run = tmp_path / "best"
    train(best, run)
    content = torch.load(run / BEST, weights_only=True)
    scores = torch.load(run / CHECKPOINT, weights_only=True)
    assert content["scores"]["miou"] == scores["best"] >= scores["scores"]["miou"]
    assert content["step"] < scores["step"] == 24
    last = best.model_copy(update={"train": best.train.model_copy(update={"keep": "last"})})
    for recipe, expected in ((best, content), (last, scores)):
        train(recipe, run, resume=True)  # nothing left to do but to hand over
        weights = load_file(run / "model" / "model.safetensors")
        assert all(torch.equal(weights[name], expected["module"][name]) for name in weights)


def test_a_run_goes_on_with_smaller_passes_but_not_with_smaller_steps(root: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    train(recipe_for(root, "train.batch_size=4"), run)
    train(recipe_for(root, "train.batch_size=2", "train.accumulate=2"), run, resume=True)
    with pytest.raises(InputError, match="had 4 samples in a step and would go on with 2"):
        train(recipe_for(root, "train.batch_size=2"), run, resume=True)
