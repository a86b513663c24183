"""Two dask workers against one: wall seconds of the same prediction, and whether the files are the same.

    python benchmarks/scale.py                                   # 4096 px, SwinV2-T with relays; on idle cores
    python benchmarks/scale.py --side 2048 --workers 1 2 4

Each worker is a process of one thread. Starting the processes, with what they import, is timed apart: it is paid once.
"""

from __future__ import annotations

import argparse
import importlib
import tempfile
import time
from pathlib import Path

import numpy as np
import rasterio
from distributed import Client, LocalCluster

from uhrseg.benchmark.throughput import make_source, relay_model
from uhrseg.engine.predict import predict


def run(source: Path, out: Path, workers: int, chunk: int, trunk: str) -> tuple[float, float, np.ndarray]:
    """Seconds to start the workers, seconds of the prediction, and its class map."""
    started = time.perf_counter()
    with (
        LocalCluster(n_workers=workers, threads_per_worker=1, memory_limit=0, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        client.run(importlib.import_module, "uhrseg.engine.cluster")
        ready = time.perf_counter() - started
        module, card = relay_model(trunk, 3)
        prediction = predict(
            source, (module, card), scheduler=cluster.scheduler_address, chunk=chunk, device="cpu", batch_size=4
        )
        started = time.perf_counter()
        prediction.write(out, overwrite=True)
        seconds = time.perf_counter() - started
    with rasterio.open(out) as raster:
        return ready, seconds, raster.read(1)


def main() -> None:
    """Run with each number of workers and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--side", type=int, default=4096)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--trunk", default="swinv2_t")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    print("| workers | start s | prediction s | speed-up | same class map |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "source.tif"
        make_source(source, options.side)
        first: tuple[float, np.ndarray] | None = None
        for workers in options.workers:
            ready, seconds, labels = run(source, Path(folder) / f"{workers}.tif", workers, options.chunk, options.trunk)
            first = first or (seconds, labels)
            same = "yes" if np.array_equal(first[1], labels) else "NO"
            print(f"| {workers} | {ready:.1f} | {seconds:.1f} | {first[0] / seconds:.2f} | {same} |", flush=True)


if __name__ == "__main__":
    main()
