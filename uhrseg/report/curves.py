"""Curves of a training run, drawn from its ``metrics.csv`` and, where it is there, ``log.jsonl``."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

__all__ = ["draw_curves"]

_LOSSES = ("loss", "local", "global", "consistency", "auxiliary", "dice")
_FAINT = 0.2

Points = tuple[Sequence[float], Sequence[float]]


def draw_curves(metrics: Path, output: Path) -> Path:
    """Draw losses, validation IoU, rate and speed over optimiser steps from `metrics` into the PNG `output`.

    Lines are means of epochs; every single step of the ``log.jsonl`` beside `metrics` lies faintly below the loss.
    """
    rows, steps = _rows(metrics), _steps(metrics.with_name("log.jsonl"))
    figure = Figure(figsize=(12, 7), layout="constrained")
    loss, scores, rate, speed = figure.subplots(2, 2).flat
    if steps:
        loss.plot(*_points(steps, "loss"), color="C0", alpha=_FAINT, linewidth=0.8)
    _draw(loss, rows, [c for c in _LOSSES if _varies(rows, c)], "loss, mean of the epoch")
    _logarithmic(loss)
    _draw_scores(scores, rows)
    rate.plot(*_points(steps or rows, "lr"), color="C0")
    rate.set(title="learning rate", xlabel="optimiser step", ylim=(0, None))
    _draw_speed(speed, rows)
    for axes in (loss, scores, rate, speed):
        axes.grid(alpha=0.3)
    figure.savefig(output, dpi=110)
    return output


def _rows(metrics: Path) -> list[dict[str, float | None]]:
    with open(metrics, encoding="utf-8", newline="") as file:
        return [{k: float(v) if v else None for k, v in row.items()} for row in csv.DictReader(file)]


def _steps(log: Path) -> list[dict[str, float | None]]:
    if not log.exists():
        return []
    return [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]


def _points(records: Sequence[dict[str, float | None]], column: str) -> Points:
    found = [(r["step"] or 0.0, value) for r in records if (value := r.get(column)) is not None]
    return [x for x, _ in found], [y for _, y in found]


def _varies(rows: Sequence[dict[str, float | None]], column: str) -> bool:
    return any(row.get(column) for row in rows)


def _draw(axes: Axes, rows: Sequence[dict[str, float | None]], columns: Sequence[str], title: str) -> None:
    for column in columns:
        axes.plot(*_points(rows, column), marker=".", label=column)
    axes.set(title=title, xlabel="optimiser step")
    if columns:
        axes.legend(fontsize="small")


def _logarithmic(axes: Axes) -> None:
    """A logarithmic axis where values span more than a factor of ten."""
    values = np.concatenate([np.asarray(line.get_ydata(), float) for line in axes.lines] or [np.empty(0)])
    values = values[values > 0]
    if values.size and values.max() > 10 * values.min():
        axes.set_yscale("log")


def _draw_scores(axes: Axes, rows: Sequence[dict[str, float | None]]) -> None:
    """Each class thin, the mean thick, the best validation marked."""
    for column in (c for c in (rows[0] if rows else {}) if c.startswith("val_iou_")):
        axes.plot(*_points(rows, column), marker=".", linewidth=1, label=column.removeprefix("val_iou_"))
    steps, means = _points(rows, "val_miou")
    axes.set(title="validation IoU, whole scenes", xlabel="optimiser step", ylim=(0, 1))
    if not means:
        axes.text(0.5, 0.5, "no validation", transform=axes.transAxes, ha="center", color="0.5")
        return
    best = int(np.argmax(means))
    axes.plot(steps, means, color="black", marker="o", linewidth=2.5, label="mean")
    axes.plot(steps[best], means[best], "*", color="gold", markeredgecolor="black", markersize=16, zorder=3)
    axes.annotate(
        f"{means[best]:.3f}", (steps[best], means[best]), (0, 9), textcoords="offset points", fontsize=9, ha="center"
    )
    axes.legend(fontsize="small", ncols=2)


def _draw_speed(axes: Axes, rows: Sequence[dict[str, float | None]]) -> None:
    axes.plot(*_points(rows, "samples_per_s"), marker=".", color="C0")
    axes.set(title="speed", xlabel="optimiser step", ylim=(0, None))
    axes.set_ylabel("samples / s", color="C0")
    wait = axes.twinx()
    steps, shares = _points(rows, "data_wait")
    wait.plot(steps, [100 * share for share in shares], marker=".", color="C3")
    wait.set_ylabel("waiting for data, %", color="C3")
    wait.set_ylim(0, 100)
