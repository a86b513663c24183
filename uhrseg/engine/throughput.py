"""How much a prediction costs beyond its model: the same windows run bare, in a naive loop, by us, and by MONAI.

All run in one process with the same module, on the same raster, with the same GDAL cache, so that their ratios mean
something even where their seconds do not.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from rasterio.windows import Window
from torch import Tensor, nn

from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec
from uhrseg.engine.device import Runner
from uhrseg.engine.predict import Prediction, predict
from uhrseg.errors import InputError
from uhrseg.geo.scene import gdal_settings
from uhrseg.legend import NODATA
from uhrseg.models import SegOutput

__all__ = ["CONTENDERS", "CheapConv", "Cost", "cheap_conv", "measure"]

_PROFILE = {"driver": "GTiff", "count": 1, "dtype": "uint8", "nodata": NODATA, "compress": "deflate", "tiled": True,
            "blockxsize": 512, "blockysize": 512, "bigtiff": "if_safer"}  # fmt: skip


class CheapConv(nn.Module):
    """Four convolutions at a quarter of the resolution and a bilinear enlargement: so cheap that overhead shows."""

    strategy = "single"

    def __init__(self, bands: int, classes: int, width: int = 32) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(bands, width, 4, stride=4), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
            nn.Conv2d(width, classes, 1),
        )  # fmt: skip

    def forward(
        self, local: Tensor, context: Tensor | None = None, with_context_logits: bool | None = None
    ) -> SegOutput:
        """(B, bands, size, size) -> logits (B, classes, size, size)."""
        small = self.body(local)
        return SegOutput(nn.functional.interpolate(small, local.shape[-2:], mode="bilinear", align_corners=False))


def cheap_conv(
    bands: int = 3, classes: int = 5, size: int = 1024, overlap: float = 0.125
) -> tuple[nn.Module, ModelCard]:
    """The cheap network with random weights and a card for bytes, as `predict` takes them."""
    torch.manual_seed(0)
    card = ModelCard.model_validate(
        {
            "name": "cheap-conv", "architecture": {"trunk": "cheap-conv"}, "background": 0,
            "class": [ClassSpec(id=i, name=f"class{i}", color=f"#{40 * i + 20:02x}8040") for i in range(classes)],
            "window": WindowSpec(size=size, context_factor=None, overlap=overlap),
            "input": InputSpec(band=tuple(BandSpec(name=f"band{i + 1}", mean=127, std=60) for i in range(bands))),
            "weights": WeightsSpec(sha256="0" * 64),
        }
    )  # fmt: skip
    return CheapConv(bands, classes).eval(), card


@dataclass(frozen=True)
class Cost:
    """What one contender took: calls of the model on one window each, CPU and wall seconds of the whole process."""

    name: str
    windows: int
    minimal_windows: int
    cpu_s: float
    wall_s: float


class _Bench:
    """One raster, one network, one folder for results; each contender is a method that returns its window count."""

    def __init__(self, source: Path, module: nn.Module, card: ModelCard, folder: Path, options: dict[str, Any]) -> None:
        self.source, self.module, self.card, self.folder, self.options = source, module, card, folder, options
        self.size = card.window.size
        self.prediction = self._predict()

    def _predict(self) -> Prediction:
        return predict(self.source, (self.module, self.card), **self.options)

    @property
    def runner(self) -> Runner:
        return self.prediction.runner

    def forward(self) -> int:
        """The model alone: as many batches as the prediction runs, on pixels that lie ready on the device."""
        batch, runner = self.prediction.batch_size, self.runner
        shape = (batch, len(self.card.input.band), self.size, self.size)
        local = torch.randn(shape, device=runner.device)
        context = None if self.card.window.context_factor is None else local.clone()
        calls = -(-self.prediction.windows // batch)
        with torch.inference_mode(), self._autocast():
            for _ in range(calls):
                self.module(local, context, False)
            if runner.device.type == "cuda":
                torch.cuda.synchronize(runner.device)
        return calls * batch

    def naive(self) -> int:
        """The loop anybody writes first: read, scale, run, take the best class, mask, write; no overlap."""
        self._single_scale("naive")
        count, size = 0, self.size
        with rasterio.open(self.source) as raster:
            profile = _PROFILE | {"width": raster.width, "height": raster.height, "crs": raster.crs,
                                  "transform": raster.transform}  # fmt: skip
            with rasterio.open(self.folder / "naive.tif", "w", **profile) as out:
                for row in range(0, raster.height, size):
                    for col in range(0, raster.width, size):
                        window = Window(col, row, min(size, raster.width - col), min(size, raster.height - row))
                        values = raster.read(window=window)  # (C, Y, X)
                        labels = self._run(_padded(values, size))[: values.shape[1], : values.shape[2]]
                        if raster.nodata is not None:
                            labels[(values == raster.nodata).any(axis=0)] = NODATA
                        out.write(labels, 1, window=window)
                        count += 1
        return count

    def ours(self) -> int:
        """`uhrseg predict SOURCE -o classes.tif`: blended, a verified COG with overviews."""
        return self._predict().write(self.folder / "ours.tif", overwrite=True).windows

    def monai(self) -> int:
        """MONAI's sliding window: whole raster in, gaussian blending, best class, deflate out."""
        self._single_scale("monai")
        if find_spec("monai") is None:
            raise InputError("MONAI is not installed: pip install monai, or leave out the contender 'monai'")
        from monai.inferers import SlidingWindowInferer

        with rasterio.open(self.source) as raster:
            values = raster.read()  # (C, Y, X)
            profile = _PROFILE | {"width": raster.width, "height": raster.height, "crs": raster.crs,
                                  "transform": raster.transform}  # fmt: skip
            nodata = raster.nodata
        calls = 0

        def network(windows: Tensor) -> Tensor:
            nonlocal calls
            calls += len(windows)
            return self.module(windows, None, False).logits.float()

        overlap = self.prediction.plan.overlap / self.size
        inferer = SlidingWindowInferer((self.size, self.size), self.prediction.batch_size, overlap, mode="gaussian")
        with torch.inference_mode(), self._autocast():
            logits = inferer(self._scaled(values), network)
            labels = torch.max(logits[0], dim=0).indices.to(torch.uint8).numpy()
        if nodata is not None:
            labels[(values == nodata).any(axis=0)] = NODATA
        with rasterio.open(self.folder / "monai.tif", "w", **profile) as out:
            out.write(labels, 1)
        return calls

    def _run(self, values: NDArray[Any]) -> NDArray[np.uint8]:
        with torch.inference_mode(), self._autocast():
            logits = self.module(self._scaled(values).to(self.runner.device), None, False).logits[0]
            return torch.max(logits, dim=0).indices.to(torch.uint8).cpu().numpy()

    def _scaled(self, values: NDArray[Any]) -> Tensor:
        mean, scale = (
            torch.tensor([f(b) for b in self.card.input.band]).view(-1, 1, 1)
            for f in (lambda b: b.mean, lambda b: 1 / b.std)
        )
        return ((torch.from_numpy(values).float() - mean) * scale)[None]

    def _autocast(self) -> Any:
        return self.runner.autocast()

    def _single_scale(self, name: str) -> None:
        if self.card.window.context_factor is not None or any(b.kind != "raw" for b in self.card.input.band):
            raise InputError(f"the contender {name!r} knows neither context windows nor relief: leave it out")


def _padded(values: NDArray[Any], size: int) -> NDArray[Any]:
    missing = [(0, 0), (0, size - values.shape[1]), (0, size - values.shape[2])]
    return np.pad(values, missing) if values.shape[1:] != (size, size) else values


CONTENDERS: dict[str, Callable[[_Bench], int]] = {
    "forward": _Bench.forward,
    "naive": _Bench.naive,
    "uhrseg": _Bench.ours,
    "monai": _Bench.monai,
}
"""What is compared, by name: the model alone, a naive rasterio loop, this program, MONAI's sliding window."""


def measure(
    source: str | Path, module: nn.Module, card: ModelCard, folder: Path,
    contenders: tuple[str, ...] = tuple(CONTENDERS), threads: int = 1, repeat: int = 1, **options: Any,
) -> Iterator[Cost]:  # fmt: skip
    """Run each contender `repeat` times, in turn, after one unmeasured call of the model; yield what it took.

    `options` are those of `predict`. Results go to `folder`. GDAL compresses with `threads` threads too. Raises
    `InputError` for a contender that is unknown, cannot run this network, or is not installed.
    """
    unknown = [name for name in contenders if name not in CONTENDERS]
    if unknown:
        raise InputError(f"contender {unknown[0]!r} is not known: choose from {', '.join(CONTENDERS)}")
    with _threads(threads), gdal_settings((str(source),)):
        bench = _Bench(Path(source), module, card, folder, options)
        _warm(bench)
        for _ in range(repeat):
            for name in contenders:
                cpu, wall = time.process_time(), time.perf_counter()
                windows = CONTENDERS[name](bench)
                yield Cost(
                    name, windows, bench.prediction.plan.windows, time.process_time() - cpu, time.perf_counter() - wall
                )


def _warm(bench: _Bench) -> None:
    """The first call of a model allocates and picks kernels; the first read of a file comes from the disk."""
    shape = (len(bench.card.input.band), bench.size, bench.size)
    windows = [np.zeros(shape, dtype=np.float32)] * bench.prediction.batch_size
    bench.runner(windows, None if bench.card.window.context_factor is None else windows)
    for path in bench.prediction.scene.paths:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                while file.read(1 << 24):
                    pass


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with rasterio.Env(GDAL_NUM_THREADS=str(count)):
            yield
    finally:
        torch.set_num_threads(before)
