"""`uhrseg data`: every problem of a data set at once, and what is there when there is none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from tests.cli.conftest import Uhrseg
from tests.trees import ROOT, stripes, write_cityscapes, write_image

RECIPE = ROOT / "recipes" / "cityscapes.toml"


def test_shares_files_and_sizes_are_those_of_the_tree(uhrseg: Uhrseg, tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "tree")
    result = uhrseg("data", "check", RECIPE, "--set", f"data.root={root}", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    train = report["splits"]["train"]
    ids = stripes([0, 4, 7, 8, 21, 26, 33])
    assert report["problems"] == [] and set(report["splits"]) == {"train", "val"}
    assert (train["files"], train["pixels"], train["sizes"]) == (1, 96 * 96, [[96, 96]])
    assert train["counts"]["road"] == (ids == 7).sum() and train["labelled"] == (ids >= 7).sum()
    assert abs(sum(train["shares"].values()) - 1) < 1e-9


def test_all_problems_are_listed_at_once(uhrseg: Uhrseg, tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "tree")
    images, labels = root / "leftImg8bit" / "train" / "ulm", root / "gtFine" / "train" / "ulm"
    for k in range(2, 6):
        write_image(images / f"ulm_{k}_leftImg8bit.png", np.full((3, 96, 96), k, np.uint8), "PNG")
    write_image(labels / "ulm_2_gtFine_labelIds.png", stripes([7, 99]), "PNG")  # a value of no class
    write_image(labels / "ulm_3_gtFine_labelIds.png", stripes([7])[:50], "PNG")  # another size
    write_image(labels / "ulm_4_gtFine_labelIds.png", stripes([7]), "PNG")
    (images / "ulm_4_leftImg8bit.png").write_bytes(b"no picture")  # damaged; ulm_5 has no labels
    result = uhrseg("data", "check", RECIPE, "--set", f"data.root={root}")
    assert result.exit_code == 2 and "4 problems" in result.stderr and "Traceback" not in result.stderr
    for said in ("holds the value 99", "96 x 50 pixels", "ulm_4_leftImg8bit.png cannot be opened", "has no labels"):
        assert said in result.stderr
    assert "train" in result.stdout


def test_an_empty_split_and_an_unknown_data_set_are_named(uhrseg: Uhrseg, tmp_path: Path) -> None:
    root = write_cityscapes(tmp_path / "tree")
    pattern = 'data.val=["leftImg8bit/val/*/*.png", "!leftImg8bit/val/*/*.png"]'
    empty = uhrseg("data", "check", RECIPE, "--set", f"data.root={root}", "--set", pattern)
    assert empty.exit_code == 2 and "the val split is empty" in empty.stderr
    unknown = uhrseg("data", "prepare", "cityscape", root)
    assert unknown.exit_code == 2 and "cityscapes" in unknown.stderr
    assert "needs no preparation" in uhrseg("data", "prepare", "cityscapes", root).stderr
