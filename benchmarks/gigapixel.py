"""End to end over a raster of a gigapixel: megapixels per second of `predict`, and how busy the device is.

    python benchmarks/gigapixel.py --folder /scratch                  # 32768 px, 17 GB of float32, SwinV2-S + relays
    python benchmarks/gigapixel.py --folder /scratch --side 4096 --trunk swinv2_t --batch-size 8

Four float32 bands (uncompressed, tiles of 512 px), eight classes, 256 px pairs at 25 % overlap, context x4; the class
map, a COG with overviews that was read back, is what comes out. Random weights. Beside it the bare model over as many
batches, pixels ready on the device. Seconds of the model are the device's own on a GPU. The file is written just before
and so lies in the system's memory as far as it fits.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from uhrseg import models
from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec
from uhrseg.engine.predict import Prediction, predict

BANDS, CLASSES, SIZE, TILE = 4, 8, 256, 512


def write_raster(path: Path, side: int) -> Path:
    """Hills and noise, float32, four bands; every row of tiles differs from the last."""
    rng = np.random.default_rng(0)
    x = np.linspace(0, 40 * np.pi, side, dtype=np.float32)
    noise = rng.normal(0, 1, (BANDS, TILE, 2 * TILE)).astype(np.float32)
    profile = {"driver": "GTiff", "count": BANDS, "height": side, "width": side, "dtype": "float32", "tiled": True,
               "blockxsize": TILE, "blockysize": TILE, "interleave": "band", "crs": "EPSG:3794", "nodata": -9999,
               "transform": from_origin(4e5, 1e5, 0.5, 0.5), "bigtiff": "yes"}  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        for top in range(0, side, TILE):
            y = np.linspace(top / side * 40 * np.pi, (top + TILE) / side * 40 * np.pi, TILE, dtype=np.float32)
            shift = int(rng.integers(TILE))
            rows = np.tile(noise[:, :, shift : shift + TILE], (1, 1, side // TILE))
            rows += 3 * np.sin(y)[:, None] * np.cos(x)
            out.write(rows, window=Window(0, top, side, TILE))
    return path


def make_model(trunk: str) -> tuple[torch.nn.Module, ModelCard]:
    """A network with random weights and its card."""
    torch.manual_seed(0)
    architecture = {"trunk": trunk, "strategy": "relays"}
    module = models.build(**architecture, bands=BANDS, classes=CLASSES, size=SIZE).eval()
    card = ModelCard.model_validate(
        {
            "name": "gigapixel", "architecture": architecture, "background": 0,
            "class": [ClassSpec(id=i, name=f"class{i}", color=f"#{i * 30:02x}80ff") for i in range(CLASSES)],
            "window": WindowSpec(context_factor=4, overlap=0.25),
            "input": InputSpec(band=tuple(BandSpec(name=f"band{i}", std=2.0) for i in range(BANDS))),
            "weights": WeightsSpec(sha256="0" * 64),
        }
    )  # fmt: skip
    return module, card


def bare_seconds(prediction: Prediction, batches: int) -> float:
    """Wall seconds of the runner on `batches` batches of windows that lie ready: what no program can be faster than."""
    runner = prediction.runner
    shape = (prediction.batch_size, BANDS, SIZE, SIZE)
    local = torch.randn(shape, device=runner.device)
    context = torch.randn(shape, device=runner.device)
    started = time.perf_counter()
    with torch.inference_mode():
        for _ in range(batches):
            runner._forward(local, context)
        if runner.device.type == "cuda":
            torch.cuda.synchronize()
    return time.perf_counter() - started


def main() -> None:
    """Write the raster, predict it, and print what it took as JSON lines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, required=True, help="where the raster and the result go")
    parser.add_argument("--side", type=int, default=32768)
    parser.add_argument("--trunk", default="swinv2_s")
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--device", default="auto")
    given = parser.parse_args()
    source = given.folder / f"float32-{given.side}.tif"
    if not source.exists():
        started = time.perf_counter()
        write_raster(source, given.side)
        print(f"raster written in {time.perf_counter() - started:.0f} s", flush=True)
    module, card = make_model(given.trunk)
    options = {"batch_size": given.batch_size, "compiled": given.compile, "device": given.device}
    prediction = predict(source, (module, card), **options)
    bare_seconds(prediction, 5)  # kernels are chosen, compiled, recorded
    started = time.perf_counter()
    report = prediction.write(given.folder / "classes.tif", overwrite=True)
    wall = time.perf_counter() - started
    batches = -(-prediction.windows // prediction.batch_size)
    some = min(batches, 100)
    bare = bare_seconds(prediction, some) * batches / some
    device = report.device if report.device == "cpu" else torch.cuda.get_device_name()
    facts = {
        "trunk": given.trunk, "device": device, "precision": report.precision, "batch": prediction.batch_size,
        "compiled": given.compile, "Mpx": report.pixels / 1e6, "windows": report.windows,
        "minimal": prediction.plan.windows, "wall_s": wall, "Mpx/s": report.pixels / 1e6 / wall,
        "s per gigapixel": wall / report.pixels * 1e9, "seconds": report.seconds, "bare_s": bare,
        "wall / bare": wall / bare, "device busy": report.seconds["model"] / wall, "peak_rss_mb": report.peak_rss_mb,
    }  # fmt: skip
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in facts.items()}), flush=True)


if __name__ == "__main__":
    main()
