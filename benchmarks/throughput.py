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

import rasterio

from uhrseg.benchmark.throughput import make_source, relay_model
from uhrseg.engine.throughput import CONTENDERS, Cost, cheap_conv, measure


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
