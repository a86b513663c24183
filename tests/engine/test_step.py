"""A step is that of one big batch, and stays the same step under checkpointing, compiling and bf16."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from tests.engine.runs import assert_same_weights, log
from tests.synthetic import recipe_for, write_discs
from uhrseg.engine.train import train
from uhrseg.errors import InputError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_discs(tmp_path / "data")


SMALL = ("train.epochs=1", "train.steps_per_epoch=4")


def test_accumulated_passes_have_the_loss_of_one_batch_dice_included(root: Path, tmp_path: Path) -> None:
    same = (*SMALL, "model.drop_path=0.0", "loss.dice_weight=1.0", "loss.class_weights=[1.0, 2.0, 3.0]")
    train(recipe_for(root, *same, "train.batch_size=4"), tmp_path / "one")
    train(recipe_for(root, *same, "train.batch_size=1", "train.accumulate=4"), tmp_path / "four")
    one, four = log(tmp_path / "one"), log(tmp_path / "four")
    for term in ("loss", "local", "global", "consistency", "dice", "grad_norm"):
        np.testing.assert_allclose([r[term] for r in one], [r[term] for r in four], rtol=1e-4, err_msg=term)
    assert one[0]["dice"] > 0.1


def test_an_auxiliary_heads_loss_is_part_of_the_steps(root: Path, tmp_path: Path) -> None:
    tiny = {"trunk": "glam_t", "head": "upernet_mmseg", "strategy": "single", "auxiliary": True}
    recipe = recipe_for(root, *SMALL, "train.steps_per_epoch=2", "train.prior_bias=true", "loss.auxiliary_weight=0.5")
    train(recipe.model_copy(update={"model": recipe.model.model_copy(update=tiny)}), tmp_path / "run")
    for record in log(tmp_path / "run"):
        assert record["auxiliary"] > 0
        np.testing.assert_allclose(record["loss"], record["local"] + 0.5 * record["auxiliary"], rtol=1e-5)


@pytest.mark.parametrize("trunk", ["swinv2_t", "vit_s", "glam_t"])
def test_activation_checkpointing_changes_no_bit(root: Path, tmp_path: Path, trunk: str) -> None:
    """Drop path included: its random numbers are drawn again alike."""
    recipe = recipe_for(root, *SMALL, "train.steps_per_epoch=2")
    tiny = {"trunk": trunk, "head": "linear", "head_channels": None, "drop_path": 0.3}
    if trunk == "vit_s":
        tiny |= {"embed_dim": 16, "heads": 2, "depths": None, "window": None, "patch_size": 16}
    recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update=tiny)})
    lean = recipe.model_copy(update={"train": recipe.train.model_copy(update={"activation_checkpointing": True})})
    assert_same_weights(train(recipe, tmp_path / "plain"), train(lean, tmp_path / "lean"))


def test_a_network_that_is_no_stack_of_blocks_is_told_so(root: Path, tmp_path: Path) -> None:
    recipe = recipe_for(root, "train.activation_checkpointing=true")
    network = recipe.model.model_copy(update={"trunk": "threshold"})
    with pytest.raises(InputError):
        train(recipe.model_copy(update={"model": network}), tmp_path / "run")


def test_bf16_learns_and_its_master_weights_are_float32(root: Path, tmp_path: Path) -> None:
    model = train(recipe_for(root, "train.precision=bf16", "train.steps_per_epoch=10"), tmp_path / "run")
    losses = [r["local"] for r in log(tmp_path / "run")]
    assert np.isfinite(losses).all() and np.mean(losses[-4:]) < losses[0]
    weights = load_file(model / "model.safetensors").values()
    assert all(w.dtype == torch.float32 for w in weights if w.is_floating_point())
