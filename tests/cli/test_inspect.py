"""`uhrseg inspect`: what a raster is, and whether it fits."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray

from tests.cli.conftest import Uhrseg, write_raster


def test_the_facts_are_those_of_the_file(uhrseg: Uhrseg, raster: Path, classes: NDArray[np.uint8]) -> None:
    result = uhrseg("inspect", raster, "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout)
    assert (facts["driver"], facts["width"], facts["height"]) == ("GTiff", 130, 90)
    assert facts["crs"] == "EPSG:32631"
    assert facts["gsd_m"] == [2.0, 2.0]
    assert [(band["dtype"], band["nodata"]) for band in facts["bands"]] == [("float32", -9999.0)]
    assert facts["valid_share"] == pytest.approx((classes != 255).mean())


def test_the_facts_for_people_say_that_the_valid_share_is_estimated(uhrseg: Uhrseg, raster: Path) -> None:
    result = uhrseg("inspect", raster)
    assert result.exit_code == 0, result.stderr
    for words in ("130 x 90 pixels", "EPSG:32631", "2 x 2 m", "float32", "99.2%", "estimated"):
        assert words in result.stdout


def test_nan_nodata_and_no_crs_are_said_in_strict_json(uhrseg: Uhrseg) -> None:
    values = np.ones((20, 30), dtype=np.float32)
    values[:, :15] = np.nan
    write_raster(Path("nan.tif"), values, nodata=np.nan, crs=None)
    result = uhrseg("inspect", "nan.tif", "--json")
    assert result.exit_code == 0, result.stderr
    facts = json.loads(result.stdout, parse_constant=pytest.fail)
    assert (facts["crs"], facts["gsd_m"], facts["bands"][0]["nodata"]) == (None, None, "nan")
    assert facts["valid_share"] == 0.5


def test_the_valid_share_obeys_nodata_given_by_hand(uhrseg: Uhrseg) -> None:
    values = np.zeros((20, 30), dtype=np.float32)
    values[:5] = 1
    write_raster(Path("plain.tif"), values, nodata=None)
    facts = json.loads(uhrseg("inspect", "plain.tif", "--nodata", 0, "--json").stdout)
    assert facts["valid_share"] == 0.25


def test_a_raster_that_fits_a_model_exits_0_and_one_that_does_not_exits_2(
    uhrseg: Uhrseg, model: Path, raster: Path
) -> None:
    fits = uhrseg("inspect", raster, "--model", model)
    assert fits.exit_code == 0 and "fits" in fits.stdout
    write_raster(Path("three.tif"), np.zeros((3, 40, 40), dtype=np.float32))
    misfit = uhrseg("inspect", "three.tif", "--model", model, "--json")
    assert misfit.exit_code == 2
    assert "3 band" in misfit.stderr
    facts = json.loads(misfit.stdout)
    assert "3 band" in facts["fit"]["misfit"] and facts["width"] == 40


def test_a_quicklook_is_drawn_and_not_overwritten(uhrseg: Uhrseg, raster: Path, classes: NDArray[np.uint8]) -> None:
    write_raster(Path("classes.tif"), classes.astype(np.float32), dtype="uint8", nodata=255)
    drawn = uhrseg("inspect", raster, "--labels", "classes.tif", "--png", "look.png")
    assert drawn.exit_code == 0, drawn.stderr
    with rasterio.open("look.png") as picture:
        assert picture.count >= 3
        assert picture.read().std() > 0
    again = uhrseg("inspect", raster, "--png", "look.png")
    assert again.exit_code == 2 and "--overwrite" in again.stderr


def test_labels_without_a_picture_are_refused(uhrseg: Uhrseg, raster: Path) -> None:
    for option in ("--labels", "--polygons"):
        result = uhrseg("inspect", raster, option, "file")
        assert result.exit_code == 2 and "--png" in result.stderr


def test_what_is_no_raster_is_refused(uhrseg: Uhrseg) -> None:
    Path("notes.txt").write_text("not a raster")
    result = uhrseg("inspect", "notes.txt")
    assert result.exit_code == 2
    assert "notes.txt" in result.stderr and "Traceback" not in result.stderr
