"""Tiny data sets in the true layouts of the four published ones, and recipes that train them in a moment."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from shapely import box

from uhrseg.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
SIDE = 96
ORIGIN = Affine(0.5, 0, 400_000, 0, -0.5, 1_500_000)
UTM = "EPSG:32648"

SMALL = (
    "model.pretrained=false", "model.trunk=swinv2_t", "model.embed_dim=16", "model.depths=[1, 1]", "model.heads=[1, 2]",
    "model.window=4", "model.drop_path=0", "window.size=32", "train.workers=0", "train.precision=fp32",
    "train.device=cpu",
)  # fmt: skip
"""Overrides that make a recipe of the paper small."""

URUR_PALETTE = {
    0: (0, 0, 0), 1: (230, 230, 230), 2: (100, 100, 100), 3: (200, 230, 160), 4: (95, 163, 7), 5: (255, 255, 100),
    6: (150, 200, 250), 7: (240, 100, 80), 8: (255, 255, 255),
}  # fmt: skip


def small_recipe(name: str, root: Path, *overrides: str) -> Recipe:
    """The project's recipe of a published data set on the tiny tree at `root`."""
    return Recipe.read(ROOT / "recipes" / f"{name}.toml", [f"data.root={root}", *SMALL, *overrides])


def write_image(path: Path, values: NDArray[Any], driver: str, **profile: Any) -> Path:
    """Write (C, Y, X) or (Y, X) with GDAL; no CRS unless given."""
    bands = values if values.ndim == 3 else values[None]
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = {"count": len(bands), "height": bands.shape[1], "width": bands.shape[2], "dtype": bands.dtype}
    with rasterio.open(path, "w", driver=driver, **shape, **profile) as out:
        out.write(bands)
    return path


def noise(seed: int, bands: int = 3) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (bands, SIDE, SIDE), dtype=np.uint8)


def stripes(values: list[int]) -> NDArray[np.uint8]:
    """Vertical stripes (Y, X), one for each value."""
    return np.broadcast_to(np.array(values, np.uint8)[np.arange(SIDE) * len(values) // SIDE], (SIDE, SIDE)).copy()


def write_urur(root: Path) -> Path:
    """Image and palette label in each split; nested folders as published; the palette is padded with black."""
    palette = URUR_PALETTE | dict.fromkeys(range(9, 256), (0, 0, 0))
    for seed, split in enumerate(("train", "val", "test")):
        write_image(root / split / "image" / "a" / f"{split}1.tif", noise(seed), "GTiff")
        path = root / split / "label" / f"{split}1.png"
        write_palette(path, stripes([0, 1, 2, 3, 4, 5, 6, 7, 8, 9]), palette)
    return root


def write_palette(path: Path, values: NDArray[np.uint8], palette: dict[int, tuple[int, int, int]]) -> Path:
    """A palette PNG: GDAL copies the colour table from a picture in memory."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.MemoryFile() as memory:
        with memory.open(driver="GTiff", count=1, height=SIDE, width=SIDE, dtype="uint8", photometric="palette") as out:
            out.write(values, 1)
            out.write_colormap(1, palette)
        rasterio.shutil.copy(memory.name, path, driver="PNG")
    return path


GLEASON_CORES = ("slide001_core003", "slide002_core014", "slide001_core015", "slide006_core120", "slide007_core004")


def write_gleason(root: Path) -> Path:
    """Images and the maps of six annotators; `uhrseg data prepare gleason` makes the labels."""
    for seed, core in enumerate(GLEASON_CORES):
        write_image(root / "Train Imgs" / f"{core}.jpg", noise(seed), "JPEG")
        for annotator in range(1, 7):
            values = [0, 1, 3, 4, 5, 6] if annotator < 4 else [0, 1, 3, 3, 5, 6]
            path = root / f"Maps{annotator}_T" / f"{core}_classimg_nonconvex.png"
            write_image(path, stripes(values), "PNG")
    return root


def write_cityscapes(root: Path) -> Path:
    """A frame in two splits with label ids, known to training and not."""
    for seed, split in enumerate(("train", "val")):
        stem = f"ulm_00000{seed}_000019"
        write_image(root / "leftImg8bit" / split / "ulm" / f"{stem}_leftImg8bit.png", noise(seed), "PNG")
        labels = root / "gtFine" / split / "ulm" / f"{stem}_gtFine_labelIds.png"
        write_image(labels, stripes([0, 4, 7, 8, 21, 26, 33]), "PNG")
    return root


def write_archaeoscape(root: Path, parcels: tuple[str, ...]) -> Path:
    """Parcels side by side, each with RGB, DTM, a frame inside its raster, a mound on a mound, and a void corner."""
    areas, features = [], []
    for k, name in enumerate(parcels):
        place = ORIGIN * Affine.translation(k * (SIDE - 16), 0)  # rasters overlap their neighbours
        profile = {"crs": UTM, "transform": place}
        write_image(root / "data" / "rasters" / "rgb" / f"{name}.tif", noise(k), "GTiff", **profile)
        slope = np.linspace(20 + k, 25 + k, SIDE * SIDE, dtype=np.float32).reshape(SIDE, SIDE)
        write_image(root / "data" / "rasters" / "dtm" / f"{name}.tif", slope, "GTiff", nodata=-9999.0, **profile)
        left, top = place * (0, 0)
        areas.append(box(left + 4, top - 44, left + 44, top - 4))
        for kind, corners in {
            "mound": (10, 10, 30, 30), "mound_on_mound": (12, 12, 14, 14), "hydrology": (32, 10, 40, 40),
            "temple_site": (20, 20, 24, 24), "void": (4, 4, 8, 8),
        }.items():  # fmt: skip
            x0, y0, x1, y1 = corners
            features.append((kind, box(left + x0, top - y1, left + x1, top - y0)))
    geopandas.GeoDataFrame({"index": parcels}, geometry=areas, crs=UTM).to_file(root / "data" / "parcels.gpkg")
    kinds, shapes = [kind for kind, _ in features], [shape for _, shape in features]
    geopandas.GeoDataFrame({"type": kinds}, geometry=shapes, crs=UTM).to_file(root / "data" / "features.gpkg")
    return root


TREES: dict[str, Callable[[Path], Path]] = {
    "urur": write_urur,
    "gleason": write_gleason,
    "cityscapes": write_cityscapes,
}
