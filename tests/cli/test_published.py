"""`uhrseg train --fast-dev-run` on tiny trees of the four published data sets, from the project's own recipes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import rasterio

from tests.cli.conftest import Uhrseg
from tests.trees import ROOT, SMALL, TREES, write_archaeoscape
from uhrseg.card import ModelCard
from uhrseg.presets import PRESETS

IMAGES = {"urur": "val/image/a/*.tif", "gleason": "Train Imgs/*.jpg", "cityscapes": "leftImg8bit/val/ulm/*.png"}
PARCELS = ("01_olinda", "17_fusang", "20_hali")


def arguments(name: str, root: Path, uhrseg: Uhrseg) -> list[str]:
    """The recipe of a data set and the overrides that make it fit the tiny tree written to `root`."""
    overrides = [f"data.root={root}", *SMALL]
    if name == "archaeoscape":
        write_archaeoscape(root, PARCELS)
        for split, parcel in zip(("train", "val", "test"), PARCELS, strict=True):
            overrides.append(f'data.{split}=["data/rasters/rgb/{parcel}.tif"]')
    else:
        TREES[name](root)
    if name == "gleason":
        prepared = uhrseg("data", "prepare", "gleason", root)
        assert prepared.exit_code == 0, prepared.stderr
    return [str(ROOT / "recipes" / f"{name}.toml"), *(word for o in overrides for word in ("--set", o))]


@pytest.mark.parametrize("name", PRESETS)
def test_every_layout_is_checked_and_trains(name: str, uhrseg: Uhrseg, tmp_path: Path) -> None:
    words = arguments(name, tmp_path / "tree", uhrseg)
    checked = uhrseg("data", "check", *words)
    assert checked.exit_code == 0, checked.stderr + checked.stdout
    trained = uhrseg("train", *words, "-o", "run", "--fast-dev-run", "-q")
    assert trained.exit_code == 0, trained.stderr
    card = ModelCard.read(Path("run/model"))
    assert [c["name"] for c in PRESETS[name]["class"]] == card.legend.names
    scored = uhrseg("benchmark", name, "--recipe", *words, "--models", "run/model", "-o", "report", "-q")
    assert scored.exit_code == 0, scored.stderr
    row = json.loads(Path("report/results.json").read_text())["rows"][0]
    assert 0 <= row["metrics"]["mIoU"] <= 100 and row["provenance"]["data_fingerprint"]
    if name == "archaeoscape":
        return  # a parcel's bands lie in two files, which predict takes as a stacked VRT
    source = next((tmp_path / "tree").glob(IMAGES[name]))
    predicted = uhrseg("predict", source, "--model", "run/model", "-o", "out.tif", "--device", "cpu", "-q")
    assert predicted.exit_code == 0, predicted.stderr
    with rasterio.open("out.tif") as out, rasterio.open(source) as picture:
        assert out.shape == picture.shape
