"""Chunks on other processes: the same files, and lost workers are survived."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from distributed import Client, LocalCluster
from numpy.typing import NDArray

from tests.rasters import RELIEF, SMALL_SWIN, make_card, make_model, save_model, terrain, write_raster
from uhrseg.engine.cluster import absolute, connect, device_of_worker
from uhrseg.engine.journal import work_folder
from uhrseg.engine.predict import predict
from uhrseg.errors import InputError

OPTIONS: dict[str, Any] = {"chunk": 64, "batch_size": 2, "precision": "fp32"}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as workers:
        yield workers


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ground = terrain(230, 300)
    ground[:, 40:90, :200] = -9999
    return write_raster(tmp_path_factory.mktemp("source") / "dtm.tif", ground, nodata=-9999)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    return save_model(card, make_model(card), tmp_path_factory.mktemp("model") / "model")


@pytest.fixture(scope="module")
def by_threads(source: Path, model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, NDArray[np.uint8]]:
    folder = tmp_path_factory.mktemp("threads")
    predict(source, model, **OPTIONS).write(folder / "c.tif", probabilities=folder / "p.tif")
    return rasters(folder)


def rasters(folder: Path) -> dict[str, NDArray[np.uint8]]:
    """The class map and the probabilities in a folder."""
    found = {}
    for name in ("c.tif", "p.tif"):
        with rasterio.open(folder / name) as dataset:
            found[name] = dataset.read()
    return found


def test_a_lost_worker_is_survived_and_the_result_is_that_of_threads(
    tmp_path: Path, cluster: LocalCluster, source: Path, model: Path, by_threads: dict[str, NDArray[np.uint8]]
) -> None:
    killed: list[int] = []
    with Client(cluster) as client:
        pids = sorted(client.run(os.getpid).values())

        def kill(done: int, total: int) -> None:
            if not killed and done < total:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(done)

        prediction = predict(source, model, scheduler=cluster.scheduler_address, **OPTIONS)
        report = prediction.write(
            tmp_path / "c.tif", tmp_path / "a.gpkg", probabilities=tmp_path / "p.tif", progress=kill
        )
        assert killed, "a worker was killed before the end"
        assert pids[0] not in client.run(os.getpid).values()
    assert report.device == "cpu" and report.precision == "fp32" and report.seconds["model"] > 0
    np.testing.assert_equal(rasters(tmp_path), by_threads)
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")], "working files are gone"


def test_a_run_on_workers_that_was_ended_goes_on_and_repeats_no_finished_chunk(
    tmp_path: Path, cluster: LocalCluster, source: Path, model: Path, by_threads: dict[str, NDArray[np.uint8]]
) -> None:
    """What SIGKILL leaves of ``--scheduler local:2`` is tried by ``benchmarks/kill.py --scheduler local:2``."""
    outputs = {"probabilities": tmp_path / "p.tif"}
    prediction = predict(source, model, scheduler=cluster.scheduler_address, **OPTIONS)

    def interrupt(done: int, total: int) -> None:
        if done > total / 3:
            raise KeyboardInterrupt

    def finished() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in work_folder(tmp_path / "c.tif").glob("chunk-*.json")}

    with pytest.raises(KeyboardInterrupt):
        prediction.write(tmp_path / "c.tif", progress=interrupt, **outputs)
    before, seen = finished(), list[dict[str, int]]()
    assert 0 < len(before) < len(prediction.chunks) and not (tmp_path / "c.tif").exists()
    report = prediction.write(
        tmp_path / "c.tif", resume=True, progress=lambda done, total: seen.append(finished()), **outputs
    )
    assert seen and all(now.items() >= before.items() for now in seen)
    assert 0 < report.windows < prediction.windows
    np.testing.assert_equal(rasters(tmp_path), by_threads)


def test_local_workers_are_as_many_as_asked_for() -> None:
    with connect("local:1") as client:
        assert len(client.scheduler_info()["workers"]) == 1


@pytest.mark.parametrize(
    ("device", "worker", "gpus", "expected"),
    [
        ("auto", 3, 4, "cuda:3"), ("auto", 5, 4, "cuda:1"), ("cuda", "SLURMCluster-0-2", 4, "cuda:2"),
        ("auto", 1, 1, "auto"), ("auto", 1, 0, "auto"), ("cpu", 1, 4, "cpu"), ("cuda:2", 0, 4, "cuda:2"),
        ("auto", "tcp://host", 4, "auto"),
    ],
)  # fmt: skip
def test_workers_of_one_machine_share_its_gpus(device: str, worker: str | int, gpus: int, expected: str) -> None:
    assert device_of_worker(device, worker, gpus) == expected


def test_sources_have_names_that_hold_everywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    given = ["a.tif", tmp_path / "b.tif", "*.tif", "https://host/c.tif", "/vsizip/d.zip/d.tif"]
    assert absolute(given) == [str(tmp_path / n) for n in ("a.tif", "b.tif", "*.tif")] + given[3:]
    assert absolute("a.tif") == [str(tmp_path / "a.tif")]


@pytest.mark.parametrize("scheduler", ["local:0", "local", "somewhere"])
def test_a_scheduler_that_is_none_is_refused(tmp_path: Path, scheduler: str) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(20, 20))
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    with pytest.raises(InputError, match="local:N"):
        predict(source, (make_model(card), card), scheduler=scheduler)
