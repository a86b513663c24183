"""What a prediction costs in reading: files held open."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from tests.rasters import make_model, save_model, terrain, threshold_card, write_raster
from uhrseg.engine.predict import predict_labels

ROOT = Path(__file__).resolve().parents[2]


def write_tiles(ground: NDArray[np.float32], folder: Path) -> None:
    """20 x 20 tiles of 50 px but for 30, whose ground becomes NaN too."""
    folder.mkdir()
    for number in np.random.default_rng(0).permutation(400):
        row, col = divmod(int(number), 20)
        rows, cols = slice(row * 50, row * 50 + 50), slice(col * 50, col * 50 + 50)
        gap = number % 13 == 5 and number < 390
        if gap:
            ground[rows, cols] = np.nan
        else:
            place = from_origin(500_000 + col * 50, 5_000_000 - row * 50, 1, 1)
            write_raster(folder / f"{row:02}-{col:02}.tif", ground[rows, cols], transform=place, nodata=np.nan)


def test_a_folder_of_hundreds_of_tiles_is_one_mosaic_with_few_open_files(tmp_path: Path) -> None:
    ground = terrain(1000, 1000)[0]
    write_tiles(ground, tmp_path / "tiles")
    assert len(list((tmp_path / "tiles").iterdir())) == 370
    merged = write_raster(tmp_path / "merged.tif", ground, nodata=np.nan)
    card = threshold_card((298.0, 303.0), size=256)
    model = make_model(card)
    folder = save_model(card, model, tmp_path / "model")
    words = ["uhrseg", "predict", str(tmp_path / "tiles"), "--model", str(folder), "-o", str(tmp_path / "out.tif")]
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256)); "
        f"sys.argv = {[*words, '--device', 'cpu', '--precision', 'fp32']!r}; "
        "import runpy; runpy.run_module('uhrseg', run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", limited], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    with rasterio.open(tmp_path / "out.tif") as made:
        assert made.shape == (1000, 1000)
        np.testing.assert_array_equal(made.read(1), predict_labels(merged, model, card, precision="fp32"))
        assert (made.read(1) == 255).sum() == np.isnan(ground).sum() == 30 * 50 * 50
