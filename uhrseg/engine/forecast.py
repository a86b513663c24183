"""What a prediction will cost, said before it starts."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from uhrseg.engine.chunks import RUN
from uhrseg.engine.device import Runner
from uhrseg.engine.memory import Watch, keep_free_memory, return_free_memory
from uhrseg.geo.bands import Derived
from uhrseg.geo.plan import Chunk, TilePlan

__all__ = ["Forecast", "forecast"]

_PROBE_SECONDS = 2.0
_MB = 1e6
_GAPS = 1.25  # measured / counted, 8192 px: free blocks between others, which the allocator cannot give back


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
    derived: Derived,
    workers: int,
    batch_size: int,
    cache_bytes: int,
    planes: int = 2,
    readers: int = 1,
) -> Forecast:
    """Count windows and bytes, and time the model for about two seconds on windows of ones.

    `cache_bytes`: what GDAL's cache may take; `planes`: uint8 planes kept of each chunk; `readers`: threads that read
    ahead for one chunk.
    """
    seconds, call_mb = _probe(plan, runner, len(derived.bands), batch_size)
    memory, formula = _memory(
        plan, chunks, runner, derived, workers, batch_size, cache_bytes, planes, call_mb, readers
    )
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
        disk_mb=_disk(plan, pixels, planes, len(derived.bands)) / _MB,
        seconds=windows * seconds,
        device=str(runner.device),
        precision=runner.precision,
    )


def _memory(
    plan: TilePlan, chunks: list[Chunk], runner: Runner, derived: Derived, workers: int, batch: int, cache: int,
    planes: int, call_mb: float, readers: int,
) -> tuple[float, str]:  # fmt: skip
    """Megabytes held by the chunks in flight: runs of windows read ahead, batches, rows; one call of the model."""
    width, size = max(c.shape[1] for c in chunks) + 2 * plan.size, plan.size
    bands, classes = len(derived.bands), runner.classes
    local, meanwhile = derived.read_bytes(size, (RUN - 1) * plan.stride + size)
    context = 0 if plan.factor is None else size * ((RUN - 1) * plan.stride // plan.factor + size) * (4 * bands + 1)
    runs = readers + (1 if batch == 1 else 2)  # at work, and one whose last windows wait for a batch to fill
    read = (runs * (local + context) + readers * meanwhile) / _MB
    scales = 1 if plan.factor is None else 2
    stacked = batch * size**2 * (scales * bands + classes) * 4 / _MB
    rows = (classes * plan.overlap * 4 + 2 * (2 + planes) * size) * width / _MB  # of two rows, and where they are valid
    total = _GAPS * (workers * (read + stacked + rows) + call_mb + cache / _MB)
    formula = (
        f"{_GAPS} x ({workers} x ({read:.0f} MB read ahead ({runs} x {RUN} windows of {bands} bands) + "
        f"{stacked:.0f} MB in a batch of {batch} + {rows:.0f} MB of rows {width} px wide ({classes} classes)) + "
        f"{call_mb:.0f} MB for a call of the model, as measured + {cache / _MB:.0f} MB of GDAL cache)"
    )
    return total, formula


def _disk(plan: TilePlan, pixels: int, planes: int, bands: int) -> float:
    """Bytes of the finished chunks' uint8 planes and of the coarse grid in float32."""
    coarse = 0 if plan.factor is None else math.prod(plan.geobox.shape) / plan.factor**2 * 4 * bands
    return planes * pixels + coarse


def _probe(plan: TilePlan, runner: Runner, bands: int, batch_size: int) -> tuple[float, float]:
    """Seconds of the model a window, and by how many megabytes its calls make this process grow."""
    windows = [np.ones((bands, plan.size, plan.size), dtype=np.float32)] * batch_size
    context = None if plan.factor is None else windows
    keep_free_memory()
    return_free_memory()
    with Watch() as memory:
        runner(windows, context)  # the first call also allocates and picks kernels
        started, calls = time.perf_counter(), 0
        while calls == 0 or time.perf_counter() - started < _PROBE_SECONDS:
            runner(windows, context)
            calls += 1
        seconds = (time.perf_counter() - started) / (calls * batch_size)
    return seconds, memory.rise_mb
