"""Run suites, keep their rows, draw the page."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from uhrseg.benchmark.rows import Results, Row
from uhrseg.benchmark.simulated import simulated
from uhrseg.benchmark.tables import suite_notes, suite_table
from uhrseg.errors import InputError
from uhrseg.report.page import Section, write_page

__all__ = ["SUITES", "run_suites", "write_report"]

SUITES: dict[str, Callable[[bool], Iterator[Row]]] = {
    "simulated": lambda quick: simulated(512, 1) if quick else simulated(),
}
"""Suites that need no data."""

TITLES = {
    "complexity": "Parameters and multiply-adds beside the papers",
    "throughput": "Throughput against the model alone, a plain loop and MONAI",
    "simulated": "Shipped models on simulated parcels",
}


def run_suites(
    names: Sequence[str], folder: Path, quick: bool = False, on_row: Callable[[Row], None] = lambda row: None
) -> Results:
    """Run the named suites (none: all), keeping every row in `folder` as it comes.

    quick: small runs that show that everything works, no numbers to quote.
    Raises `InputError` for an unknown suite.
    """
    for name in names:
        if name not in SUITES:
            near = difflib.get_close_matches(name, SUITES, 1)
            raise InputError(f"no suite is called {name!r}: {'did you mean ' + near[0] if near else ', '.join(SUITES)}")
    results = Results(folder)
    for name in names or SUITES:
        for row in SUITES[name](quick):
            results.add(row)
            on_row(row)
    write_report(results)
    return results


def write_report(results: Results) -> Path:
    """``index.html`` from all rows in the folder, older ones included."""
    sections = []
    for suite in dict.fromkeys(row.suite for row in results.rows):
        rows = [row for row in results.rows if row.suite == suite]
        sections.append(Section(TITLES.get(suite, suite), suite_notes(rows), suite_table(rows)))
    return write_page(results.folder / "index.html", "uhrseg benchmark", sections)
