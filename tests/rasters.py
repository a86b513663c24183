"""Small rasters, cards and models that several tests share."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.transform import from_origin
from torch import nn

from uhrseg import models
from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec, sha256_of
from uhrseg.geo.mosaic import Tile, write_mosaic
from uhrseg.geo.overviews import write_levels
from uhrseg.geo.plan import shifted
from uhrseg.geo.sink import PlanesSink, publish
from uhrseg.geo.style import write_raster_style
from uhrseg.legend import Legend

UTM = "EPSG:32633"
COLOURS = ("#d9d9d9", "#e41a1c", "#377eb8", "#ffcc00", "#4daf4a", "#984ea3", "#ff7f00", "#a65628")
RELIEF = tuple(
    BandSpec(name=f"relief_{r:g}m", kind="relief", source="dtm", radius_m=r, std=s) for r, s in ((2.0, 0.2), (7.0, 0.5))
)


def write_raster(path: Path, array: NDArray[Any], crs: str | None = UTM, transform: Any = None, **profile: Any) -> Path:
    """Write (C, Y, X) or (Y, X) values, by default at 1 m in UTM 33N."""
    array = array if array.ndim == 3 else array[None]
    count, height, width = array.shape
    grid = from_origin(500_000, 5_000_000, 1, 1) if transform is None else transform
    with rasterio.open(
        path, "w", driver="GTiff", count=count, height=height, width=width, dtype=array.dtype, crs=crs, transform=grid,
        **profile,
    ) as out:  # fmt: skip
        out.write(array)
    return path


def write_class_map(
    path: Path, classes: NDArray[np.uint8], geobox: GeoBox, legend: Legend, tags: dict[str, str] | None = None,
    side: int = 512,
) -> Path:  # fmt: skip
    """Write class ids (Y, X) as a prediction does: tiles of `side` pixels, a mosaic of them, a COG and its style."""
    with TemporaryDirectory(dir=path.parent) as folder:
        tiles, checksums = [], {}
        for row, col in itertools.product(range(0, classes.shape[0], side), range(0, classes.shape[1], side)):
            part = classes[row : row + side, col : col + side]
            tiles.append(Tile(Path(folder) / f"{row}-{col}.tif", row, col, part.shape))
            with PlanesSink(tiles[-1].path, shifted(geobox, row, col, part.shape), ["labels"]) as sink:
                sink.write(slice(0, part.shape[0]), slice(0, part.shape[1]), part[None])
            checksums |= {(row, row + part.shape[0], col, col + part.shape[1]): zlib.crc32(part.tobytes())}
        mosaic = Path(folder) / "map.vrt"
        write_mosaic(mosaic, geobox, tiles, tags or {}, legend)
        write_mosaic(mosaic, geobox, tiles, tags or {}, legend, write_levels(mosaic, geobox, Path(folder)))
        publish(mosaic, path, checksums, "mode")
    write_raster_style(path, legend)
    return path


def terrain(height: int, width: int, seed: int = 0, bands: int = 1) -> NDArray[np.float32]:
    """Rolling ground (bands, Y, X) in metres with bumps, smooth enough to look like a DTM."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:height, :width]
    layers = []
    for _ in range(bands):
        ground = 300 + 5 * np.sin(y / 40 + rng.uniform(0, 6)) + 5 * np.cos(x / 55 + rng.uniform(0, 6))
        for _ in range(12):
            cy, cx, r = rng.uniform(0, height), rng.uniform(0, width), rng.uniform(2, 9)
            ground += rng.uniform(0.3, 2) * np.exp(-((y - cy) ** 2 + (x - cx) ** 2) / (2 * r * r))
        layers.append(ground + rng.normal(0, 0.03, (height, width)))
    return np.stack(layers).astype(np.float32)


def make_card(
    architecture: dict[str, Any], bands: Sequence[BandSpec] = (BandSpec(name="value"),), classes: int = 3,
    sha256: str = "0" * 64, gsd_m: float | None = None, **window: Any,
) -> ModelCard:  # fmt: skip
    """A card with `classes` classes, class 0 the background."""
    listed = [ClassSpec(id=i, name=f"class{i}", color=COLOURS[i]) for i in range(classes)]
    return ModelCard.model_validate(
        {
            "name": "test", "architecture": architecture, "input": InputSpec(gsd_m=gsd_m, band=tuple(bands)),
            "window": WindowSpec(**{"size": 64, "context_factor": 4, "overlap": 0.25} | window), "class": listed,
            "background": 0, "weights": WeightsSpec(sha256=sha256),
        }
    )  # fmt: skip


def make_model(card: ModelCard, seed: int = 0) -> nn.Module:
    """The card's network with weights drawn from a seed."""
    torch.manual_seed(seed)
    module = models.build(
        **card.architecture, bands=len(card.input.band), classes=len(card.legend), size=card.window.size
    )
    for parameter in module.parameters():
        if parameter.ndim == 1:  # norms of residual branches start at zero: make every path count
            torch.nn.init.normal_(parameter, 0.5, 0.3)
    return module.eval()


def threshold_card(thresholds: Sequence[float], bands: int = 1, scale: str = "local", **window: Any) -> ModelCard:
    """A classifier whose right answer is known: class = number of thresholds at or below band 0."""
    architecture = {"trunk": "threshold", "thresholds": list(thresholds), "scale": scale}
    names = [BandSpec(name=f"band{i + 1}") for i in range(bands)]
    return make_card(architecture, names, len(thresholds) + 1, **window)


SMALL_SWIN = {
    "trunk": "swinv2_t", "embed_dim": 16, "depths": [1, 1], "heads": [2, 2], "window": 8, "head": "upernet",
    "head_channels": 16, "strategy": "relays", "relays": 2,
}  # fmt: skip


def save_model(card: ModelCard, module: nn.Module, folder: Path) -> Path:
    """A model folder with these weights."""
    folder.mkdir(parents=True)
    models.save_weights(module, folder / card.weights.file)
    sha256 = sha256_of(folder / card.weights.file)
    card.model_copy(update={"weights": WeightsSpec(sha256=sha256)}).write(folder)
    return folder
