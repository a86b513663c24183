"""Training throughput against the same model stepping on one batch that lies in memory, in one run.

    python benchmarks/training.py recipes/lidar_demo.toml --set data.root=FOLDER --steps 30

Both sides take the same optimiser steps (forward, backward, update, numbers read back); one gets its batches from the
loader. Steps of the two alternate in blocks, so that a busy machine slows both alike. Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from itertools import repeat
from pathlib import Path
from statistics import median

import torch

from uhrseg.data.chips import Chip, Chips
from uhrseg.data.scenes import band_statistics, load_scenes
from uhrseg.data.split import split_rasters
from uhrseg.engine import train as loop
from uhrseg.engine.device import resolve_device, resolve_precision
from uhrseg.engine.step import Step
from uhrseg.engine.trained import model_card
from uhrseg.recipe import Recipe


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipe", type=Path)
    parser.add_argument("--set", action="append", default=[], dest="overrides", metavar="TABLE.KEY=VALUE")
    parser.add_argument("--steps", type=int, default=30, help="steps of each side")
    parser.add_argument("--block", type=int, default=5, help="steps of one side before it is the other's turn")
    parser.add_argument("--warmup", type=int, default=3, help="steps before the clock starts")
    options = parser.parse_args()
    print(json.dumps(measure(Recipe.read(options.recipe, options.overrides), options), indent=2))


def measure(recipe: Recipe, options: argparse.Namespace) -> dict[str, object]:
    """Samples per second of both sides, and their ratio."""
    device = resolve_device(recipe.train.device)
    precision = resolve_precision(recipe.train.precision, device)
    fabric = loop._launch(device, precision)
    with tempfile.TemporaryDirectory() as scratch:
        rasters, _ = split_rasters(recipe.data)
        scenes = load_scenes(rasters, recipe.data, recipe.context_factor, recipe.window.context, Path(scratch))
        mean, std = band_statistics(scenes)
        chips = Chips(
            scenes, recipe.train, size=recipe.window.size, factor=recipe.context_factor, legend=recipe.data.legend,
            seed=recipe.seed, std=std,
        )  # fmt: skip
        state = loop._new_state(recipe, fabric)
        network = torch.compile(state.module) if recipe.train.compile else state.module
        model, optimizer = fabric.setup(network, state.optimizer)
        model.train()
        step = Step(fabric, recipe, model, optimizer, model_card(recipe, mean, std))
        batches = loop._batches(fabric, recipe, chips, 0, options.warmup + options.steps)
        fixed = fabric.to_device(next(batches))
        run(step, repeat(fixed), options.warmup)
        fed, still = [], []
        for _ in range(0, options.steps, options.block):
            still += run(step, repeat(fixed), options.block)
            fed += run(step, batches, options.block)
    samples = recipe.train.batch_size
    return {
        "recipe": recipe.name,
        "device": torch.cuda.get_device_name() if device.type == "cuda" else f"cpu, {torch.get_num_threads()} threads",
        "precision": precision,
        "workers": recipe.train.workers,
        "steps": len(fed),
        "samples_per_s_fixed_batch": samples / median(still),
        "samples_per_s_training": samples / median(fed),
        "ratio": sum(still) / sum(fed),
    }


def run(step: Step, batches: Iterator[Chip], steps: int) -> list[float]:
    """Seconds of each of `steps` optimiser steps, getting the batch included."""
    seconds = []
    for k in range(steps):
        started = time.perf_counter()
        step.gradients([step.fabric.to_device(next(batches))], k)  # reads numbers back, so it waits for the device
        step.update()
        seconds.append(time.perf_counter() - started)
    return seconds


if __name__ == "__main__":
    main()
