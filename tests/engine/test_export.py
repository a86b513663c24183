"""Exported networks do what the models do, in any batch size; compiled ones give the same labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from typer.testing import CliRunner

from tests.models.test_trunks import NETWORKS
from tests.rasters import make_card
from uhrseg.card import WeightsSpec, sha256_of
from uhrseg.cli.main import app
from uhrseg.engine.export import Logits, export_onnx
from uhrseg.errors import InputError
from uhrseg.models import build, save_weights

SHORT = {"depths": (1, 2)}  # the translation's time grows with the blocks; the second stage has a shifted one
FAMILIES = {
    "vit": NETWORKS["vit"],
    "vit single": NETWORKS["vit"] | {"strategy": "single"},
    "swinv2": NETWORKS["swinv2"] | SHORT,
    "glam": NETWORKS["glam"] | SHORT,
    "glam single": NETWORKS["glam"] | {"strategy": "single"} | SHORT,
    "flatten": NETWORKS["flatten"] | SHORT,
    "vit fusion": NETWORKS["vit"] | {"strategy": "decision_fusion"},
}


def write_model(folder: Path, name: str) -> Path:
    options: dict[str, Any] = {"strategy": "relays", **FAMILIES[name]}
    factor = None if options["strategy"] == "single" else 4
    card = make_card(options, size=48, context_factor=factor)
    folder.mkdir()
    save_weights(network_of(options, factor), folder / "model.safetensors")
    weights = WeightsSpec(sha256=sha256_of(folder / "model.safetensors"))
    card.model_copy(update={"weights": weights}).write(folder)
    return folder


@pytest.mark.parametrize("name", ["vit", "swinv2", "glam", "flatten"])
def test_the_file_does_what_the_model_does(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model", name)
    done = export_onnx(folder, tmp_path / "model.onnx")
    assert done.difference < 1e-3
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert [i.name for i in session.get_inputs()] == list(done.inputs)
    windows = {key: np.random.default_rng(0).normal(size=(7, 1, 48, 48)).astype(np.float32) for key in done.inputs}
    assert session.run(["logits"], windows)[0].shape == (7, 3, 48, 48)
    metadata = {p.key: p.value for p in onnx.load(str(tmp_path / "model.onnx")).metadata_props}
    assert json.loads(metadata["uhrseg.card"])["window"]["size"] == 48
    assert [c["name"] for c in json.loads(metadata["uhrseg.legend"])] == ["class0", "class1", "class2"]


def test_what_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "there.onnx").write_text("mine")
    with pytest.raises(InputError, match="--overwrite"):
        export_onnx("swinv2-relay", tmp_path / "there.onnx")
    assert (tmp_path / "there.onnx").read_text() == "mine"
    with pytest.raises(InputError, match=r"ends in \.onnx"):
        export_onnx("swinv2-relay", tmp_path / "model.pt")


def test_the_command_says_what_it_wrote(tmp_path: Path) -> None:
    folder, output = write_model(tmp_path / "model", "vit single"), tmp_path / "small.onnx"
    run = CliRunner().invoke(app, ["models", "export", str(folder), "-o", str(output), "--json"])
    assert run.exit_code == 0, run.stderr
    assert json.loads(run.stdout)["inputs"] == ["local"] and output.is_file()
    again = CliRunner().invoke(app, ["models", "export", str(folder), "-o", str(output)])
    assert again.exit_code == 2 and "--overwrite" in again.stderr


@pytest.mark.parametrize("name", ["vit", "swinv2", "glam", "glam single", "flatten", "vit fusion"])
def test_the_graph_has_no_breaks_and_compiled_labels_are_the_same(name: str) -> None:
    options: dict[str, Any] = {"strategy": "relays", **FAMILIES[name]}
    factor = None if options["strategy"] == "single" else 4
    network = Logits(network_of(options, factor)).eval()
    windows = list(torch.randn((1 if factor is None else 2), 2, 1, 48, 48, generator=torch.Generator().manual_seed(0)))
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    with torch.no_grad():
        assert torch.equal(compiled(*windows).argmax(1), network(*windows).argmax(1))


def network_of(options: dict[str, Any], factor: int | None) -> torch.nn.Module:
    torch.manual_seed(0)
    module = build(**options, bands=1, classes=3, size=48, context_factor=factor).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, 0.2 if parameter.ndim == 1 else 0.0, 0.2)
    return module
