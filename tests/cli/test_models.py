"""`uhrseg models`: weights and architectures are two tables."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from tests.cli.conftest import Uhrseg
from tests.models.golden import _trunk, read
from uhrseg.card import ModelCard
from uhrseg.engine.fit import check_fit, shipped_models
from uhrseg.errors import InputError
from uhrseg.models import MODELS


def test_the_list_holds_what_ships_and_what_can_be_trained(uhrseg: Uhrseg) -> None:
    listed = json.loads(uhrseg("models", "list", "--json").stdout)
    assert {weights["name"] for weights in listed["weights"]} == set(shipped_models())
    assert [a["name"] for a in listed["architectures"]] == list(MODELS)
    assert next(a for a in listed["architectures"] if a["name"] == "swinv2_s")["pretrained_license"] == "mit"
    assert all(weights["license"] and weights["classes"] and weights["bands"] for weights in listed["weights"])
    (shipped,) = listed["weights"]
    assert "artificial" in shipped["trained_on"]
    assert shipped["parameters_m"] == pytest.approx(numbers(shipped_models()["swinv2-relay"]) / 1e6, abs=0.01)


def numbers(folder: Path) -> int:
    with safe_open(folder / "model.safetensors", "pt") as file:
        return sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118


def test_the_list_for_people_has_two_tables(uhrseg: Uhrseg) -> None:
    weights, _, architectures = uhrseg("models", "list").stdout.partition("Architectures")
    assert weights.startswith("Weights")
    for name in shipped_models():
        assert name in weights
    for name in MODELS:
        assert name in architectures


def test_show_prints_the_card(uhrseg: Uhrseg, model: Path) -> None:
    result = uhrseg("models", "show", model)
    assert result.exit_code == 0, result.stderr
    for words in ("steps", "CC0-1.0", "Counts thresholds.", "dtm", "2 m", "32 px", "mound", "(background)"):
        assert words in result.stdout


def test_show_json_is_the_card(uhrseg: Uhrseg, model: Path) -> None:
    card = json.loads(uhrseg("models", "show", model, "--json").stdout)
    assert card["name"] == "steps"
    assert [c["name"] for c in card["class"]] == ["ground", "bank", "mound"]


def test_show_refuses_an_architecture_and_an_unknown_name(uhrseg: Uhrseg) -> None:
    for name in ("swinv2_t", "nonsense"):
        result = uhrseg("models", "show", name)
        assert result.exit_code == 2 and name in result.stderr


def test_verify_finds_weights_that_were_changed(uhrseg: Uhrseg, tmp_path: Path) -> None:
    shipped = shipped_models()["swinv2-relay"]
    assert uhrseg("models", "verify", shipped).exit_code == 0
    copy = tmp_path / "copy"
    shutil.copytree(shipped, copy)
    (copy / "model.safetensors").write_bytes((copy / "model.safetensors").read_bytes()[:-1] + b"x")
    result = uhrseg("models", "verify", copy)
    assert result.exit_code == 2 and "sha256 differs" in result.stderr


def test_import_makes_a_folder_that_show_and_verify_read_and_predict_asks_for_statistics(
    uhrseg: Uhrseg, tmp_path: Path
) -> None:
    reference = Path(__file__).parents[1] / "golden" / "relay" / "rt_swin2.safetensors"
    case = read(reference)
    torch.save({"state_dict": {f"net.{k}": v for k, v in case.state.items()}}, tmp_path / "epoch_001.ckpt")
    sizes = [f"{k}={json.dumps(v)}" for k, v in _trunk(case.config)[1].items()] + [f"image_size={case.local.shape[-1]}"]
    chosen = [word for size in sizes for word in ("--set", size)]
    names = ",".join(f"c{i}" for i in range(case.config["num_classes"]))
    command = ["models", "import", tmp_path / "epoch_001.ckpt", "--arch", "rt_swin2_s", "--classes", names, *chosen]
    result = uhrseg(*command, "-o", tmp_path / "m", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["tensors"] > 50 and "in no checkpoint" in result.stderr
    assert json.loads(uhrseg("models", "show", tmp_path / "m", "--json").stdout)["input"]["band"][0]["mean"] is None
    assert uhrseg("models", "verify", tmp_path / "m").exit_code == 0
    with pytest.raises(InputError, match="not known"):
        check_fit(None, ModelCard.read(tmp_path / "m"))  # type: ignore[arg-type]  # refused before the scene is asked
    assert uhrseg(*command, "-o", tmp_path / "m").exit_code == 2  # it exists
