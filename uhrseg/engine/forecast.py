"""What a prediction will cost, said before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from uhrseg.card import ModelCard
from uhrseg.engine.chunks import RUN
from uhrseg.engine.device import Runner
from uhrseg.geo.plan import Chunk, TilePlan

__all__ = ["Forecast", "forecast"]

_PROBE_SECONDS = 2.0
_MB = 1e6
_RUNS_HELD = 2  # one at work, one whose last windows wait for a batch to fill; and those that are read ahead


@dataclass(frozen=True)
class Forecast:
    """The plan of a prediction and its cost: megabytes of 1e6 bytes, seconds of wall time."""

    pixels: int
    windows: int
    window_px: int
    overlap_px: int
    context_factor: int | None
    chunks: int
    workers: int
    batch_size: int
    memory_mb: float
    memory_formula: str
    disk_mb: float
    seconds: float
    device: str
    precision: str

    def as_dict(self) -> dict[str, Any]:
        """The forecast as plain data."""
        return dict(self.__dict__)

    def lines(self) -> list[str]:
        """The forecast in a few readable lines."""
        scale = f", context x{self.context_factor}" if self.context_factor else ", single scale"
        return [
            f"scene    {self.pixels:,} pixels",
            f"windows  {self.windows:,} of {self.window_px} px, {self.overlap_px} px overlap{scale}",
            f"chunks   {self.chunks:,}, {self.workers} at a time, {self.batch_size} windows a batch",
            f"memory   {self.memory_mb:,.0f} MB above the loaded model: {self.memory_formula}",
            f"disk     {self.disk_mb:,.0f} MB beside the first output while running, and the outputs",
            f"time     about {_duration(self.seconds)} on {self.device} in {self.precision}",
        ]


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def forecast(
    plan: TilePlan,
    chunks: list[Chunk],
    windows: int,
    runner: Runner,
    card: ModelCard,
    workers: int,
    batch_size: int,
    cache_bytes: int,
    planes: int = 2,
    readers: int = 1,
) -> Forecast:
    """Count windows and bytes, and time the model for about two seconds on windows of zeros.

    `cache_bytes`: what GDAL's cache may take; `planes`: uint8 planes kept of each chunk; `readers`: threads that read
    ahead for one chunk.
    """
    memory, formula = _memory(plan, chunks, card, workers, batch_size, cache_bytes, _RUNS_HELD + readers)
    pixels = sum(math.prod(chunk.shape) for chunk in chunks)
    return Forecast(
        pixels=pixels,
        windows=windows,
        window_px=plan.size,
        overlap_px=plan.overlap,
        context_factor=plan.factor,
        chunks=len(chunks),
        workers=workers,
        batch_size=batch_size,
        memory_mb=memory,
        memory_formula=formula,
        disk_mb=_disk(plan, pixels, planes, card) / _MB,
        seconds=windows * _seconds_per_window(plan, runner, card, batch_size),
        device=str(runner.device),
        precision=runner.precision,
    )


def _memory(
    plan: TilePlan, chunks: list[Chunk], card: ModelCard, workers: int, batch: int, cache: int, runs: int
) -> tuple[float, str]:
    """Bytes held by the chunks in flight: runs of windows read ahead, a batch, the blended overlap, finished rows."""
    width = max(c.shape[1] for c in chunks) + 2 * plan.size
    bands, classes = len(card.input.band), len(card.legend)
    scales = 1 if plan.factor is None else 2
    read = runs * scales * bands * plan.size * (RUN * plan.stride + plan.overlap) * 4
    stacked = batch * plan.size**2 * (scales * bands + classes) * 4
    blend = (classes * plan.overlap * 4 + 2 * (2 + classes) * plan.size) * width
    total = workers * (read + stacked + blend) / _MB + cache / _MB
    formula = (
        f"{workers} x ({read / _MB:.0f} MB read ahead ({runs} x {RUN} windows of {bands} bands) + "
        f"{stacked / _MB:.0f} MB in a batch of {batch} + {blend / _MB:.0f} MB of rows {width} px wide "
        f"({classes} classes)) + {cache / _MB:.0f} MB of GDAL cache, and the model's activations"
    )
    return total, formula


def _disk(plan: TilePlan, pixels: int, planes: int, card: ModelCard) -> float:
    """Bytes of the finished chunks' uint8 planes and of the coarse grid in float32."""
    coarse = 0 if plan.factor is None else math.prod(plan.geobox.shape) / plan.factor**2 * 4 * len(card.input.band)
    return planes * pixels + coarse


def _seconds_per_window(plan: TilePlan, runner: Runner, card: ModelCard, batch_size: int) -> float:
    windows = [np.zeros((len(card.input.band), plan.size, plan.size), dtype=np.float32)] * batch_size
    context = None if plan.factor is None else windows
    runner(windows, context)  # the first call also allocates and picks kernels
    started, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - started < _PROBE_SECONDS:
        runner(windows, context)
        calls += 1
    return (time.perf_counter() - started) / (calls * batch_size)
