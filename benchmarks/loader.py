"""What the loader delivers against what training consumes, and its memory against the size of the data set.

    python benchmarks/loader.py                          # some minutes on 2 cores
    python benchmarks/loader.py --scenes 6 24 --samples 100 --steps 4 --folder /scratch

RGB scenes of 4096 x 4096 px (bytes, tiled GeoTIFF) with polygons as labels, more than are kept in memory; windows of
256 px with context factor 4, scale and rotation as in the paper. Each number of scenes runs in a process of its own.
Consumption: forward and backward of SwinV2-S with relays at batch 2 and fp32 on two threads, in memory. The share of
time waiting for data is that of training steps fed by one worker process, which shares the two cores.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import shapely
import torch
from rasterio.transform import from_origin
from torch.utils.data import DataLoader

from uhrseg import models
from uhrseg.data.chips import Chip, Chips
from uhrseg.data.sampling import StepSampler
from uhrseg.data.scenes import band_statistics, load_scenes
from uhrseg.data.split import split_rasters
from uhrseg.engine.losses import relay_loss
from uhrseg.engine.memory import peak_rss_mb
from uhrseg.recipe import Recipe

SIDE, BATCH = 4096, 2
RECIPE = """
name = "loader"
[data]
root = "{root}"
train = ["scene*.tif"]
labels = "features.gpkg"
label_class = "feature"
background = 0
band = [{{ name = "red" }}, {{ name = "green" }}, {{ name = "blue" }}]
class = [{{ id = 0, name = "ground", color = "#cccccc" }}, {{ id = 1, name = "feature", color = "#ff0000" }}]
[model]
trunk = "swinv2_s"
[train]
schedule = "cosine"
"""


def make_data(root: Path, scenes: int) -> Recipe:
    """One scene of noise and 400 polygons under `scenes` names, so that only the number of files grows."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 255, (3, SIDE // 8, SIDE // 8), dtype=np.uint8)
    profile = {
        "driver": "GTiff", "width": SIDE, "height": SIDE, "count": 3, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": from_origin(5e5, 5e6, 1, 1), "tiled": True, "blockxsize": 256, "blockysize": 256,
        "compress": "deflate",
    }  # fmt: skip
    with rasterio.open(root / "scene0.tif", "w", **profile) as out:
        out.write(np.kron(noise, np.ones((1, 8, 8), np.uint8)))
    for k in range(1, scenes):
        os.link(root / "scene0.tif", root / f"scene{k}.tif")
    discs = [shapely.Point(5e5 + x, 5e6 - y).buffer(20) for x, y in rng.uniform(0, SIDE, (400, 2))]
    geopandas.GeoDataFrame(geometry=discs, crs="EPSG:32633").to_crs(4326).to_file(root / "features.gpkg")
    path = root / "recipe.toml"
    path.write_text(RECIPE.format(root=root), encoding="utf-8")
    return Recipe.read(path)


def open_chips(recipe: Recipe, scratch: Path) -> Chips:
    """The samples of the recipe, as training makes them."""
    scenes = load_scenes(split_rasters(recipe.data)[0], recipe.data, recipe.context_factor, folder=scratch)
    _, std = band_statistics(scenes)
    return Chips(scenes, recipe.train, size=256, factor=4, legend=recipe.data.legend, seed=0, std=std)


def measure_memory(scenes: int, samples: int, folder: Path) -> dict[str, float]:
    """Peak memory (megabytes of 1e6 bytes) of opening the data set and of making samples, above the imports'."""
    base, started = peak_rss_mb(), time.perf_counter()
    with tempfile.TemporaryDirectory(dir=folder) as root:
        chips = open_chips(make_data(Path(root), scenes), Path(root))
        opened, seconds = peak_rss_mb() - base, time.perf_counter() - started
        started = time.perf_counter()
        for k in range(samples):
            chips[0, k]
        rate = samples / (time.perf_counter() - started)
    return {
        "scenes": scenes, "gigapixels": scenes * SIDE * SIDE / 1e9, "open_s": seconds, "open_mb": opened,
        "sample_mb": peak_rss_mb() - base, "samples_per_s": rate,
    }  # fmt: skip


def measure_speed(steps: int, folder: Path) -> dict[str, float]:
    """Samples per second that the loader makes alone and that training consumes alone, and the wait when joined."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory(dir=folder) as root:
        recipe = make_data(Path(root), 6)
        chips = open_chips(recipe, Path(root))
        module = models.build(**recipe.model.architecture, bands=3, classes=2, size=256).train()
        batches = iter(loader(chips, 40))
        first = next(batches)
        started = time.perf_counter()
        for _ in range(39):
            next(batches)
        made = 39 * BATCH / (time.perf_counter() - started)
        step(module, first)
        started = time.perf_counter()
        for _ in range(steps):
            step(module, first)
        consumed = steps * BATCH / (time.perf_counter() - started)
        waited, whole = fed(module, chips, steps)
    return {"loader_per_s": made, "training_per_s": consumed, "ratio": made / consumed, "data_wait": waited / whole}


def loader(chips: Chips, steps: int) -> DataLoader[Chip]:
    """As `train` loads: one worker process, four batches ahead."""
    return DataLoader(chips, batch_sampler=StepSampler(0, steps, steps, BATCH), num_workers=1, prefetch_factor=4)


def fed(module: torch.nn.Module, chips: Chips, steps: int) -> tuple[float, float]:
    """Seconds waited for data, and of all, over `steps` after the first."""
    batches = iter(loader(chips, steps + 1))
    step(module, next(batches))
    waited, started = 0.0, time.perf_counter()
    for _ in range(steps):
        asked = time.perf_counter()
        batch = next(batches)
        waited += time.perf_counter() - asked
        step(module, batch)
    return waited, time.perf_counter() - started


def step(module: torch.nn.Module, batch: Chip) -> None:
    """Forward and backward."""
    output = module(batch["local"] / 255, batch["context"] / 255)
    relay_loss(output, batch["labels"].long(), 4, 255, 0.1, 0.1).total.backward()
    module.zero_grad()


def main() -> None:
    """Run every size and the speed in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, nargs="+", default=[6, 24], help="numbers of scenes")
    parser.add_argument("--samples", type=int, default=200, help="samples made for the peak of memory")
    parser.add_argument("--steps", type=int, default=5, help="training steps of two samples; 0: memory only")
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="where the data set is made")
    parser.add_argument("--run", type=int, help=argparse.SUPPRESS)  # scenes, or 0 for speed, in this process
    options = parser.parse_args()
    if options.run is not None:
        one = measure_memory(options.run, options.samples, options.folder) if options.run else None
        print(json.dumps(one or measure_speed(options.steps, options.folder)))
        return
    for run in [*options.scenes, *([0] if options.steps else [])]:
        words = [sys.executable, __file__, "--run", str(run), "--samples", str(options.samples)]
        words += ["--steps", str(options.steps), "--folder", str(options.folder)]
        line = json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout)
        print("  ".join(f"{name} {value:.3g}" for name, value in line.items()), flush=True)


if __name__ == "__main__":
    main()
