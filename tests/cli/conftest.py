"""A model folder whose right answer is known by heart, and a raster that fits it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import Affine
from typer.testing import CliRunner, Result

from uhrseg.card import ModelCard, sha256_of
from uhrseg.cli.main import app
from uhrseg.models import build, save_weights

Uhrseg = Callable[..., Result]

GSD = 2.0
ORIGIN = Affine(GSD, 0, 500_000, 0, -GSD, 4_100_000)


@pytest.fixture
def uhrseg(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Uhrseg:
    """`uhrseg("predict", ...)` runs the program in an empty folder, without a terminal."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: object) -> Result:
        return CliRunner().invoke(app, [str(argument) for argument in arguments])

    return run


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder: class 0 below 1, 'bank' from 1, 'mound' from 2, on one band at 2 m."""
    folder = tmp_path / "model"
    folder.mkdir()
    weights = save_weights(build("threshold", bands=1, classes=3, thresholds=[1.0, 2.0]), folder / "model.safetensors")
    ModelCard.model_validate(
        {
            "name": "steps",
            "license": "CC0-1.0",
            "description": "Counts thresholds.",
            "architecture": {"trunk": "threshold", "thresholds": [1.0, 2.0]},
            "input": {"gsd_m": GSD, "band": [{"name": "dtm"}]},
            "window": {"size": 32, "context_factor": 4, "overlap": 0.25},
            "class": [
                {"id": 0, "name": "ground", "color": "#808080"},
                {"id": 1, "name": "bank", "color": "#ffcc00"},
                {"id": 2, "name": "mound", "color": "#e41a1c"},
            ],
            "background": 0,
            "weights": {"sha256": sha256_of(weights)},
        }
    ).write(folder)
    return folder


@pytest.fixture
def classes() -> NDArray[np.uint8]:
    """The right answer (90, 130): two mounds, a bank that crosses every window, and nodata in a corner."""
    answer = np.zeros((90, 130), dtype=np.uint8)
    answer[20:30, 25:40] = 2
    answer[70:72, 100:103] = 2
    answer[50:54, 3:127] = 1
    answer[:8, :12] = 255
    return answer


@pytest.fixture
def raster(tmp_path: Path, classes: NDArray[np.uint8]) -> Path:
    """A raster (UTM 31N, 2 m, nodata -9999) whose values are the classes."""
    path = tmp_path / "parcel.tif"
    write_raster(path, np.where(classes == 255, np.float32(-9999), classes))
    return path


def write_raster(path: Path, values: NDArray[np.float32], **profile: object) -> None:
    """Write (Y, X) or (C, Y, X) values as a GeoTIFF."""
    bands = values if values.ndim == 3 else values[np.newaxis]
    count, height, width = bands.shape
    settings = {"crs": "EPSG:32631", "transform": ORIGIN, "nodata": -9999.0, "dtype": "float32"} | profile
    with rasterio.open(path, "w", driver="GTiff", count=count, height=height, width=width, **settings) as target:
        target.write(bands.astype(settings["dtype"]))
