"""Small labelled rasters and recipes for the tests of data and training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from uhrseg.recipe import Recipe

NODATA = -9999.0


def write_raster(path: Path, array: NDArray[Any], nodata: float | None, gsd: float = 1.0) -> Path:
    """A GeoTIFF (Y, X) in UTM 33N."""
    transform = Affine(gsd, 0, 500_000, 0, -gsd, 5_100_000)
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path, "w", driver="GTiff", height=array.shape[0], width=array.shape[1], count=1, dtype=array.dtype,
        crs="EPSG:32633", transform=transform, nodata=nodata,
    ) as out:  # fmt: skip
        out.write(array, 1)
    return path


def discs(shape: tuple[int, int], seed: int) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Noise with bright (class 1) and dark (class 2) discs on background (class 0), and a corner of nodata."""
    rng = np.random.default_rng(seed)
    values = rng.normal(0, 0.1, shape).astype(np.float32)
    labels = np.zeros(shape, np.uint8)
    y, x = np.indices(shape)
    for k in range(12):
        centre, radius = rng.uniform((0, 0), shape), rng.uniform(6, 14)
        inside = (y - centre[0]) ** 2 + (x - centre[1]) ** 2 < radius**2
        labels[inside] = 1 + k % 2
    values += np.choose(labels, [0.0, 1.0, -1.0]).astype(np.float32)
    values[:20, :30], labels[:20, :30] = NODATA, 255
    return values, labels


def write_discs(root: Path, names: tuple[str, ...] = ("a", "b"), shape: tuple[int, int] = (160, 128)) -> Path:
    """``root/NAME_dtm.tif`` and ``root/NAME_mask.tif`` for each name."""
    for seed, name in enumerate(names):
        values, labels = discs(shape, seed)
        write_raster(root / f"{name}_dtm.tif", values, NODATA)
        write_raster(root / f"{name}_mask.tif", labels, 255)
    return root


RECIPE = """
name = "discs"
[data]
root = "."
train = ["*_dtm.tif"]
labels = "{name}_mask.tif"
gsd_m = 1.0
background = 0
band = [{ name = "dtm" }]
class = [
  { id = 0, name = "ground", color = "#cccccc" },
  { id = 1, name = "bright", color = "#ff0000" },
  { id = 2, name = "dark", color = "#0000ff" },
]
[model]
trunk = "swinv2_t"
head = "upernet"
embed_dim = 16
depths = [1, 1]
heads = [1, 2]
window = 8
drop_path = 0.1
head_channels = 16
[window]
size = 64
context_factor = 4
overlap = 0.25
[train]
device = "cpu"
precision = "fp32"
epochs = 2
steps_per_epoch = 3
batch_size = 2
lr = 3e-3
schedule = "cosine"
val_every = 0
workers = 0
"""


def recipe_for(root: Path, *overrides: str) -> Recipe:
    """The recipe above on the rasters of `root`; its text is written beside them."""
    path = root / "recipe.toml"
    path.write_text(RECIPE, encoding="utf-8")
    return Recipe.read(path, [f"data.root={root}", *overrides])
