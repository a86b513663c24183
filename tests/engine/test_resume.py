"""A run goes on after whatever ended it, and ends as if nothing had happened."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio

from tests.rasters import RELIEF, SMALL_SWIN, make_card, make_model, terrain, threshold_card, write_raster
from uhrseg.engine.journal import work_folder
from uhrseg.engine.predict import predict
from uhrseg.errors import InputError, RunError

ROOT = Path(__file__).resolve().parents[2]
FILES = ("map.tif", "shares.tif", "lines.geojson")


def run(source: Path, folder: Path, network: Any, progress: Any = None, chunk: int = 64, **options: Any) -> Any:
    card, module = network
    given = {k: options.pop(k) for k in ("overwrite", "resume", "min_area_m2") if k in options}
    prediction = predict(source, (module, card), chunk=chunk, precision="fp32", batch_size=3, **options)
    return prediction.write(
        folder / FILES[0], folder / FILES[2], probabilities=folder / FILES[1], progress=progress, **given
    )


@pytest.fixture(scope="module")
def network() -> Any:
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    return card, make_model(card)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    ground = terrain(170, 210)
    ground[:, 60:80, :100] = -9999
    path = tmp_path_factory.mktemp("original") / "dtm.tif"
    return write_raster(path, ground, nodata=-9999, tiled=True, blockxsize=64, blockysize=64)


@pytest.fixture
def source(original: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy2(original, tmp_path))


@pytest.fixture(scope="module")
def whole(original: Path, tmp_path_factory: pytest.TempPathFactory, network: Any) -> dict[str, bytes]:
    folder = tmp_path_factory.mktemp("whole")
    run(original, folder, network)
    return contents(folder)


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES}


def half_way(act: Callable[[], None]) -> Callable[[int, int], None]:
    """Progress that acts once, when half of the windows are done."""
    done_already: list[bool] = []

    def progress(done: int, total: int) -> None:
        if done > total / 2 and not done_already:
            done_already.append(True)
            act()

    return progress


def finished(folder: Path) -> dict[str, int]:
    """The finished chunks of a run that was ended, and when each was written."""
    return {p.name: p.stat().st_mtime_ns for p in work_folder(folder / FILES[0]).glob("*-*-*-*-*")}


def test_an_interrupted_run_goes_on_and_does_nothing_twice(
    source: Path, tmp_path: Path, network: Any, whole: dict[str, bytes]
) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path, network, half_way(interrupt), workers=2)
    before, coarse = finished(tmp_path), work_folder(tmp_path / FILES[0]) / "coarse.tif"
    assert before and not any((tmp_path / name).exists() for name in FILES)
    built = coarse.stat().st_mtime_ns
    seen: list[tuple[dict[str, int], int]] = []
    report = run(
        source,
        tmp_path,
        network,
        lambda d, t: seen.append((finished(tmp_path), coarse.stat().st_mtime_ns)),
        resume=True,
    )
    assert contents(tmp_path) == whole
    assert all(now.items() >= before.items() and stamp == built for now, stamp in seen), "nothing was made again"
    card, module = network
    assert 0 < report.windows < predict(source, (module, card), chunk=64).windows
    assert report.class_pixels == run(source, tmp_path, network, overwrite=True).class_pixels
    assert not work_folder(tmp_path / FILES[0]).exists()


def test_a_full_disk_leaves_a_run_that_can_be_resumed(
    source: Path, tmp_path: Path, network: Any, whole: dict[str, bytes]
) -> None:
    """No file may grow beyond 4 kB from half way on: writes fail as on a full disk (EFBIG for ENOSPC)."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(RunError, match="cannot write"):
            run(source, tmp_path, network, half_way(lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert finished(tmp_path) and not any((tmp_path / name).exists() for name in FILES)
    run(source, tmp_path, network, resume=True)
    assert contents(tmp_path) == whole


def test_a_source_that_cannot_be_read_half_way_leaves_a_run_that_can_be_resumed(
    source: Path, tmp_path: Path, network: Any, whole: dict[str, bytes]
) -> None:
    bytes_, stamp = source.read_bytes(), source.stat().st_mtime_ns
    with pytest.raises(RunError, match="cannot be read"):
        run(source, tmp_path, network, half_way(lambda: os.truncate(source, len(bytes_) // 3)))
    assert finished(tmp_path) and not any((tmp_path / name).exists() for name in FILES)
    source.write_bytes(bytes_)
    os.utime(source, ns=(stamp, stamp))  # the share is back, the file is what it was
    run(source, tmp_path, network, resume=True)
    assert contents(tmp_path) == whole


def interrupted(source: Path, folder: Path, network: Any) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(source, folder, network, half_way(interrupt))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"overlap": 0.5}, "--overlap was 0.25 and is now 0.5"),
        ({"taper": "linear"}, "--taper was hann and is now linear"),
        ({"chunk": 128}, "--chunk was 64 and is now 128"),
        ({"min_area_m2": 9}, "--min-area was None and is now 9"),
        ({"bounds": (500_000, 4_999_900, 500_100, 5_000_000)}, "--bounds, --aoi"),
    ],
)
def test_another_option_is_refused_by_name(
    source: Path, tmp_path: Path, network: Any, options: dict[str, Any], words: str
) -> None:
    interrupted(source, tmp_path, network)
    kept = finished(tmp_path)
    with pytest.raises(InputError, match=words):
        run(source, tmp_path, network, resume=True, **options)
    assert finished(tmp_path) == kept, "a refusal costs nothing"


def test_another_source_and_another_model_are_refused_by_name(source: Path, tmp_path: Path, network: Any) -> None:
    interrupted(source, tmp_path, network)
    card, module = network
    with pytest.raises(InputError, match="the model was test"):
        run(source, tmp_path, (card.model_copy(update={"version": "2"}), module), resume=True)
    os.utime(source)
    with pytest.raises(InputError, match=r"the source was .*dtm.tif"):
        run(source, tmp_path, network, resume=True)


def test_damaged_chunks_are_done_again(source: Path, tmp_path: Path, network: Any, whole: dict[str, bytes]) -> None:
    interrupted(source, tmp_path, network)
    labels = sorted(work_folder(tmp_path / FILES[0]).glob("labels-*"))
    labels[0].write_bytes(labels[0].read_bytes()[:1000])
    with rasterio.open(labels[1], "r+") as chunk:
        chunk.write(chunk.read() + np.uint8(1))
    run(source, tmp_path, network, resume=True)
    assert contents(tmp_path) == whole


@pytest.mark.parametrize("damage", ["changed", "cut", "gone"])
def test_a_damaged_coarse_grid_is_built_again(
    source: Path, tmp_path: Path, network: Any, whole: dict[str, bytes], damage: str
) -> None:
    interrupted(source, tmp_path, network)
    chunks, grid = finished(tmp_path), work_folder(tmp_path / FILES[0]) / "coarse.tif"
    intact = grid.read_bytes()
    if damage == "changed":  # other numbers in a file that GDAL still opens
        with rasterio.open(grid, "r+") as dataset:
            dataset.write(dataset.read() + 3)
    elif damage == "cut":
        os.truncate(grid, len(intact) // 2)
    else:
        grid.unlink()
    seen: list[bool] = []
    run(
        source,
        tmp_path,
        network,
        lambda d, t: seen.append(grid.read_bytes() == intact and finished(tmp_path).items() >= chunks.items()),
        resume=True,
    )
    assert seen and all(seen), "the grid is as it was, and finished chunks are kept"
    assert contents(tmp_path) == whole


def test_without_resume_a_run_begins_anew_and_with_nothing_to_resume_too(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(80, 90))
    card = threshold_card((300.0,))
    work = work_folder(tmp_path / "a.tif")
    work.mkdir()
    (work / "chunk-0-80-0-90.json").write_text("of a run nobody began")
    prediction = predict(source, (make_model(card), card))
    prediction.write(tmp_path / "a.tif", resume=True)
    with rasterio.open(tmp_path / "a.tif") as made:
        np.testing.assert_array_equal(made.read(1), prediction.labels.values)
    assert not work.exists()
    with pytest.raises(InputError, match="--overwrite"):
        prediction.write(tmp_path / "a.tif", resume=True)


def test_two_runs_cannot_share_an_output(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(80, 90))
    card = threshold_card((300.0,))

    def second(done: int, total: int) -> None:
        with pytest.raises(InputError, match="another run is at work"):
            predict(source, (make_model(card), card)).write(tmp_path / "a.tif")

    predict(source, (make_model(card), card)).write(tmp_path / "a.tif", progress=second)
    assert (tmp_path / "a.tif").exists()


def test_killed_runs_end_as_uninterrupted_ones(tmp_path: Path) -> None:
    """SIGKILL at a few random moments, by the script that does it twenty times."""
    command = [
        sys.executable,
        str(ROOT / "benchmarks" / "kill.py"),
        "--kills",
        "2",
        "--first",
        "0.5",
        "--folder",
        str(tmp_path),
    ]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "2 of 2 identical" in done.stdout
