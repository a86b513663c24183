"""Prediction: a scene and a model in, class maps and polygons out, with memory that does not grow with the scene."""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import dask
import dask.array
import numpy as np
import rioxarray  # noqa: F401  (registers DataArray.rio)
import torch
import xarray as xr
from numpy.typing import NDArray
from odc.geo.xr import xr_coords
from torch import nn

from uhrseg.card import ModelCard
from uhrseg.engine.chunks import Job, Strip, cache_bytes, run_chunk
from uhrseg.engine.cluster import Setup, Work, absolute, check_scheduler, connect, pack, run_on_cluster
from uhrseg.engine.device import Runner, default_batch_size, default_readers, resolve_device, resolve_precision
from uhrseg.engine.fit import check_fit, check_windows, find_model, load_model, plan_for
from uhrseg.engine.forecast import Forecast, forecast
from uhrseg.engine.outputs import Outputs, Report
from uhrseg.errors import InputError, RunError
from uhrseg.geo.area import Area
from uhrseg.geo.coarse import Coarse, build_coarse, cached_coarse
from uhrseg.geo.plan import Chunk, TilePlan
from uhrseg.geo.plan import taper as make_ramp
from uhrseg.geo.resampled import at_resolution
from uhrseg.geo.scene import DEFAULT_CACHE, Scene, gdal_settings
from uhrseg.legend import NODATA

__all__ = ["DEFAULT_CHUNK", "Prediction", "load_model", "predict", "predict_labels"]

DEFAULT_CHUNK = 8192
"""Side of a chunk in pixels. Windows on chunk borders run twice, so chunks are large; memory follows their width."""

_GPU_CACHE = 512 << 20  # a machine with a GPU has it, and every block read twice is time the GPU waits

CLUSTER_CHUNK = 4096
"""The same for dask workers: more chunks than workers, and little to repeat when one is lost."""

Progress = Callable[[int, int], None]
Sources = str | Path | Sequence[str | Path] | Scene


@dataclass(frozen=True)
class ClusterOptions:
    """How chunks run on dask workers; see `uhrseg.engine.cluster.Setup`; a model without a folder is packed."""

    scheduler: str
    model: str | tuple[nn.Module, ModelCard]
    device: str
    precision: str
    batch_size: int | None
    compiled: bool


class Prediction:
    """A prediction that has been checked and planned but not run; `predict` makes it.

    ``labels`` is the class map as a lazy, CRS-aware `xarray.DataArray` (y, x) uint8 with nodata 255; ``write`` runs
    the model once and writes any number of outputs. Both are of `area`, the part of the scene that was asked for;
    `options` are those that a run must share with the one it resumes.
    """

    def __init__(
        self, scene: Scene, runner: Runner, card: ModelCard, plan: TilePlan, ramp: NDArray[np.float32],
        chunk: int, workers: int, batch_size: int, cluster: ClusterOptions | None = None, area: Area | None = None,
        options: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.scene = scene
        self.area = area or Area.of(scene.geobox)
        self.options = options or {}
        self.card = card
        self.plan = plan
        self.runner = runner
        self.chunk = chunk
        self.workers = workers
        self.batch_size = batch_size
        self.cluster = cluster
        self._derived = check_fit(scene, card)
        self._ramp = ramp
        self._preparing = threading.Lock()
        self._kept_coarse: Coarse | None = None

    def _lazy_job(self) -> Job:
        """The job of `labels`; its coarse grid lives in the temporary folder as long as this prediction."""
        with self._preparing:
            if self._kept_coarse is None:
                window, folder = self.card.window, Path(tempfile.gettempdir())
                with self._gdal():
                    self._kept_coarse = build_coarse(
                        self._derived, window.context_factor, folder, window.context, threads=self._readers
                    )
        return self._job(self._kept_coarse, False, False)

    def _job(self, coarse: Coarse, confidence: bool, probabilities: bool) -> Job:
        return Job(
            self._derived, coarse, self.plan, self._ramp, self.batch_size, confidence, probabilities, self.area,
            self._readers,
        )  # fmt: skip

    @property
    def _readers(self) -> int:
        """Threads that read ahead: a GPU takes windows faster than one thread reads them."""
        return default_readers(self.runner.device)

    @property
    def cache_bytes(self) -> int:
        """Bytes of GDAL's cache for one chunk at work."""
        most = DEFAULT_CACHE if self.runner.device.type == "cpu" else _GPU_CACHE
        return cache_bytes(self.scene, self._derived, self.plan, self.chunk, most)

    def _gdal(self) -> AbstractContextManager[None]:
        return gdal_settings(self.scene.paths, self.cache_bytes * self.workers)

    @property
    def chunks(self) -> list[Chunk]:
        """The units of work: squares of the part of the scene that is asked for, without those that hold none of it."""
        return [chunk for chunk in self.area.pieces(self.chunk) if self.area.touches(chunk)]

    @property
    def windows(self) -> int:
        """Windows run over all chunks; those on chunk borders count once per chunk."""
        return self._windows(self.chunks)

    def _windows(self, chunks: Sequence[Chunk]) -> int:
        plan = self.plan
        return sum(len(plan.touching(c.rows, plan.rows)) * len(plan.touching(c.cols, plan.cols)) for c in chunks)

    @property
    def labels(self) -> xr.DataArray:
        """Class map (y, x) uint8, nodata 255, computed chunk by chunk when dask asks for it."""
        job = dask.delayed(self._lazy_job)()
        pieces, grid = self.area.pieces(self.chunk), self.area.geobox
        blocks = [
            [
                dask.array.from_delayed(dask.delayed(self._chunk_labels)(job, chunk), chunk.shape, np.uint8)
                for chunk in pieces
                if chunk.rows.start == top
            ]
            for top in sorted({chunk.rows.start for chunk in pieces})
        ]
        array = xr.DataArray(dask.array.block(blocks), dims=grid.dimensions, coords=xr_coords(grid))
        return array.rename("labels").rio.write_nodata(NODATA)

    def _chunk_labels(self, job: Job, chunk: Chunk) -> NDArray[np.uint8]:
        labels = np.empty(chunk.shape, dtype=np.uint8)
        with self._gdal():
            for strip, _ in run_chunk(job, self.runner, chunk, threading.Event(), _ignore):
                labels[strip.rows.start - chunk.rows.start : strip.rows.stop - chunk.rows.start] = strip.labels
        return labels

    def forecast(self, polygons: bool = True, probabilities: bool = False) -> Forecast:
        """Windows, chunks, memory and disk, and the time after a short probe of the model; nothing is written."""
        return forecast(
            self.plan, self.chunks, self.windows, self.runner, self._derived, self.workers, self.batch_size,
            self.cache_bytes * self.workers, 1 + polygons + probabilities * len(self.card.legend), self._readers,
        )  # fmt: skip

    def write(
        self,
        *paths: str | Path,
        overwrite: bool = False,
        min_area_m2: float | None = None,
        classes: Sequence[str] | None = None,
        probabilities: str | Path | None = None,
        progress: Progress | None = None,
        resume: bool = False,
        simplify_m: float | None = None,
    ) -> Report:
        """Run the model over the scene and write every output; the suffix of each path decides its format.

        `.tif` class map (COG), `.gpkg .fgb .geojson .parquet` polygons of `classes` (default: all but the
        background) of at least `min_area_m2`, with fewer corners by `simplify_m`; `probabilities` a COG of one uint8
        band per class. `progress(done, total)` counts windows. `resume` goes on with a run that was interrupted, by
        whatever: finished chunks are not done again, and the outputs are those of an uninterrupted run.

        Raises `InputError` before any work for outputs that exist (without `overwrite`) or cannot be made, and when
        the run to resume was asked for something else; `RunError` when the work fails. Either way no half-written
        output is left; finished chunks stay in a hidden folder beside the first output, ``.NAME.uhrseg``.
        """
        started = time.perf_counter()
        outputs = Outputs(
            self.card, self.scene, self.area, self.chunks, paths, probabilities, overwrite, min_area_m2, classes,
            resume, simplify_m,
        )  # fmt: skip
        self.runner.seconds = 0.0
        with self._gdal(), outputs:
            todo, window = outputs.begin(self.options), self.card.window
            with cached_coarse(
                self._derived, window.context_factor, outputs.folder, window.context, self._readers
            ) as coarse:
                job = self._job(coarse, outputs.needs_confidence, outputs.needs_probabilities)
                where = str(self.runner.device), self.runner.precision
                if self.cluster is None:
                    read_s = self._run(job, todo, outputs.take, progress)
                else:
                    read_s, where = self._run_on_cluster(self.cluster, job, todo, outputs, progress)
                outputs.finish()
        report = outputs.report(self.runner, self._windows(todo), read_s, time.perf_counter() - started)
        return replace(report, device=where[0], precision=where[1])

    def _run_on_cluster(
        self, options: ClusterOptions, job: Job, chunks: Sequence[Chunk], outputs: Outputs, progress: Progress | None
    ) -> tuple[float, tuple[str, str]]:
        """Run chunks on dask workers: seconds spent reading, over all of them, and their devices and precision."""
        if not chunks:
            return 0.0, (str(self.runner.device), self.runner.precision)
        folder = outputs.folder.resolve()
        model = pack(*options.model, folder) if isinstance(options.model, tuple) else options.model
        setup = Setup(
            model, options.device, options.precision, options.batch_size, options.compiled, job,
            self.scene.paths, self.cache_bytes, replace(outputs.partials, folder=folder),
        )  # fmt: skip
        counter, works = _Counter(self._windows(chunks), progress), list[Work]()

        def finished(work: Work) -> None:
            works.append(work)
            counter.tick(work.windows)

        with connect(options.scheduler) as client:
            run_on_cluster(client, setup, chunks, finished)
        self.runner.seconds = sum(w.model_s for w in works)
        device = ", ".join(sorted({w.device for w in works}))
        precision = ", ".join(sorted({w.precision for w in works}))
        return sum(w.read_s for w in works), (device, precision)

    def _run(
        self,
        job: Job,
        chunks: Sequence[Chunk],
        take: Callable[[Chunk, Iterable[Strip]], None],
        progress: Progress | None,
    ) -> float:
        """Run chunks over dask's threads, a single worker in this one: seconds spent reading (beside the model's work).

        The heap of the main thread is one piece, that of a thread that was here before `keep_free_memory` falls into
        pieces of 64 MB, given back when empty.
        """
        stop, counter = threading.Event(), _Counter(self._windows(chunks), progress)

        def work(chunk: Chunk) -> float:
            spent: list[float] = []
            try:
                take(chunk, _strips(run_chunk(job, self.runner, chunk, stop, counter.tick), spent, stop))
            except BaseException:
                stop.set()
                raise
            return sum(spent)

        with ThreadPoolExecutor(self.workers, thread_name_prefix="uhrseg-chunk") as pool:  # leaving waits for threads
            try:
                tasks = [dask.delayed(work)(chunk) for chunk in chunks]
                scheduler = "threads" if self.workers > 1 else "synchronous"
                return sum(dask.compute(*tasks, scheduler=scheduler, pool=pool))
            except BaseException:  # Ctrl-C reaches this thread only: the others must be told
                stop.set()
                raise


def _strips(results: Iterable[tuple[Strip, float]], spent: list[float], stop: threading.Event) -> Iterator[Strip]:
    """The strips of a chunk, all of them or an exception; seconds spent reading go to `spent`."""
    for strip, seconds in results:
        spent.append(seconds)
        yield strip
    if stop.is_set():
        raise RunError("another chunk of this run failed")


class _Counter:
    """Counts finished windows over all threads."""

    def __init__(self, total: int, progress: Progress | None) -> None:
        self.total = total
        self.done = 0
        self._progress = progress
        self._lock = threading.Lock()

    def tick(self, windows: int) -> None:
        with self._lock:
            self.done += windows
            if self._progress:
                self._progress(self.done, self.total)


def _ignore(windows: int) -> None:
    """Progress of a lazy read is dask's own business."""


def predict(
    sources: Sources,
    model: str | Path | tuple[nn.Module, ModelCard],
    *,
    overlap: float | None = None,
    taper: str = "hann",
    chunk: int | None = None,
    workers: int | None = None,
    batch_size: int | None = None,
    device: str = "auto",
    precision: str = "auto",
    bidx: Sequence[int] | None = None,
    nodata: float | None = None,
    allow_network: bool = False,
    scheduler: str | None = None,
    compiled: bool = False,
    bounds: Sequence[float] | None = None,
    aoi: str | Path | None = None,
    res: float | Literal["card"] | None = None,
) -> Prediction:
    """Check that model and scene fit, and plan the prediction; nothing is computed yet.

    `sources`: a file, several, a folder or a glob (one mosaic), or an open scene, which is predicted in this process.
    `model`: a shipped model's name, a model folder, or a module with its card. `overlap`: share of the window side,
    default the card's. `chunk`: side of the unit of work in pixels (default 8192), `workers`: chunks in flight (default
    1), `batch_size`: windows per model call (default 4 on a CPU, 16 elsewhere). `bounds` (left, bottom, right, top in
    the scene's CRS) and `aoi` (a file of polygons) choose a part of the scene, which gets the labels it has in the
    whole. `res`: read at that many metres a pixel, or at the card's. `scheduler`: chunks on dask workers, ``local:N``
    processes or a scheduler ``tcp://HOST:PORT`` whose workers see all paths; by default one process per GPU
    where there are several. `compiled`: torch.compile the model, which pays on large scenes. The labels do not depend
    on `chunk`, `workers` or `scheduler`. Raises `InputError` when anything does not fit.
    """
    for name, value in {"chunk": chunk, "workers": workers, "batch size": batch_size}.items():
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, but must be at least 1")
    module, card = model if isinstance(model, tuple) else load_model(model)
    check_windows(module, card)
    if isinstance(sources, Scene):
        if scheduler:
            raise InputError("an open scene is predicted in this process: name its files to use a scheduler")
        scene = sources
    else:
        scheduler = scheduler or _one_worker_per_gpu(device)
        scene = Scene.open(absolute(sources) if scheduler else sources, bidx, nodata, allow_network)
    if res is not None:
        scene = at_resolution(scene, _metres(res, card))
    plan = plan_for(scene, card, overlap)
    area = Area.of(scene.geobox, bounds, aoi)
    cluster = None
    if scheduler is not None:
        check_scheduler(scheduler)
        given = model if isinstance(model, tuple) else str(find_model(model).resolve())
        cluster = ClusterOptions(scheduler, given, device, precision, batch_size, compiled)
    where = resolve_device("cpu" if cluster else device)  # the workers have the devices
    how = resolve_precision("auto" if cluster else precision, where)
    batch = batch_size or default_batch_size(where)
    runner = Runner(module, card, where, how, batch, compiled and cluster is None)
    ramp = make_ramp(taper, plan.overlap)
    side = chunk or (CLUSTER_CHUNK if cluster else DEFAULT_CHUNK)
    options = {
        "--overlap": plan.overlap / plan.size,
        "--taper": taper,
        "--chunk": side,
        "--batch-size": batch_size if cluster else batch,
        "--device": device if cluster else where.type,
        "--precision": precision if cluster else how,
        "--compile": compiled,
        "--bidx": list(bidx or ()),
        "--nodata": None if nodata is None else repr(nodata),
    }
    return Prediction(scene, runner, card, plan, ramp, side, workers or 1, batch, cluster, area, options)


def _metres(res: float | Literal["card"], card: ModelCard) -> float:
    if res != "card":
        return res
    if card.input.gsd_m is None:
        raise InputError(f"model {card.name} does not say its ground sampling distance: give --res in metres")
    return card.input.gsd_m


def _one_worker_per_gpu(device: str) -> str | None:
    """Several GPUs are used by default, by one process each."""
    gpus = torch.cuda.device_count() if device in ("auto", "cuda") and torch.cuda.is_available() else 0
    return f"local:{gpus}" if gpus > 1 else None


def predict_labels(
    source: Sources, module: nn.Module, card: ModelCard, **options: Any
) -> NDArray[np.uint8]:
    """The whole stitched class map (Y, X) uint8 in memory: what validation scores is what ships."""
    return np.asarray(predict(source, (module, card), **options).labels.values)
