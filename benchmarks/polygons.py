"""Polygons and pixels per CPU second from a finished class map to a polygon file, and the memory that takes.

    python benchmarks/polygons.py                               # all maps at 4096 pixels a side
    python benchmarks/polygons.py --maps sparse empty --sizes 16384
    python benchmarks/polygons.py --folder /scratch --repeat 3  # maps are made once and kept there

To compare versions, run this file with each of them on PYTHONPATH and the same folder, in turns.

The maps: `noise2` .. `noise6`, five classes by thresholds of white noise smoothed with that sigma; `patches`, the same
where 5 % stand out from a background; `sparse`, discs over 0.1 %; `empty`, background alone; `ragged`, two classes
of white noise mixed with smooth noise, which percolate. uint8 COGs like those of `predict`, a confidence plane each.
Every measurement runs in a process of its own, so that one's peak cannot hide in another's.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import rasterio.shutil
from numpy.typing import NDArray
from rasterio.transform import from_origin
from scipy import ndimage

from uhrseg.engine.memory import peak_rss_mb
from uhrseg.geo.vector import polygonise, write_polygons
from uhrseg.legend import NODATA, Legend, LegendClass

TILE = 2048
CACHE = 64 << 20  # bytes of GDAL's cache, as in `predict`
LEGEND = Legend(tuple(LegendClass(i, f"class{i}", f"#{i * 30:02x}80ff") for i in range(6)), background=0)
Plane = NDArray[np.uint8]


def noise(rng: np.random.Generator, sigma: float) -> NDArray[np.float32]:
    """Smooth noise (TILE, TILE) with mean 0 and deviation 1."""
    smooth = ndimage.gaussian_filter(rng.standard_normal((TILE, TILE), np.float32), sigma, mode="wrap")
    return smooth / smooth.std()


def noisy(sigma: float) -> Callable[[np.random.Generator], Plane]:
    """Every pixel belongs to one of the classes 1 to 5."""
    return lambda rng: (np.digitize(noise(rng, sigma), [-1, -0.3, 0.3, 1]) + 1).astype(np.uint8)


def patches(rng: np.random.Generator) -> Plane:
    """Patches of the classes 1 to 3 over 5 % of the background."""
    return np.where(noise(rng, 4) > 1.645, noisy(12)(rng) % 3 + 1, 0).astype(np.uint8)


def sparse(rng: np.random.Generator) -> Plane:
    """Discs of 9 pixels radius over 0.1 % of the background."""
    tile = np.zeros((TILE, TILE), np.uint8)
    y, x = np.mgrid[:19, :19] - 9
    for row, column in rng.integers(0, TILE - 19, (TILE * TILE // 254_000, 2)):
        tile[row : row + 19, column : column + 19] |= (y * y + x * x <= 81).astype(np.uint8)
    return tile


def empty(rng: np.random.Generator) -> Plane:
    """Nothing at all."""
    return np.zeros((TILE, TILE), np.uint8)


def ragged(rng: np.random.Generator) -> Plane:
    """Classes that percolate, full of holes: as from a network with random weights."""
    return (noise(rng, 8) + 1.2 * noise(rng, 0.5) > 0).astype(np.uint8) + 1


MAPS: dict[str, Callable[[np.random.Generator], Plane]] = {
    **{f"noise{sigma}": noisy(sigma) for sigma in (2, 3, 4, 6)},
    "patches": patches, "sparse": sparse, "empty": empty, "ragged": ragged,
}  # fmt: skip


def confident(rng: np.random.Generator) -> Plane:
    """White noise, the most that a confidence plane can cost."""
    return rng.integers(60, 254, (TILE, TILE), np.uint8)


def make(path: Path, side: int, tile: Callable[[np.random.Generator], Plane]) -> Path:
    """A raster of `side` x `side` pixels, tile by tile, unless it is there already; no data at the left of a map."""
    if path.exists():
        return path
    rng = np.random.default_rng(1)
    profile = {
        "width": side, "height": side, "count": 1, "dtype": "uint8", "crs": "EPSG:32633", "nodata": NODATA,
        "transform": from_origin(5e5, 5e6, 0.5, 0.5),
    }  # fmt: skip
    draft = path.with_suffix(".draft.tif")
    with rasterio.open(draft, "w", driver="GTiff", tiled=True, **profile) as out:
        for row in range(0, side, TILE):
            for column in range(0, side, TILE):
                values = tile(rng)[: side - row, : side - column]
                if tile is not confident and column == 0:
                    values[:, :10] = NODATA
                out.write(values, 1, window=((row, row + values.shape[0]), (column, column + values.shape[1])))
    rasterio.shutil.copy(draft, path, driver="COG", compress="DEFLATE", overview_resampling="mode", sparse_ok=True)
    draft.unlink()
    return path


def measure(labels: Path, confidence: Path, output: Path) -> dict[str, Any]:
    """Trace and write in this process; CPU seconds and megabytes of 1e6 bytes above the start."""
    with rasterio.open(labels) as source:
        pixels, crs = source.width * source.height, source.crs.to_wkt()
    base, started, wall = peak_rss_mb(), time.process_time(), time.perf_counter()
    with rasterio.Env(GDAL_CACHEMAX=CACHE):
        traced = polygonise(labels, confidence, LEGEND, LEGEND.foreground)
        polygons = write_polygons(traced, output, crs, LEGEND, overwrite=True)
    seconds, wall = time.process_time() - started, time.perf_counter() - wall
    return {
        "pixels": pixels, "polygons": polygons, "cpu": seconds, "wall": wall, "base_mb": base,
        "above_mb": peak_rss_mb() - base,
    }  # fmt: skip


def run(labels: Path, confidence: Path, output: Path) -> dict[str, Any]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", str(labels), str(confidence), str(output)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)


def show(name: str, side: int, result: dict[str, Any]) -> None:
    """One row of the table."""
    polygons, cpu = result["polygons"], result["cpu"]
    columns = (
        name, side, polygons, f"{cpu:.2f}", f"{result['wall']:.2f}", f"{polygons / cpu:.0f}",
        f"{result['pixels'] / cpu / 1e6:.1f}", f"{result['above_mb']:.0f}",
    )  # fmt: skip
    print("|", " | ".join(map(str, columns)), "|", flush=True)


def main() -> None:
    """Make the maps, measure each in its own process, print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--maps", nargs="*", default=list(MAPS), choices=MAPS)
    parser.add_argument("--sizes", type=int, nargs="*", default=[4096])
    parser.add_argument("--repeat", type=int, default=1)
    parser.add_argument("--suffix", default=".gpkg", help="format of the polygons [.gpkg]")
    parser.add_argument("--folder", type=Path, help="where maps are kept [a temporary folder]")
    parser.add_argument("--one", type=Path, nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(*options.one)))
        return
    print("| map | side px | polygons | CPU s | wall s | polygons / CPU s | Mpx / CPU s | MB above the start |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(dir=options.folder) as temporary:
        folder = options.folder or Path(temporary)
        for side in options.sizes:
            confidence = make(folder / f"confidence-{side}.tif", side, confident)
            for name in options.maps:
                labels = make(folder / f"{name}-{side}.tif", side, MAPS[name])
                for _ in range(options.repeat):
                    show(name, side, run(labels, confidence, Path(temporary, f"polygons{options.suffix}")))


if __name__ == "__main__":
    main()
