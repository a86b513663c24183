"""Peak memory of a prediction above a process that loaded the model and ran one pair.

    python benchmarks/memory.py                      # 4096 and 16384 pixels a side, about 10 minutes on 2 cores
    python benchmarks/memory.py --sizes 4096 --folder /scratch
    python benchmarks/memory.py --cheap --sizes 8192 16384 --source giga.vrt --plot docs/images/memory.png

The table also says what `--dry-run` foresees (`Prediction.forecast`).

Four float32 bands, eight classes, overlap 0.25, batches of 8, GDAL_CACHEMAX 64 MB; a class map and polygons are
written. Each size runs in a process of its own, so that one's peak cannot hide in another's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from uhrseg import models
from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec
from uhrseg.engine.memory import peak_rss_mb, resident_mb
from uhrseg.engine.predict import predict
from uhrseg.engine.throughput import CheapConv

BANDS, CLASSES, TILE = 4, 8, 1024
ARCHITECTURE = {
    "trunk": "swinv2_t", "embed_dim": 32, "depths": [2, 2, 2, 2], "heads": [2, 4, 8, 16], "window": 8,
    "head": "upernet", "head_channels": 48, "detail_channels": 16, "strategy": "relays", "relays": 4,
}  # fmt: skip


def make_source(path: Path, side: int) -> None:
    """A raster of `side` x `side` pixels: one tile of smooth noise per band, repeated."""
    y, x = np.mgrid[:TILE, :TILE] * (2 * np.pi / TILE)
    rng = np.random.default_rng(0)
    waves = rng.integers(1, 9, (BANDS, 6, 2))
    tile = np.stack([sum(np.sin(a * y + b * x + i) for i, (a, b) in enumerate(w)) for w in waves]).astype(np.float32)
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": BANDS, "dtype": "float32", "crs": "EPSG:32633",
        "transform": from_origin(5e5, 5e6, 1, 1), "tiled": True, "blockxsize": 512, "blockysize": 512,
        "bigtiff": "if_safer", "interleave": "band",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        for row in range(0, side, TILE):
            for col in range(0, side, TILE):
                out.write(tile, window=Window(col, row, TILE, TILE))


def calm(module: torch.nn.Module, source: Path) -> None:
    """Make random weights behave as trained ones: features come in patches and cover about 5 % of the ground.

    The last layers become blind to the pixel inside a token, and the background's bias is raised. Without this nearly
    every token is a polygon, or one class spans the raster as a single polygon of millions of corners.
    """
    with rasterio.open(source) as dataset:
        window = torch.from_numpy(dataset.read(window=Window(0, 0, 256, 256)))[None]  # (1, bands, 256, 256)
    with torch.no_grad():
        kernel = module.head.classify.weight  # (features, channels, stride, stride)
        kernel.copy_(kernel.mean(dim=(2, 3), keepdim=True).expand_as(kernel))
        module.head.detail.edges[-1].weight.zero_()
        logits = module(window, window).logits[0]  # (classes, 256, 256)
        lead = logits[1:].amax(dim=0) - logits[0]
        module.head.detail.classify.bias[0] += lead.flatten().quantile(0.95)


class CheapPair(CheapConv):
    """The cheap network for window pairs: it ignores the context, which is read and held all the same."""

    strategy = "relays"


def cheap(source: Path, bands: int) -> torch.nn.Module:
    """A cheap network whose features cover about 5 % of the ground."""
    module = CheapPair(bands, CLASSES, 16).eval()
    with rasterio.open(source) as dataset, torch.no_grad():
        top, left = dataset.height // 3, dataset.width // 3
        window = torch.from_numpy(dataset.read(window=Window(left, top, 256, 256)).astype(np.float32))[None]
        logits = module(window).logits[0]  # (classes, 256, 256)
        module.body[-1].bias[0] += (logits[1:].amax(dim=0) - logits[0]).flatten().quantile(0.95)
    return module


class Watch:
    """Resident megabytes of this process, noted every half second."""

    def __enter__(self) -> list[tuple[float, float]]:
        self.curve: list[tuple[float, float]] = []
        self._stop, self._started = threading.Event(), time.perf_counter()
        self._thread = threading.Thread(target=self._note)
        self._thread.start()
        return self.curve

    def _note(self) -> None:
        while not self._stop.wait(0.5):
            self.curve.append((time.perf_counter() - self._started, resident_mb()))

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()


def measure(source: Path, folder: Path, is_cheap: bool) -> dict[str, Any]:
    """Predict in this process and report megabytes of 1e6 bytes."""
    torch.manual_seed(0)
    with rasterio.open(source) as dataset:
        bands = dataset.count
    if is_cheap:
        module = cheap(source, bands)
    else:
        module = models.build(**ARCHITECTURE, bands=bands, classes=CLASSES, size=256).eval()
        calm(module, source)
    classes = [ClassSpec(id=i, name=f"class{i}", color=f"#{i * 30:02x}80ff") for i in range(CLASSES)]
    card = ModelCard.model_validate(
        {
            "name": "benchmark", "architecture": ARCHITECTURE, "class": classes,
            "window": WindowSpec(context_factor=4, overlap=0.25),
            "input": InputSpec(band=tuple(BandSpec(name=f"band{i}") for i in range(bands))), "background": 0,
            "weights": WeightsSpec(sha256="0" * 64),
        }
    )  # fmt: skip
    prediction = predict(source, (module, card), batch_size=8)
    pair = np.zeros((1, bands, 256, 256), dtype=np.float32)
    prediction.runner.batch_size = 1  # the baseline is one pair, not a batch of them
    prediction.runner(pair, pair)
    prediction.runner.batch_size = 8
    base, started = resident_mb(), time.perf_counter()  # the peak until now could hide some of it
    peaks: list[float] = []  # after the last window, before polygons are traced

    def note(done: int, total: int) -> None:
        if done == total:
            peaks.append(peak_rss_mb())

    with Watch() as curve:
        report = prediction.write(folder / "classes.tif", folder / "polygons.gpkg", overwrite=True, progress=note)
    above, seconds = peak_rss_mb() - base, time.perf_counter() - started
    foreseen = prediction.forecast()  # last: its probe of the model would count as part of the base or of the run
    return {
        "size": "{1} x {0}".format(*prediction.scene.geobox.shape),
        "curve": [(t, mb - base) for t, mb in curve],
        "base_mb": base,
        "predict_mb": peaks[0] - base,
        "above_mb": above,
        "foreseen_mb": foreseen.memory_mb,
        "formula": foreseen.memory_formula,
        "seconds": seconds,
        "windows": report.windows,
        "polygons": report.polygons or 0,
    }


def plot(results: list[dict[str, Any]], path: Path) -> None:
    """The curves of all rasters over the share of their time."""
    figure, axes = plt.subplots(figsize=(7, 3.5), layout="constrained")
    for result in results:
        seconds, mb = np.array(result["curve"]).T
        axes.plot(seconds / seconds[-1], mb, label=f"{result['size']} px, {result['seconds']:.0f} s")
    axes.axhline(500, color="black", linewidth=0.8, linestyle="--")
    axes.set(xlabel="share of the run", ylabel="MB above the loaded model", ylim=(0, None), xlim=(0, 1))
    axes.legend()
    figure.savefig(path, dpi=110)


def run(source: Path, folder: Path, is_cheap: bool) -> dict[str, Any]:
    """Measure one raster in a process of its own."""
    command = [sys.executable, __file__, "--one", str(source), "--folder", str(folder), *["--cheap"] * is_cheap]
    result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
    print(
        f"| {result['size']} | {result['base_mb']:.0f} | {result['predict_mb']:.0f} | {result['above_mb']:.0f} | "
        f"{result['foreseen_mb']:.0f} | {result['seconds']:.0f} | {result['windows']} | {result['polygons']} |",
        flush=True,
    )
    return result


def main() -> None:
    """Make the sources, measure each in its own process, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096, 16384])
    parser.add_argument("--source", type=Path, nargs="*", default=[], help="rasters that exist, measured too")
    parser.add_argument("--cheap", action="store_true", help="a cheap network instead of the shipped model's shape")
    parser.add_argument("--plot", type=Path, help="draw resident memory over time")
    parser.add_argument("--folder", type=Path, help="where the rasters go (4.3 GB for 16384) [a temporary folder]")
    parser.add_argument("--one", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(options.one, options.folder, options.cheap)))
        return
    print(
        "| raster px | base MB | above it, last window done | all written | --dry-run | seconds | windows | polygons |"
    )
    print("|---|---|---|---|---|---|---|---|")
    results = []
    for given in [*options.sizes, *options.source]:
        with tempfile.TemporaryDirectory(dir=options.folder) as folder:
            source = given
            if isinstance(given, int):
                source = Path(folder) / "source.tif"
                make_source(source, given)
            results.append(run(source, Path(folder), options.cheap))
    if options.plot:
        plot(results, options.plot)


if __name__ == "__main__":
    main()
