"""Kill predictions with SIGKILL at random moments, resume them, and compare with a run that nobody killed.

    python benchmarks/kill.py                       # two chunks at work at a time in one process
    python benchmarks/kill.py --scheduler local:2   # the process that is killed has two workers

Every run is a process of its own. Exits with 1 unless all outputs are identical and no finished chunk was done again.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import geopandas
import numpy as np
import rasterio
import torch
from rasterio.transform import from_origin

from uhrseg import models
from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec, sha256_of
from uhrseg.engine.journal import work_folder

SIDE, CLASSES = 240, 4
ARCHITECTURE = {
    "trunk": "swinv2_t", "embed_dim": 16, "depths": [1, 1], "heads": [2, 2], "window": 8, "head": "upernet",
    "head_channels": 16, "strategy": "relays", "relays": 2,
}  # fmt: skip
OUTPUTS = ("map.tif", "shares.tif", "all.geojson", "all.gpkg")


def make_source(path: Path) -> None:
    """A raster of smooth noise."""
    y, x = np.mgrid[:SIDE, :SIDE]
    noise = np.random.default_rng(0).normal(0, 0.1, (SIDE, SIDE))
    values = (np.sin(x / 13) + np.cos(y / 17) + noise).astype(np.float32)
    profile = {"driver": "GTiff", "width": SIDE, "height": SIDE, "count": 1, "dtype": "float32", "crs": "EPSG:32633"}
    with rasterio.open(path, "w", **profile, transform=from_origin(5e5, 5e6, 1, 1)) as out:
        out.write(values, 1)


def make_model(folder: Path) -> None:
    """A small network with random weights."""
    torch.manual_seed(0)
    folder.mkdir()
    module = models.build(**ARCHITECTURE, bands=1, classes=CLASSES, size=64)
    models.save_weights(module, folder / "model.safetensors")
    classes = [ClassSpec(id=i, name=f"class{i}", color=f"#{i * 30:02x}80ff") for i in range(CLASSES)]
    ModelCard.model_validate(
        {
            "name": "kill", "architecture": ARCHITECTURE, "class": classes, "background": 0,
            "window": WindowSpec(size=64, context_factor=4, overlap=0.25),
            "input": InputSpec(band=(BandSpec(name="a"),)),
            "weights": WeightsSpec(sha256=sha256_of(folder / "model.safetensors")),
        }
    ).write(folder)  # fmt: skip


def start(folder: Path, out: Path, resume: bool, scheduler: str | None) -> int:
    """Predict in a process of its own; its id."""
    words = [sys.executable, "-m", "uhrseg", "predict", folder / "source.tif", "--model", folder / "model", "--quiet"]
    words += ["--scheduler", scheduler] if scheduler else ["--workers", 2]
    words += ["--chunk", 80, "--precision", "fp32", "--probabilities", out / "shares.tif"]
    words += [word for name in OUTPUTS if name != "shares.tif" for word in ("-o", out / name)]
    words += ["--resume"] if resume else []
    return os.posix_spawn(sys.executable, [str(word) for word in words], os.environ)


def finish(child: int) -> None:
    """Wait for a run that must end well."""
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) != 0:
        raise SystemExit("a run failed")


def finished(out: Path) -> dict[str, int]:
    """When each finished chunk was written."""
    return {p.name: p.stat().st_mtime_ns for p in work_folder(out / "map.tif").glob("chunk-*.json")}


def same(one: Path, other: Path) -> bool:
    """Whether all outputs are equal: byte by byte, but for the GeoPackage, which holds the time of writing."""
    plain = all((one / n).read_bytes() == (other / n).read_bytes() for n in OUTPUTS if not n.endswith(".gpkg"))
    tables = [geopandas.read_file(folder / "all.gpkg", layer="all") for folder in (one, other)]
    return plain and tables[0].equals(tables[1])


def has_ended(child: int) -> bool:
    """Whether a run is over; nothing is taken from it, `finish` can still ask how it ended."""
    return os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def killed_in_time(folder: Path, out: Path, moment: float, scheduler: str | None) -> float | None:
    """Kill a run after `moment` seconds: None, or the seconds it took if it was over before."""
    out.mkdir()
    started, child = time.perf_counter(), start(folder, out, False, scheduler)
    while time.perf_counter() - started < moment:
        if has_ended(child):
            finish(child)
            shutil.rmtree(out)
            return time.perf_counter() - started
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def resume_and_compare(folder: Path, whole: Path, out: Path, moment: float, scheduler: str | None) -> bool:
    """Resume a run that was killed, say what happened; whether all is as it should be."""
    before = finished(out)
    if all((out / name).exists() for name in OUTPUTS) and not work_folder(out / "map.tif").exists():
        state, kept = "was done", True
    else:
        kept = resumed_keeping(folder, out, before, scheduler)
        state = f"had {len(before)} chunks"
    equal = same(whole, out) and not work_folder(out / "map.tif").exists()
    print(
        f"killed after {moment:.2f} s: {state}, {'identical' if equal else 'DIFFERENT'}, {'kept' if kept else 'REDONE'}"
    )
    shutil.rmtree(out)
    return equal and kept


def resumed_keeping(folder: Path, out: Path, before: dict[str, int], scheduler: str | None) -> bool:
    """Resume; whether the chunks of `before` were left alone as long as they could be seen."""
    child, kept = start(folder, out, True, scheduler), True
    while not has_ended(child):
        with contextlib.suppress(FileNotFoundError):  # the run is done and the folder goes
            kept &= all(finished(out).get(name, stamp) == stamp for name, stamp in before.items())
        time.sleep(0.01)
    finish(child)
    return kept


def main() -> None:
    """Make source and model, run once undisturbed, then kill."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--first", type=float, default=0.1, help="earliest kill, as a share of an undisturbed run")
    parser.add_argument("--scheduler", help="run chunks on dask workers, e.g. local:2")
    parser.add_argument("--folder", type=Path, help="where to work [a temporary folder]")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        folder = Path(name)
        make_source(folder / "source.tif")
        make_model(folder / "model")
        (folder / "whole").mkdir()
        started = time.perf_counter()
        finish(start(folder, folder / "whole", False, options.scheduler))
        seconds = time.perf_counter() - started
        draw, good = random.Random(options.seed), 0
        for _ in range(options.kills):
            moment = draw.uniform(options.first, 1) * seconds
            while (took := killed_in_time(folder, folder / "out", moment, options.scheduler)) is not None:
                seconds = min(seconds, took)  # the machine has become faster: a moment that comes in time
                moment = draw.uniform(options.first, 1) * seconds
            good += resume_and_compare(folder, folder / "whole", folder / "out", moment, options.scheduler)
    print(f"{good} of {options.kills} identical")
    raise SystemExit(good != options.kills)


if __name__ == "__main__":
    main()
