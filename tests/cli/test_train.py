"""`uhrseg train`: a run folder whose model predicts, and the way to go on after Ctrl-C."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyogrio
import pytest
from numpy.typing import NDArray

from tests.cli.conftest import Uhrseg, write_raster
from uhrseg.cli.train import _resume

RECIPE = """
name = "tiny"
[data]
root = "."
train = ["*_dtm.tif"]
labels = "{name}_mask.tif"
gsd_m = 2.0
background = 0
band = [{ name = "dtm" }]
class = [
    { id = 0, name = "ground", color = "#808080" },
    { id = 1, name = "bank", color = "#ffcc00" },
    { id = 2, name = "mound", color = "#e41a1c" },
]
[model]
trunk = "swinv2_t"
embed_dim = 16
depths = [1, 1]
heads = [1, 2]
window = 4
[window]
size = 32
context_factor = 4
overlap = 0.25
[train]
batch_size = 2
workers = 0
val_every = 0
schedule = "cosine"
precision = "fp32"
device = "cpu"
"""


@pytest.fixture
def recipe(tmp_path: Path, classes: NDArray[np.uint8]) -> Path:
    """A recipe beside its data: the values are the classes."""
    write_raster(tmp_path / "a_dtm.tif", np.where(classes == 255, np.float32(-9999), classes))
    write_raster(tmp_path / "a_mask.tif", classes.astype(np.float32), dtype="uint8", nodata=255)
    path = tmp_path / "recipe.toml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_becomes_a_model_that_predicts(uhrseg: Uhrseg, recipe: Path, raster: Path) -> None:
    trained = uhrseg("train", recipe, "-o", "run", "--fast-dev-run", "--set", "train.lr=0.001")
    assert trained.exit_code == 0, trained.stderr
    assert trained.stdout == "" and "wrote run/model" in trained.stderr
    for name in ("recipe.toml", "log.jsonl", "metrics.csv", "model/card.toml", "model/model.safetensors"):
        assert Path("run", name).is_file(), name
    assert "lr = 0.001" in Path("run/recipe.toml").read_text()
    predicted = uhrseg("predict", raster, "--model", "run/model", "-o", "out.gpkg", "--device", "cpu")
    assert predicted.exit_code == 0, predicted.stderr
    assert "class" in pyogrio.read_info("out.gpkg")["fields"]


@pytest.mark.parametrize(
    "settings",
    [
        {"trunk": '"glam_t"', "head": '"unet_nlu"', "global_tokens": 2},
        {"trunk": '"glam_t"', "head": '"upernet_relay"', "head_channels": 8, "faithful": "true", "depths": "[2, 2]"},
        {"trunk": '"flatten_swin_t"', "faithful": "false"},
        {"strategy": '"downsampling"'},
        {"strategy": '"decision_fusion"', "share_projector": "false"},
    ],
    ids=lambda settings: "-".join(str(value).strip('"') for value in settings.values()),
)
def test_other_trunks_and_heads_train_and_predict(uhrseg: Uhrseg, recipe: Path, raster: Path, settings: dict) -> None:
    chosen = [part for key, value in settings.items() for part in ("--set", f"model.{key}={value}")]
    trained = uhrseg("train", recipe, "-o", "run", "--fast-dev-run", *chosen)
    assert trained.exit_code == 0, trained.stderr
    predicted = uhrseg("predict", raster, "--model", "run/model", "-o", "out.tif", "--device", "cpu")
    assert predicted.exit_code == 0, predicted.stderr


def test_the_run_folder_is_named_after_the_recipe(uhrseg: Uhrseg, recipe: Path) -> None:
    result = uhrseg("train", recipe, "--fast-dev-run")
    assert result.exit_code == 0, result.stderr
    assert Path("runs/tiny/model/card.toml").is_file()


def test_a_wrong_recipe_is_refused_with_the_nearest_name(uhrseg: Uhrseg, recipe: Path) -> None:
    unknown = uhrseg("train", recipe, "--set", "train.epoch=3")
    assert unknown.exit_code == 2 and "epochs" in unknown.stderr
    missing = uhrseg("train", "gone.toml")
    assert missing.exit_code == 2 and "gone.toml" in missing.stderr
    elsewhere = uhrseg("train", recipe, "--set", "data.root=gone")
    assert elsewhere.exit_code == 2 and "gone" in elsewhere.stderr
    assert "Traceback" not in unknown.stderr + missing.stderr + elsewhere.stderr


def test_the_command_that_resumes_is_complete_and_quoted() -> None:
    command = _resume(Path("my recipe.toml"), Path("runs/a"), ["train.lr=0.1", "name=a b"])
    assert command == "uhrseg train 'my recipe.toml' -o runs/a --set train.lr=0.1 --set 'name=a b' --resume"
