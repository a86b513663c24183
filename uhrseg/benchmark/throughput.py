"""Suite ``throughput``: what a prediction costs beyond its model, as ratios within one run."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin
from rasterio.windows import Window

from uhrseg import models
from uhrseg.benchmark.provenance import provenance
from uhrseg.benchmark.rows import Row
from uhrseg.card import ModelCard
from uhrseg.engine.throughput import Cost, cheap_conv, measure

__all__ = ["make_source", "relay_model", "throughput"]

_TILE = 1024
_PEERS = ("forward", "naive", "uhrseg", "monai")


def throughput(side: int = 4096, relay_side: int = 1024) -> Iterator[Row]:
    """Rows for a cheap network at 12.5 % overlap (one thread) and for SwinV2-S with relays at 25 % (all threads).

    The bare model, a naive rasterio loop without overlap and MONAI (if it is installed) run in the same process with
    the same module.
    """
    peers = _PEERS if find_spec("monai") else _PEERS[:3]
    options = {"batch_size": 1, "precision": "fp32"}
    yield from _rows(f"cheap network, {side} px, 1 thread", side, *cheap_conv(3), peers, 1, options)
    threads = torch.get_num_threads()
    module, card = relay_model("swinv2_s", 3)
    label = f"SwinV2-S + relays, {relay_side} px, {threads} threads"
    yield from _rows(label, relay_side, module, card, ("forward", "uhrseg"), threads, {})


def _rows(
    label: str, side: int, module: torch.nn.Module, card: ModelCard, contenders: tuple[str, ...], threads: int,
    options: dict[str, Any],
) -> Iterator[Row]:  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="uhrseg-throughput-") as folder:
        source = Path(folder) / "source.tif"
        make_source(source, side)
        costs = {c.name: c for c in measure(source, module, card, Path(folder), contenders, threads, **options)}
    for name, cost in costs.items():
        yield Row(
            suite="throughput",
            name=f"{name}: {label}",
            metrics=_metrics(cost, costs, side),
            provenance=provenance(precision=options.get("precision", "auto")),
        )


def _metrics(cost: Cost, costs: dict[str, Cost], side: int) -> dict[str, float | None]:
    ratios = {
        f"CPU / {other}": cost.cpu_s / costs[other].cpu_s if other in costs else None
        for other in ("forward", "naive", "monai")
    }
    speed = side**2 / 1e6 / cost.wall_s
    plain = {"windows": float(cost.windows), "CPU s": cost.cpu_s, "wall s": cost.wall_s, "Mpx/s": speed}
    return {**plain, **ratios, "wall / forward": cost.wall_s / costs["forward"].wall_s}


def make_source(path: Path, side: int, bands: int = 3) -> None:
    """A raster of `side` x `side` bytes, deflate in tiles of 512, nodata 0: smooth ground with noise, no tile twice."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 12, (bands, _TILE, _TILE))
    profile = {
        "driver": "GTiff", "width": side, "height": side, "count": bands, "dtype": "uint8", "crs": "EPSG:32633",
        "transform": from_origin(5e5, 5e6, 1, 1), "tiled": True, "blockxsize": 512, "blockysize": 512, "nodata": 0,
        "compress": "deflate", "interleave": "pixel", "bigtiff": "if_safer",
    }  # fmt: skip
    with rasterio.open(path, "w", **profile) as out:
        for row in range(0, side, _TILE):
            for col in range(0, side, _TILE):
                y, x = np.mgrid[row : min(row + _TILE, side), col : min(col + _TILE, side)]
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
