"""Two dask workers against one: wall seconds of the same prediction, and whether the files are the same.

    python benchmarks/scale.py                                   # 4096 px, SwinV2-T with relays; on idle cores
    python benchmarks/scale.py --side 2048 --workers 1 2 4

Each worker is a process of one thread. Starting the processes, with what they import, is timed apart: it is paid once.
Beside it, what the machine gives: the bare model in as many processes at once, which share nothing but memory and host.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
import torch
from distributed import Client, LocalCluster

from uhrseg.benchmark.throughput import make_source, relay_model
from uhrseg.engine.device import Runner, resolve_precision
from uhrseg.engine.predict import predict

_CALLS = 30  # of the bare model: as long as a few chunks


def bare(trunk: str, calls: int) -> float:
    """Seconds for `calls` batches of four window pairs, after one that is not counted; run on a worker."""
    cpu, batch = torch.device("cpu"), torch.randn(4, 3, 256, 256)
    runner = Runner(*relay_model(trunk, 3), cpu, resolve_precision("auto", cpu), len(batch))
    with torch.inference_mode(), runner.autocast():
        runner.model(batch, batch, False)
        started = time.perf_counter()
        for _ in range(calls):
            runner.model(batch, batch, False)
    return time.perf_counter() - started


def run(source: Path, out: Path, workers: int, chunk: int, trunk: str) -> tuple[float, float, float, np.ndarray]:
    """Seconds to start the workers, of the bare model in each of them at once, of the prediction; and its class map."""
    started = time.perf_counter()
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(importlib.import_module, "uhrseg.engine.cluster")
        ready = time.perf_counter() - started
        alone = max(client.run(bare, trunk, _CALLS).values())
        module, card = relay_model(trunk, 3)
        prediction = predict(
            source, (module, card), scheduler=cluster.scheduler_address, chunk=chunk, device="cpu", batch_size=4
        )
        started = time.perf_counter()
        prediction.write(out, overwrite=True)
        seconds = time.perf_counter() - started
    with rasterio.open(out) as raster:
        return ready, alone, seconds, raster.read(1)


def main() -> None:
    """Run with each number of workers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--trunk", default="swinv2_t")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeat", type=int, default=1, help="one number of workers after the other, so many times")
    options = parser.parse_args()
    print("| workers | start s | bare model s | its speed-up | prediction s | speed-up | same class map |")
    print("|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.tif"
        make_source(source, options.side)
        first: tuple[float, float, np.ndarray] | None = None
        for _ in range(options.repeat):
            for workers in options.workers:
                out = Path(folder) / f"{workers}.tif"
                ready, alone, seconds, labels = run(source, out, workers, options.chunk, options.trunk)
                if workers == options.workers[0]:
                    first = (alone, seconds, labels)
                assert first is not None
                same = "yes" if np.array_equal(first[2], labels) else "NO"
                share = workers / options.workers[0]
                print(
                    f"| {workers} | {ready:.1f} | {alone:.1f} | {share * first[0] / alone:.2f} | {seconds:.1f} | "
                    f"{first[1] / seconds:.2f} | {same} |",
                    flush=True,
                )


if __name__ == "__main__":
    main()
