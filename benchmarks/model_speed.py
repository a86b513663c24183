"""Forward pass with relays (two windows) against timm's own network on one window: ratios of time.

    python benchmarks/model_speed.py                                  # both networks and precisions, 1 thread and all
    python benchmarks/model_speed.py --model swinv2_s --precision bf16 --threads 1 --pairs 5

Eval mode, batch 8, 256 px, 3 bands, 19 classes. The two are timed in turn on the same input; printed are the medians
of their seconds and of the ratios of each pair, in wall time and in CPU time (which other programs disturb less).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from statistics import median

import timm
import torch

from uhrseg.models import build

THEIRS = {"swinv2_s": "swinv2_small_window8_256", "vit_s": "vit_small_patch16_224"}
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}
SIZE, BATCH = 256, 8
Cost = tuple[float, float]


def cost(run: Callable[[], object]) -> Cost:
    """Wall and CPU seconds of one call."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


@torch.inference_mode()
def compare(name: str, precision: str, threads: int, pairs: int) -> tuple[list[Cost], list[Cost]]:
    """Costs of (ours, theirs), pair by pair, after one call of each to warm up."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    dtype = PRECISIONS[precision]
    ours = build(name, bands=3, classes=19, size=SIZE).eval()
    theirs = timm.create_model(THEIRS[name], img_size=SIZE, num_classes=19).eval()
    local, context = torch.randn(2, BATCH, 3, SIZE, SIZE)

    def run(call: Callable[[], object]) -> Callable[[], object]:
        def inner() -> object:
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                return call()

        return inner

    with_relays, plain = run(lambda: ours(local, context)), run(lambda: theirs(local))
    with_relays(), plain()
    both = [(cost(with_relays), cost(plain)) for _ in range(pairs)]
    return [a for a, _ in both], [b for _, b in both]


def main() -> None:
    """Print one line per network, precision and number of threads."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", choices=THEIRS, action="append")
    parser.add_argument("--precision", choices=PRECISIONS, action="append")
    parser.add_argument("--threads", type=int, action="append")
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    print(f"torch {torch.__version__}, timm {timm.__version__}, batch {BATCH}, {SIZE} px, {given.pairs} pairs")
    print(f"{'':10}{'precision':10}{'threads':>8}{'relays s':>10}{'timm s':>8}{'wall ratio':>12}{'CPU ratio':>11}")
    for name in given.model or THEIRS:
        for precision in given.precision or PRECISIONS:
            for threads in given.threads or sorted({1, len(os.sched_getaffinity(0))}):
                ours, theirs = compare(name, precision, threads, given.pairs)
                wall, cpu = (median(a[i] / b[i] for a, b in zip(ours, theirs, strict=True)) for i in (0, 1))
                seconds = f"{median(a[0] for a in ours):10.2f}{median(b[0] for b in theirs):8.2f}"
                print(f"{name:10}{precision:10}{threads:8}{seconds}{wall:12.2f}{cpu:11.2f}", flush=True)


if __name__ == "__main__":
    main()
