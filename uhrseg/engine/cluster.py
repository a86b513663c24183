"""Chunks on dask.distributed workers: each process loads the model once, on its own device.

A worker keeps its finished chunks in the run's working folder (`uhrseg.engine.journal`), which all see, and the outputs
are made of them: no process ever holds more than a strip. A chunk whose worker is lost is run again by another worker;
dask sees to that.
"""

from __future__ import annotations

import re
import threading
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import cloudpickle
import torch
from distributed import Client, KilledWorker, LocalCluster, as_completed, get_worker
from distributed.comm.core import CommClosedError
from distributed.diagnostics.plugin import WorkerPlugin
from torch import nn

from uhrseg.card import ModelCard
from uhrseg.engine.chunks import Job, Strip, run_chunk
from uhrseg.engine.device import Runner, default_batch_size, default_readers, resolve_device, resolve_precision
from uhrseg.engine.fit import load_model
from uhrseg.engine.journal import Partials
from uhrseg.errors import InputError, RunError
from uhrseg.geo.plan import Chunk
from uhrseg.geo.scene import gdal_settings

__all__ = ["Setup", "Work", "absolute", "check_scheduler", "connect", "device_of_worker", "pack", "run_on_cluster"]

_LOCAL = re.compile(r"local:([1-9]\d*)")
_CONNECT_SECONDS = 30


@dataclass(frozen=True)
class Setup:
    """What a worker needs to run chunks: a model's name or folder, or a file made by `pack`; and how to run it."""

    model: str | Path
    device: str
    precision: str
    batch_size: int | None  # None: the device's default
    compiled: bool
    job: Job
    sources: tuple[str, ...]
    cache_bytes: int  # of GDAL, for a chunk
    partials: Partials  # in a folder seen by all workers and the client


@dataclass(frozen=True)
class Work:
    """What a finished chunk took."""

    windows: int
    read_s: float
    model_s: float
    device: str
    precision: str


def check_scheduler(scheduler: str) -> None:
    """Raise `InputError` unless it is ``local:N`` or an address."""
    if not _LOCAL.fullmatch(scheduler) and "://" not in scheduler:
        raise InputError(
            f"scheduler {scheduler!r} is not known: give local:N (N worker processes here) or tcp://HOST:PORT"
        )


def absolute(sources: str | Path | Sequence[str | Path]) -> list[str]:
    """Sources under names that hold in any working folder: paths and globs made absolute, GDAL's own names kept."""
    given = [sources] if isinstance(sources, str | Path) else sources
    names = [str(source) for source in given]
    return [n if ":" in n or n.startswith("/vsi") else str(Path(n).expanduser().absolute()) for n in names]


@contextmanager
def connect(scheduler: str) -> Iterator[Client]:
    """A client of the scheduler at an address, or of ``local:N`` worker processes that live as long as the block.

    Raises `InputError` when nobody answers.
    """
    check_scheduler(scheduler)
    local = _LOCAL.fullmatch(scheduler)
    if local:
        # Memory is bounded by construction; dask's limit would pause or kill workers for memory that GDAL may cache.
        with LocalCluster(
            n_workers=int(local[1]), threads_per_worker=1, processes=True, memory_limit=0, dashboard_address=None
        ) as cluster, Client(cluster) as client:  # fmt: skip
            yield client
        return
    try:
        client = Client(scheduler, timeout=_CONNECT_SECONDS)
    except (OSError, ValueError) as error:
        raise InputError(
            f"no dask scheduler answers at {scheduler} ({error}): start one with dask scheduler"
        ) from error
    with client:
        yield client


def run_on_cluster(client: Client, setup: Setup, chunks: Sequence[Chunk], finished: Callable[[Work], None]) -> None:
    """Run chunks on the client's workers, which keep them; `finished` hears of each, in this thread.

    Chunks of lost workers are run again elsewhere. Raises what a chunk raised,
    and `RunError` when workers die of one chunk again and again or the scheduler is lost.
    """
    plugin = _Worker(setup)
    try:
        client.register_plugin(plugin, name=plugin.name)
        futures = {client.submit(_run, plugin.name, chunk, pure=False) for chunk in chunks}
        for future in as_completed(futures):
            futures.remove(future)
            finished(future.result())
            future.release()
        client.unregister_worker_plugin(plugin.name)
    except KilledWorker as error:
        raise RunError(
            f"workers died of one chunk again and again ({error}): see their logs; if memory ran out, choose a smaller "
            "--chunk or --batch-size"
        ) from error
    except CommClosedError as error:
        raise RunError(f"the dask scheduler was lost ({error})") from error


def pack(module: nn.Module, card: ModelCard, folder: Path) -> Path:
    """Write a module that has no folder of its own to a private folder, where workers load it from.

    Through dask's messages a hundred megabytes took minutes.
    """
    path = folder / "model.pickle"
    path.write_bytes(cloudpickle.dumps((module.cpu(), card)))
    return path


def _unpack(path: Path) -> tuple[nn.Module, ModelCard]:
    """What `pack` wrote in this run."""
    module, card = cloudpickle.loads(path.read_bytes())
    return module, card


class _Worker(WorkerPlugin):
    """Travels to every worker, those that join later too; loads the model at the first chunk."""

    def __init__(self, setup: Setup) -> None:
        self.name = f"uhrseg-{uuid.uuid4().hex}"
        self.setup_ = setup
        self._runner: Runner | None = None
        self._loading: Any = None

    def setup(self, worker: Any) -> None:
        """Called by dask on the worker."""
        self._worker_name = worker.name
        self._loading = threading.Lock()

    def run(self, chunk: Chunk) -> Work:
        """Run one chunk and keep it."""
        with self._loading:
            self._runner = runner = self._runner or self._load()
        job = replace(self.setup_.job, batch_size=runner.batch_size, readers=default_readers(runner.device))
        windows, read_s, before = 0, 0.0, runner.seconds

        def count(more: int) -> None:
            nonlocal windows
            windows += more

        def strips() -> Iterator[Strip]:
            nonlocal read_s
            for strip, seconds in run_chunk(job, runner, chunk, threading.Event(), count):
                read_s += seconds
                yield strip

        with gdal_settings(self.setup_.sources, self.setup_.cache_bytes):
            try:
                self.setup_.partials.write(chunk, strips())
            except FileNotFoundError as error:
                raise RunError(f"{error.filename} is not there: do all workers share the outputs' folder?") from error
        return Work(windows, read_s, runner.seconds - before, str(runner.device), runner.precision)

    def _load(self) -> Runner:
        setup = self.setup_
        module, card = _unpack(setup.model) if isinstance(setup.model, Path) else load_model(setup.model)
        gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
        device = resolve_device(device_of_worker(setup.device, self._worker_name, gpus))
        precision = resolve_precision(setup.precision, device)
        batch = setup.batch_size or default_batch_size(device)
        return Runner(module, card, device, precision, batch, setup.compiled)


def _run(plugin: str, chunk: Chunk) -> Work:
    """The task that dask runs."""
    worker = cast(_Worker, get_worker().plugins[plugin])
    return worker.run(chunk)


def device_of_worker(device: str, worker: str | int, gpus: int) -> str:
    """The device of a worker among those of a machine with `gpus` GPUs: each takes the next one.

    dask's local clusters name their workers 0, 1, 2; job queues end their names in such a number.
    """
    number = re.search(r"\d+$", str(worker))
    if device not in ("auto", "cuda") or gpus < 2 or number is None:
        return device
    return f"cuda:{int(number[0]) % gpus}"
