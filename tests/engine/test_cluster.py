"""Chunks on other processes: the same files, and lost workers are survived."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import rasterio
from distributed import Client, LocalCluster

from tests.rasters import RELIEF, SMALL_SWIN, make_card, make_model, save_model, terrain, write_raster
from uhrseg.engine.cluster import absolute, connect, device_of_worker
from uhrseg.engine.predict import predict
from uhrseg.errors import InputError


def test_a_lost_worker_is_survived_and_the_result_is_that_of_threads(tmp_path: Path) -> None:
    ground = terrain(230, 300)
    ground[:, 40:90, :200] = -9999
    source = write_raster(tmp_path / "dtm.tif", ground, nodata=-9999)
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    folder = save_model(card, make_model(card), tmp_path / "model")
    options = {"chunk": 64, "batch_size": 2, "precision": "fp32"}
    ours, theirs = [tmp_path / a / "p.tif" for a in ("threads", "cluster")]
    for path in (ours, theirs):
        path.parent.mkdir()
    predict(source, folder, **options).write(ours.with_name("c.tif"), probabilities=ours)
    killed: list[int] = []
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        pids = sorted(client.run(os.getpid).values())

        def kill(done: int, total: int) -> None:
            if not killed and done < total:
                os.kill(pids[0], signal.SIGKILL)
                killed.append(done)

        prediction = predict(source, folder, scheduler=cluster.scheduler_address, **options)
        report = prediction.write(
            theirs.with_name("c.tif"), theirs.with_name("a.gpkg"), probabilities=theirs, progress=kill
        )
        assert killed, "a worker was killed before the end"
        assert pids[0] not in client.run(os.getpid).values()
    assert report.device == "cpu" and report.precision == "fp32" and report.seconds["model"] > 0
    for name in ("c.tif", "p.tif"):
        with rasterio.open(ours.with_name(name)) as one, rasterio.open(theirs.with_name(name)) as other:
            assert (one.read() == other.read()).all()
    assert not [p for p in theirs.parent.iterdir() if p.name.startswith(".")], "working files are gone"


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
