"""One chunk of a scene: read rows of windows ahead, run the model, blend, give finished strips of uint8."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from threading import Event
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uhrseg.engine.blend import Blender, Block, quantise
from uhrseg.engine.device import Runner
from uhrseg.engine.memory import SteadyMemory, keep_free_memory
from uhrseg.geo.ahead import in_order
from uhrseg.geo.area import Area
from uhrseg.geo.bands import Derived, centred, fill
from uhrseg.geo.coarse import Coarse, coarse_bytes
from uhrseg.geo.plan import Chunk, TilePlan, shifted
from uhrseg.geo.scene import DEFAULT_CACHE, Scene
from uhrseg.legend import NODATA

__all__ = ["RUN", "Job", "Strip", "cache_bytes", "run_chunk"]

RUN = 8
"""Neighbouring windows read at once: their shared pixels are read once, and memory stays small on wide chunks."""

_SMALLEST_CACHE = 32 << 20  # the coarse pass reads blocks of some 16 MB, and their masks after them
_memory = SteadyMemory(growth_mb=48, seconds=10)  # of this process, whatever it predicts
_OTHER_BLOCKS = 16 << 20  # bytes of results on their way to their files


@dataclass(frozen=True)
class Job:
    """What every chunk of a prediction shares."""

    derived: Derived
    coarse: Coarse
    plan: TilePlan
    ramp: NDArray[np.float32]
    batch_size: int
    confidence: bool
    probabilities: bool
    area: Area
    readers: int = 1  # threads that read ahead for one chunk


@dataclass(frozen=True)
class Strip:
    """Finished pixels of a scene: uint8 `labels` (Y, X), `confidence` (Y, X), `probabilities` (C, Y, X); 255 is nodata.

    Confidence is the top probability times 254, probabilities are times 254 too; either may be None.
    """

    rows: slice
    cols: slice
    labels: NDArray[np.uint8]
    confidence: NDArray[np.uint8] | None
    probabilities: NDArray[np.uint8] | None


@dataclass(frozen=True)
class _Window:
    """One window pair at a lattice position: padded views of its run's pixels."""

    row: int
    col: int
    local: NDArray[Any]  # (C, S, S); bytes or 16-bit integers where the source is and nothing is padded, else float32
    context: NDArray[np.float32] | None  # (C, S, S)


@dataclass(frozen=True)
class _Run:
    """Some neighbouring windows of one row, those with a wanted pixel, and what is wanted under all of them (S, X)."""

    row: int
    cols: range
    windows: list[_Window]
    valid: NDArray[np.bool_]
    seconds: float  # spent reading


def cache_bytes(scene: Scene, derived: Derived, plan: TilePlan, width: int, most: int = DEFAULT_CACHE) -> int:
    """Bytes of GDAL's cache for chunks `width` pixels wide, from 32 MB to `most` (64 MB).

    It holds the blocks under one row of windows, of the scene and of the coarse grid. The next row of windows overlaps
    it, and so finds them decoded: within a chunk each block is decoded once. Where that takes more than `most`, some
    are decoded again.
    """
    height, width = plan.size + 2 * derived.halo[0], width + 2 * (plan.size + derived.halo[1])
    needed = scene.decoded_bytes(height, width) + _OTHER_BLOCKS
    if plan.factor is not None:
        needed += coarse_bytes(derived, plan.factor, plan.size, width // plan.factor + plan.size)
    return min(max(needed, _SMALLEST_CACHE), most)


class _Reader:
    """Reads a chunk's windows in lattice order, some ahead of the model, and remembers which pixels are valid."""

    def __init__(self, job: Job, chunk: Chunk) -> None:
        plan = job.plan
        self.job = job
        self.chunk = chunk
        self.rows = plan.touching(chunk.rows, plan.rows)
        self.seconds = 0.0
        self.skipped = 0  # windows without a valid pixel since it was last asked
        self._valid: dict[int, NDArray[np.bool_]] = {}  # window row -> (S, chunk width); absent: nothing valid

    def __iter__(self) -> Iterator[_Window]:
        """The windows that hold a valid pixel that is asked for."""
        plan = self.job.plan
        cols = plan.touching(self.chunk.cols, plan.cols)
        runs = [(row, cols[i : i + RUN]) for row in self.rows for i in range(0, len(cols), RUN)]
        for run in in_order(self._read, runs, self.job.readers):
            self._remember(run)
            self.seconds += run.seconds
            self.skipped += len(run.cols) - len(run.windows)
            yield from run.windows

    def valid(self, row: int, rows: slice) -> NDArray[np.bool_]:
        """Validity of the chunk's pixels in `rows`, which lie under window row `row`; asked once per row."""
        known = self._valid.pop(row, None)
        if known is None:
            return np.zeros((rows.stop - rows.start, self.chunk.shape[1]), dtype=np.bool_)
        top = self.job.plan.start(row)
        return known[rows.start - top : rows.stop - top]

    def take_seconds(self) -> float:
        """Seconds spent reading since it was last asked."""
        seconds, self.seconds = self.seconds, 0.0
        return seconds

    def _read(self, place: tuple[int, range]) -> _Run:
        started, (row, cols) = time.perf_counter(), place
        job, plan, size = self.job, self.job.plan, self.job.plan.size
        across = plan.start(cols[-1]) - plan.start(cols[0])
        shape = (size, across + size)
        asked = None if job.area.is_whole else job.area.mask(plan.start(row), plan.start(cols[0]), shape)
        if asked is not None and not asked.any():
            return _Run(row, cols, [], asked, 0.0)
        local, valid = job.derived.read_native(shifted(plan.geobox, plan.start(row), plan.start(cols[0]), shape))
        context: tuple[NDArray[np.float32], NDArray[np.bool_]] | None = None
        if plan.factor is not None and valid.any():
            corner = plan.context_start(row), plan.context_start(cols[0])
            cells = shifted(job.coarse.geobox, *corner, (size, across // plan.factor + size))
            values, seen = job.coarse.read(cells)
            context = fill(values, seen, job.coarse.padding), seen
        asked = valid if asked is None else asked & valid
        windows = list(self._cut(row, cols, local, context, valid, asked))
        return _Run(row, cols, windows, asked, time.perf_counter() - started)

    def _cut(
        self, row: int, cols: range, local: NDArray[Any],
        context: tuple[NDArray[np.float32], NDArray[np.bool_]] | None,
        valid: NDArray[np.bool_], asked: NDArray[np.bool_],
    ) -> Iterator[_Window]:  # fmt: skip
        plan, size, own_zero = self.job.plan, self.job.plan.size, self.job.derived.crop_mean_channels
        for col in cols:
            left = plan.start(col) - plan.start(cols[0])
            inside = np.s_[left : left + size]
            good, pixels = valid[:, inside], local[:, :, inside]
            if not asked[:, inside].any():
                continue
            if not good.all():  # floats are padded in place: what is invalid for one window is so for its neighbours
                pixels = fill(pixels.astype(np.float32, copy=False), good, self.job.coarse.padding)
            cells = None
            if plan.factor is not None and context is not None:
                around = np.s_[left // plan.factor : left // plan.factor + size]
                cells = centred(context[0][:, :, around], context[1][:, around], own_zero)
            yield _Window(row, col, centred(pixels, good, own_zero), cells)

    def _remember(self, run: _Run) -> None:
        if not run.valid.any():  # rows of nodata take no memory
            return
        if run.row not in self._valid:
            self._valid[run.row] = np.zeros((self.job.plan.size, self.chunk.shape[1]), dtype=np.bool_)
        left = self.job.plan.start(run.cols[0]) - self.chunk.cols.start
        low, high = max(left, 0), min(left + run.valid.shape[1], self.chunk.shape[1])
        self._valid[run.row][:, low:high] = run.valid[:, low - left : high - left]


def run_chunk(
    job: Job, runner: Runner, chunk: Chunk, stop: Event, tick: Callable[[int], None]
) -> Iterator[tuple[Strip, float]]:
    """Strips of the chunk from top to bottom, each with the seconds spent reading for it.

    Every window that touches the chunk is run, in lattice order, so that the strips do not depend on how the scene
    was cut. Windows without a valid pixel are not run. `tick(n)` is called as n more windows are done; when `stop`
    is set, it ends early. Raises `RunError` when the model gives values that are not finite.
    """
    keep_free_memory()
    reader = _Reader(job, chunk)
    blender = Blender(job.plan, chunk, runner.classes, job.ramp, runner.device)
    results = _run(reader, runner, stop, tick)
    coming = next(results, None)
    pending: _Planes | None = None  # a row behind, so that a GPU never waits for its results to be fetched
    for row in reader.rows:
        planes = _Planes(job, runner, chunk, row)
        while coming is not None and coming[0].row == row:
            window, logits = coming
            with torch.inference_mode():
                planes.take(blender.add(row, window.col, logits))
            coming = next(results, None)
        if stop.is_set():
            return
        planes.leave(reader.valid(row, planes.rows))
        if pending is not None and pending.height:
            yield pending.strip(), reader.take_seconds()
        pending = planes
        _memory.settle()
    if pending is not None and pending.height:
        yield pending.strip(), reader.take_seconds()


def _run(reader: _Reader, runner: Runner, stop: Event, tick: Callable[[int], None]) -> Iterator[tuple[_Window, Tensor]]:
    """Windows with their logits (classes, S, S), in lattice order; batches run on from one row to the next."""
    batch: list[_Window] = []
    for window in reader:
        batch.append(window)
        if len(batch) == reader.job.batch_size:
            yield from _run_batch(batch, runner)
            tick(len(batch) + reader.skipped)
            batch, reader.skipped = [], 0
        if stop.is_set():
            return
    if batch:
        yield from _run_batch(batch, runner)
    tick(len(batch) + reader.skipped)


def _run_batch(batch: list[_Window], runner: Runner) -> Iterator[tuple[_Window, Tensor]]:
    contexts = [w.context for w in batch if w.context is not None]
    return zip(batch, runner([w.local for w in batch], contexts or None), strict=True)


class _Planes:
    """The finished pixels of one window row, uint8 on the device until they `leave` it, and then a `Strip`."""

    def __init__(self, job: Job, runner: Runner, chunk: Chunk, row: int) -> None:
        plan = job.plan
        top = max(plan.start(row), chunk.rows.start)
        last = row == plan.rows - 1
        bottom = min(plan.geobox.shape[0] if last else plan.start(row + 1), chunk.rows.stop)
        self.rows = slice(top, max(top, bottom))
        self.cols = chunk.cols
        self.height = self.rows.stop - top
        self._runner = runner
        shape = (self.height, chunk.shape[1])
        self._labels = self._new(shape)
        self._confidence = self._new(shape) if job.confidence else None
        self._probabilities = self._new((runner.classes, *shape)) if job.probabilities else None
        self._total = torch.zeros((), device=runner.device)

    def _new(self, shape: tuple[int, ...]) -> Tensor:
        return torch.full(shape, NODATA, dtype=torch.uint8, device=self._runner.device)

    def take(self, block: Block) -> None:
        """Reduce blended logits to bytes."""
        inside = (
            slice(block.rows.start - self.rows.start, block.rows.stop - self.rows.start),
            slice(block.cols.start - self.cols.start, block.cols.stop - self.cols.start),
        )
        self._total += quantise(
            block.window,
            block.across,
            self._labels[inside],
            None if self._confidence is None else self._confidence[inside],
            None if self._probabilities is None else self._probabilities[:, *inside],
        )

    def leave(self, valid: NDArray[np.bool_]) -> None:
        """Start the way to the host; `valid` (Y, X) says which pixels are not nodata."""
        self._outside = ~valid
        self._labels, self._total = self._to_host(self._labels), self._to_host(self._total)
        if self._confidence is not None:
            self._confidence = self._to_host(self._confidence)
        if self._probabilities is not None:
            self._probabilities = self._to_host(self._probabilities)
        self._copied = torch.cuda.Event() if self._runner.device.type == "cuda" else None
        if self._copied is not None:
            self._copied.record(torch.cuda.current_stream(self._runner.device))

    def _to_host(self, plane: Tensor) -> Tensor:
        if plane.device.type != "cuda":
            return plane.cpu()
        host = torch.empty(plane.shape, dtype=plane.dtype, pin_memory=True)
        return host.copy_(plane, non_blocking=True)

    def strip(self) -> Strip:
        """The strip, once the copies are done; raises `RunError` for logits that are not finite."""
        if self._copied is not None:
            self._copied.synchronize()
        self._runner.check(self._total)
        labels = self._labels.numpy()
        confidence = None if self._confidence is None else self._confidence.numpy()
        probabilities = None if self._probabilities is None else self._probabilities.numpy()
        if self._outside.any():
            labels[self._outside] = NODATA
            if confidence is not None:
                confidence[self._outside] = NODATA
            if probabilities is not None:
                probabilities[:, self._outside] = NODATA
        return Strip(self.rows, self.cols, labels, confidence, probabilities)
