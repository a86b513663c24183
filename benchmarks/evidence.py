"""The runs behind docs/results.md, many at once on one GPU: strategies, relay counts and losses where context decides.

    python benchmarks/evidence.py -o evidence --size long --tables mark,control,relay-count,losses --seeds 1,2,3
    python benchmarks/evidence.py -o evidence --dubai FOLDER --recipe recipes/dubai_full.toml --seeds 42,43,44
    python benchmarks/evidence.py -o evidence --size small --tables control --set train.epochs=32
    python benchmarks/evidence.py -o evidence ... --minutes 9  # no run is started that would end later, or goes on then

Every run is one line of `uhrseg benchmark context` or `uhrseg benchmark dubai --train`, with its row in
``evidence/results.json``; rows that are there are not run again. What differs is speed alone: scenes are loaded once,
in the process that the runs are forked from, and share its memory. Seeds come first, so that tables fill up evenly.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from uhrseg.benchmark import context, datasets, trials
from uhrseg.benchmark.context import Suite
from uhrseg.benchmark.rows import Results, Row, slug
from uhrseg.benchmark.run import write_report
from uhrseg.data import scenes as scenes_module
from uhrseg.data.split import split_rasters
from uhrseg.engine import train as train_module
from uhrseg.recipe import Recipe

FORK = multiprocessing.get_context("fork")


@dataclass(frozen=True)
class Job:
    """One line and seed: `key` in the results, `run` makes the row, `recipe` says what data it needs."""

    key: tuple[str, str, int]
    run: Callable[[Path], Row]
    recipe: Recipe


def context_jobs(suites: Sequence[Suite], seeds: Sequence[int], lines: Sequence[str], folder: Path) -> list[Job]:
    """Lines of the context suite, seed by seed; `lines` chooses among those of the suites that have any of them."""
    jobs = []
    for seed in seeds:
        for suite in suites:
            for line in suite.lines:
                if line in lines or not set(lines) & set(suite.lines):
                    run = functools.partial(suite.row, line, seed)
                    jobs.append(Job((suite.name, line, seed), run, suite.recipe(line, seed, folder)))
    return jobs


def dubai_jobs(recipe: Path, root: Path, seeds: Sequence[int], overrides: Sequence[str]) -> list[Job]:
    """The lines of Table 3 on real scenes."""
    changes = [*overrides, f'data.root="{root}"']
    jobs = []
    for seed in seeds:
        for trial in trials.TABLE_3:
            changed = Recipe.read(recipe, [*trial.changes, *changes, f"seed={seed}"])
            run = functools.partial(datasets.trial_row, "dubai", trial, recipe, changes, seed)
            jobs.append(Job(("dubai", datasets.trial_name(trial), seed), run, changed))
    return jobs


def share_scenes() -> None:
    """Let forked runs find loaded scenes and their statistics in the memory of the process they come from."""
    load, statistics = scenes_module.load_scenes, scenes_module.band_statistics
    loaded: dict[str, Any] = {}

    def shared(rasters: Any, data: Any, factor: Any, how: Any = "average", *_: Any) -> Any:
        key = repr((data.root, factor, how, [r.raster for r in rasters]))
        if key not in loaded:
            found = load(rasters, data, factor, how, None, True)
            loaded[key] = found, statistics(found)
        return loaded[key][0]

    def known(scenes: Any) -> Any:
        return next(stats for found, stats in loaded.values() if found is scenes)

    train_module.load_scenes, train_module.band_statistics = shared, known  # type: ignore[assignment]


def preload(recipe: Recipe) -> None:
    rasters, _ = split_rasters(recipe.data)
    scenes = train_module.load_scenes(rasters, recipe.data, recipe.context_factor, recipe.window.context)
    train_module.band_statistics(scenes)


def child(job: Job, folder: Path) -> None:
    """One run in a process of its own; its row goes to a file, and what it says, errors too, to another."""
    torch.set_num_threads(1)
    name = slug(" ".join(str(part) for part in job.key))
    sys.stdout = sys.stderr = open(folder / "logs" / f"{name}.txt", "w", buffering=1)  # noqa: SIM115
    row = job.run(folder=folder)
    (folder / "rows" / f"{name}.json").write_text(row.model_dump_json())


def run_jobs(jobs: list[Job], results: Results, at_once: int, until: float) -> None:
    """Run jobs, the first first; none is started that would, by the longest so far, end after `until`.

    Those that still run then are ended; begun again, they go on from their checkpoint.
    """
    running: dict[Any, tuple[Job, float]] = {}
    longest, todo = 0.0, list(jobs)
    while todo or running:
        while todo and len(running) < at_once and time.time() + longest < until:
            job = todo.pop(0)
            process = FORK.Process(target=child, args=(job, results.folder))
            process.start()
            running[process] = job, time.time()
        if not running:
            break
        time.sleep(0.2)
        for process in [p for p in running if not p.is_alive()]:
            job, started = running.pop(process)
            took = time.time() - started
            longest = max(longest, took)
            print(f"{took:5.0f} s  exit {process.exitcode}  {job.key}", flush=True)
        if time.time() > until + 20:
            for process in running:
                process.kill()
            break
        collect(results)
    collect(results)
    print(f"{len(todo)} of {len(jobs)} not started", flush=True)


def collect(results: Results) -> None:
    for path in sorted((results.folder / "rows").glob("*.json")):
        results.add(Row.model_validate_json(path.read_text()))
        path.unlink()


def main() -> None:
    """Make scenes, load them, run."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("-o", "--output", type=Path, required=True)
    parser.add_argument("--size", default="long", choices=context.SIZES)
    parser.add_argument("--tables", default="", help="of the context suite, by commas")
    parser.add_argument("--lines", default="", help="of tables that have any of these lines, these only; by semicolons")
    parser.add_argument("--dubai", type=Path, help="folder of the scenes")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/dubai_full.toml"))
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--set", action="append", default=[], help="change every recipe (with --dubai, of it)")
    parser.add_argument("--at-once", type=int, default=8)
    parser.add_argument("--minutes", type=float, default=600.0)
    given = parser.parse_args()
    until = time.time() + 60 * given.minutes
    for name in ("rows", "logs", "scenes"):
        (given.output / name).mkdir(parents=True, exist_ok=True)
    results, seeds = Results(given.output), [int(s) for s in given.seeds.split(",")]
    suites = [Suite(t, given.size, () if given.dubai else tuple(given.set)) for t in given.tables.split(",") if t]
    by_cue = {context.EXPERIMENTS[suite.experiment][0]: suite for suite in suites}
    with ProcessPoolExecutor(len(by_cue) or 1, FORK) as pool:
        list(pool.map(functools.partial(Suite.scenes, folder=given.output), by_cue.values()))
    jobs = context_jobs(suites, seeds, [x for x in given.lines.split(";") if x], given.output)
    if given.dubai:
        jobs += dubai_jobs(given.recipe, given.dubai, seeds, given.set)
    jobs = [job for job in jobs if job.key not in results]
    share_scenes()
    started = time.time()
    for job in jobs:
        preload(job.recipe)
    print(f"scenes loaded in {time.time() - started:.0f} s; {len(jobs)} runs", flush=True)
    run_jobs(jobs, results, given.at_once, until)
    write_report(results)
    print(json.dumps({"rows": len(results.rows)}), flush=True)


if __name__ == "__main__":
    os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")  # forked processes must find CUDA untouched
    main()
