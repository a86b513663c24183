"""Curves of a training run, drawn from its ``metrics.csv``."""

from __future__ import annotations

import csv
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_curves"]

_LOSSES = ("loss", "local", "global", "consistency", "dice")


def draw_curves(metrics: Path, output: Path) -> Path:
    """Draw losses, validation scores and learning rate over steps from `metrics` into the PNG `output`."""
    with open(metrics, encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    columns = list(rows[0]) if rows else []
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    panels = figure.subplots(1, 3)
    _draw(panels[0], rows, [c for c in columns if c in _LOSSES], "loss (mean of the epoch)")
    _draw(panels[1], rows, [c for c in columns if c.startswith("val_")], "validation")
    _draw(panels[2], rows, [c for c in columns if c == "lr"], "learning rate")
    figure.savefig(output, dpi=120)
    return output


def _draw(axes: Axes, rows: list[dict[str, str]], columns: list[str], title: str) -> None:
    for column in columns:
        points = [(int(row["step"]), float(row[column])) for row in rows if row[column]]
        if points:
            axes.plot(*zip(*points, strict=True), marker=".", label=column.removeprefix("val_"))
    axes.set(title=title, xlabel="step")
    if axes.lines:
        axes.legend(fontsize="small")
