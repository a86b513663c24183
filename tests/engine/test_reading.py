"""What a prediction costs in reading: files held open, and bytes."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from rasterio.transform import from_origin

from tests.rasters import make_model, save_model, terrain, threshold_card, write_raster
from uhrseg.engine import chunks
from uhrseg.engine.predict import predict, predict_labels

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


LAYOUTS: dict[str, dict[str, Any]] = {
    "tiles": {"tiled": True, "blockxsize": 256, "blockysize": 256, "interleave": "band"},
    "large tiles, pixel by pixel": {"tiled": True, "blockxsize": 512, "blockysize": 512, "interleave": "pixel"},
    "strips": {"blockysize": 16, "interleave": "band"},
}


def bytes_read() -> int:
    """Bytes this process has asked the system for, whatever gave them."""
    return int(Path("/proc/self/io").read_text().split()[1])


@pytest.mark.skipif(not Path("/proc/self/io").exists(), reason="only Linux counts the bytes that a process reads")
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_raster_is_decoded_twice_and_no_more(layout: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once for the coarse grid and once for the windows, with a cache that holds a part of the raster."""
    monkeypatch.setattr(chunks, "_SMALLEST_CACHE", 0)  # or all of so small a raster would fit
    monkeypatch.setattr(chunks, "_OTHER_BLOCKS", 0)  # no results are written here
    card = threshold_card((100.0,), bands=4, size=256)
    pixels = np.random.default_rng(0).integers(1, 200, (4, 1536, 1536)).astype(np.float32)
    source = write_raster(tmp_path / "source.tif", pixels, nodata=np.nan, **LAYOUTS[layout])
    prediction = predict(source, (make_model(card), card), device="cpu", precision="fp32")
    assert prediction.plan.overlap == 64 and prediction.cache_bytes < 0.8 * pixels.nbytes
    before = bytes_read()
    labels = prediction.labels.values
    assert bytes_read() - before <= 2.3 * pixels.nbytes
    np.testing.assert_array_equal(labels, pixels[0] >= 100)
