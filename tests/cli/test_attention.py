"""`uhrseg models attention` draws the window that was asked for, or says why not."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import rasterio

from tests.cli.conftest import Uhrseg


def test_the_picture_is_of_the_window_in_the_middle_of_the_bounds(uhrseg: Uhrseg, parcel: Path) -> None:
    with rasterio.open(parcel) as source:
        (left, top), (right, bottom) = source.xy(150, 500, offset="ul"), source.xy(250, 600, offset="ul")
    bounds = f"{left},{bottom},{right},{top}"
    done = uhrseg("models", "attention", "swinv2-relay", parcel, "-o", "a.png", "--bounds", bounds)
    assert done.exit_code == 0, done.stderr
    assert "row 72, column 420" in done.stderr  # 200 - 128 and 550 - 128 = 422, on cells of 4 px
    assert matplotlib.image.imread("a.png").std() > 0.1
    again = uhrseg("models", "attention", "swinv2-relay", parcel, "-o", "a.png")
    assert again.exit_code == 2 and "--overwrite" in again.stderr


def test_what_cannot_be_drawn_is_refused(uhrseg: Uhrseg, model: Path, parcel: Path) -> None:
    done = uhrseg("models", "attention", model, parcel, "-o", "a.png")
    assert done.exit_code == 2 and "no tokens" in done.stderr and not Path("a.png").exists()
    assert uhrseg("models", "attention", "swinv2-relay", parcel, "-o", "a.jpg").exit_code == 2
