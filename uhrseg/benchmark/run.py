"""Run suites, keep their rows, draw the page."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from uhrseg.benchmark.charts import charts, gallery
from uhrseg.benchmark.complexity import complexity
from uhrseg.benchmark.context import EXPERIMENTS, SIZES, Suite, context
from uhrseg.benchmark.datasets import score_folders, train_trials
from uhrseg.benchmark.paired import comparisons
from uhrseg.benchmark.rows import Results, Row
from uhrseg.benchmark.simulated import simulated
from uhrseg.benchmark.tables import suite_notes, suite_origins, suite_table
from uhrseg.benchmark.throughput import throughput
from uhrseg.benchmark.trials import DATASETS
from uhrseg.errors import InputError
from uhrseg.recipe import Recipe
from uhrseg.report.page import Section, write_page

__all__ = ["SUITES", "OnData", "run_suites", "write_report"]

SUITES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "complexity": lambda quick: complexity(),
    "throughput": lambda quick: throughput(1024, 512) if quick else throughput(),
    "simulated": lambda quick: simulated(512, 1) if quick else simulated(),
}
"""Suites that need no data; the argument asks for a small run."""

TITLES = {
    "throughput": "Throughput against the model alone, a plain loop and MONAI",
    "simulated": "Shipped models on simulated parcels",
}


@dataclass(frozen=True)
class OnData:
    """What a suite on a data set needs: its folder, the recipe, and trained folders or the wish to train."""

    root: Path | None = None
    recipe: Path | None = None
    models: tuple[str, ...] = ()
    train: bool = False
    seeds: tuple[int, ...] = (42, 43, 44)
    tables: tuple[str, ...] = ()
    overrides: tuple[str, ...] = ()
    size: str = "small"  # of the context suite

    def rows(self, suite: str, results: Results, quick: bool) -> Iterator[Row]:
        """The rows of one data set. Raises `InputError` when there is nothing to do or the recipe is missing."""
        if not self.models and not self.train:
            raise InputError(f"{suite}: name trained folders with --models, or train the paper's tables with --train")
        recipe = self.recipe or Path("recipes") / f"{suite}.toml"
        if not recipe.is_file():
            raise InputError(f"{suite}: there is no {recipe} here: name the recipe with --recipe")
        overrides = [*self.overrides, *([] if self.root is None else [f'data.root="{self.root}"'])]
        yield from score_folders(suite, Recipe.read(recipe, overrides), self.models, results.folder / "pictures")
        if self.train:
            yield from train_trials(
                suite, recipe, overrides, self.seeds, results, tables=self.tables, fast_dev_run=quick
            )


def run_suites(
    names: Sequence[str],
    folder: Path,
    quick: bool = False,
    on_data: OnData | None = None,
    on_row: Callable[[Row], None] = lambda row: None,
) -> Results:
    """Run the named suites (none: all that need no data), keeping every row in `folder` as it comes.

    quick: small runs that show that everything works, no numbers to quote.
    Raises `InputError` for an unknown suite.
    """
    known = [*SUITES, "context", *DATASETS]
    for name in names:
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            advice = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
            raise InputError(f"no suite is called {name!r}: {advice}")
    results = Results(folder)
    for name in names or SUITES:
        for row in _rows(name, results, quick, on_data or OnData()):
            results.add(row)
            on_row(row)
    write_report(results)
    return results


def _rows(name: str, results: Results, quick: bool, on_data: OnData) -> Iterator[Row]:
    if name in SUITES:
        return SUITES[name](quick)
    if name == "context":
        size = "quick" if quick else _size(on_data.size)
        suites = [Suite(table, size, on_data.overrides) for table in _experiments(on_data.tables)]
        return context(suites, on_data.seeds, results)
    return on_data.rows(name, results, quick)


def _size(name: str) -> str:
    if name not in SIZES:
        raise InputError(f"--size {name!r} is not known: choose from {', '.join(SIZES)}")
    return name


def _experiments(wanted: Sequence[str]) -> list[str]:
    """The experiments asked for with --table; all without."""
    for name in wanted:
        if name not in EXPERIMENTS:
            raise InputError(f"--table {name!r} is no part of the context suite: choose from {', '.join(EXPERIMENTS)}")
    return list(wanted or EXPERIMENTS)


def write_report(results: Results) -> Path:
    """``index.html`` from all rows in the folder, older ones included."""
    sections = []
    for suite in dict.fromkeys(row.suite for row in results.rows):
        rows = [row for row in results.rows if row.suite == suite]
        notes = [*comparisons(rows), *suite_notes(rows)]
        pictures = gallery(rows, results.folder)
        title, origins = TITLES.get(suite, suite), suite_origins(rows)
        sections.append(Section(title, notes, suite_table(rows), charts(rows), pictures, origins))
    return write_page(results.folder / "index.html", "uhrseg benchmark", sections)
