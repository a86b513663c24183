"""What a prediction costs beyond its model: CPU and wall seconds against the bare model, a naive loop and MONAI.

    python benchmarks/throughput.py                                    # cheap network, 8192 x 8192 x 3 bytes, 1 thread
    python benchmarks/throughput.py --side 4096 --threads 2 --repeat 3
    python benchmarks/throughput.py --source dubai.vrt --bidx 1,2,3
    python benchmarks/throughput.py --trunk swinv2_s --side 2048       # with relays; forward and uhrseg only

1024 px windows (256 for a trunk), batch 1, GDAL_CACHEMAX 64 MB for all; the least of the repeats counts.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from uhrseg import models
from uhrseg.card import ModelCard
from uhrseg.engine.throughput import CONTENDERS, Cost, cheap_conv, measure

TILE = 1024


def make_source(path: Path, side: int, bands: int = 3) -> None:
    """A raster of `side` x `side` bytes, deflate in tiles of 512, nodata 0: smooth ground with noise, no tile twice."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 12, (bands, TILE, TILE))
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": bands, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": from_origin(5e5, 5e6, 1, 1), "tiled": True, "blockxsize": 512, "blockysize": 512, "nodata": 0,
        "compress": "deflate", "interleave": "pixel", "bigtiff": "if_safer",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        for row in range(0, side, TILE):
            for col in range(0, side, TILE):
                y, x = np.mgrid[row : min(row + TILE, side), col : min(col + TILE, side)]
                waves = [np.sin(x / (60 + 9 * b)) + np.cos(y / (80 - 7 * b)) for b in range(bands)]
                tile = np.stack([110 + 45 * w for w in waves]) + noise[:, : y.shape[0], : y.shape[1]]
                out.write(tile.astype(np.uint8), window=Window(col, row, x.shape[1], x.shape[0]))


def relay_model(trunk: str, bands: int) -> tuple[torch.nn.Module, ModelCard]:
    """A trunk with relays and random weights; 256 px windows at 25 % overlap."""
    _, card = cheap_conv(bands, size=256, overlap=0.25)
    torch.manual_seed(0)
    module = models.build(trunk, bands=bands, classes=len(card.legend), size=256, strategy="relays")
    window = card.window.model_copy(update={"context_factor": 4})
    return module.eval(), card.model_copy(update={"name": f"{trunk}+relays", "window": window})


def show(costs: list[Cost]) -> None:
    """A table of the least of each contender's repeats, with ratios."""
    best = {
        n: (min(c.cpu_s for c in costs if c.name == n), min(c.wall_s for c in costs if c.name == n))
        for n in dict.fromkeys(c.name for c in costs)
    }
    windows = {c.name: c.windows for c in costs}
    print("| contender | windows | CPU s | wall s | CPU / forward | CPU / naive | CPU / MONAI | wall / forward |")
    print("|---|---|---|---|---|---|---|---|")
    for name, (cpu, wall) in best.items():
        ratios = [f"{cpu / best[o][0]:.2f}" if o in best else "" for o in ("forward", "naive", "monai")]
        last = f"{wall / best['forward'][1]:.3f}" if "forward" in best else ""
        print(f"| {name} | {windows[name]} | {cpu:.2f} | {wall:.2f} | {' | '.join(ratios)} | {last} |")
    print(f"smallest set of windows: {costs[0].minimal_windows}")


def main() -> None:
    """Make the raster, run all contenders in this process, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=8192)
    parser.add_argument("--source", type=Path, help="a raster of bytes instead of one made here")
    parser.add_argument("--bidx", help="bands of --source, such as 1,2,3")
    parser.add_argument("--trunk", help="a trunk with relays instead of the cheap network")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=1)
    parser.add_argument("--precision", default="fp32")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--contenders", default=None, help=f"any of {','.join(CONTENDERS)}")
    parser.add_argument("--folder", type=Path, help="where rasters go [a temporary folder]")
    options = parser.parse_args()
    bidx = [int(b) for b in options.bidx.split(",")] if options.bidx else None
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        source = options.source or Path(folder) / "source.tif"
        if options.source is None:
            make_source(source, options.side)
        with rasterio.open(source) as raster:
            bands = len(bidx) if bidx else raster.count
        module, card = relay_model(options.trunk, bands) if options.trunk else cheap_conv(bands)
        known = ("forward", "uhrseg") if options.trunk or bidx else tuple(CONTENDERS)
        chosen = tuple(options.contenders.split(",")) if options.contenders else known
        costs = list(
            measure(
                source, module, card, Path(folder), chosen, options.threads, options.repeat,
                batch_size=options.batch_size, precision=options.precision, device=options.device, bidx=bidx,
            )  # fmt: skip
        )
    show(costs)


if __name__ == "__main__":
    main()
