"""Charts of a suite's rows: accuracy, what it costs, what the context adds, who gains, how it was learned."""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterator, Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from uhrseg.benchmark.paired import plain_name, reference
from uhrseg.benchmark.rows import Row
from uhrseg.benchmark.score import MEMORY

__all__ = ["charts", "gains", "gallery"]

SCORE = "mIoU"
_NUMBERED = {"context": re.compile(r"context (\d+) px"), "relays": re.compile(r"(\d+) relays?\b")}
_AXES = {"context": "side of the context window, px", "relays": "relay tokens"}
_MARKERS = "osD^v<>P"
_WITH_RELAYS = ("relays", "relay tokens", "4 relays")


def charts(rows: Sequence[Row]) -> list[Figure]:
    """The figures that the rows of one suite allow; none for a single line."""
    scored = [row for row in rows if row.metrics.get(SCORE) is not None]
    if len(_names(scored)) < 2:
        return []
    made = [_accuracy(scored), _against_memory(scored), *_against_number(scored), *_gains(scored), _curves(scored)]
    return [figure for figure in made if figure is not None]


def gallery(rows: Sequence[Row], folder: Path) -> list[tuple[str, Path]]:
    """Pictures of one seed: image and labels once, then each line's prediction, then where its relays look."""
    seen: dict[str, Path] = {}
    for kind in ("image", "labels", "prediction", "attention"):
        for row in rows:
            caption = kind if kind in ("image", "labels") else f"{plain_name(row)}: {kind}"
            if kind in row.pictures and caption not in seen and (folder / row.pictures[kind]).exists():
                seen[caption] = folder / row.pictures[kind]
    return list(seen.items())


def gains(rows: Sequence[Row]) -> Iterator[tuple[str, dict[str, float]]]:
    """Relative IoU error improvement per class, (IoU - base) / (1 - base), of lines with relays over those without.

    Perron et al. 2026, section 4.3. Means over seeds; a class that is absent from either is left out.
    """
    names = _names(rows)
    base = reference(rows)
    pairs = [(name, name.removesuffix(" + relays")) for name in names if name.endswith(" + relays")]
    pairs += [(n, base) for n in names if base and n.rpartition(": ")[2].lower() in _WITH_RELAYS]
    for name, without in pairs:
        if without in names:
            ours, theirs = _class_means(rows, name), _class_means(rows, without)
            both = [c for c in ours if c in theirs and theirs[c] < 100]
            yield f"{name} over {without}", {c: 100 * (ours[c] - theirs[c]) / (100 - theirs[c]) for c in both}


def _accuracy(rows: Sequence[Row]) -> Figure:
    """One line per name: a point per seed, a bar at their mean."""
    names = _names(rows)
    figure, axes = _canvas(0.45 * len(names) + 1.2)
    for y, name in enumerate(names):
        values = _values(rows, name, SCORE)
        axes.barh(y, statistics.fmean(values), height=0.6, color="C0", alpha=0.35)
        axes.plot(values, [y] * len(values), "o", color="C0", markersize=5)
    axes.set_yticks(range(len(names)), names)
    axes.invert_yaxis()
    axes.set(xlabel="mIoU, % (points: seeds; bars: means)", title="Accuracy")
    return figure


def _against_memory(rows: Sequence[Row]) -> Figure | None:
    """The paper's Figure 5."""
    names = [name for name in _names(rows) if _values(rows, name, MEMORY)]
    if len(names) < 2:
        return None
    figure, axes = _canvas(4.0)
    for i, name in enumerate(names):
        memory, score = (statistics.fmean(_values(rows, name, key)) for key in (MEMORY, SCORE))
        axes.plot(memory, score, _MARKERS[i % len(_MARKERS)], markersize=8, label=name.rpartition(": ")[2])
    axes.set(xlabel=MEMORY, ylabel="mIoU, %", title="Accuracy against memory of a training step", xlim=(0, None))
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


def _against_number(rows: Sequence[Row]) -> Iterator[Figure]:
    """The paper's Figures 6 and 7, where the lines' names hold the number."""
    for what, pattern in _NUMBERED.items():
        found = {name: int(match[1]) for name in _names(rows) if (match := pattern.search(name))}
        if len(found) < 2:
            continue
        figure, axes = _canvas(3.6)
        names = sorted(found, key=found.__getitem__)
        values = [_values(rows, name, SCORE) for name in names]
        means, spread = [statistics.fmean(v) for v in values], [_deviation(v) for v in values]
        axes.errorbar([found[name] for name in names], means, spread, marker="o", capsize=3)
        axes.set(xlabel=_AXES[what], ylabel="mIoU, % (bars: deviation over seeds)", title=f"Accuracy against {what}")
        yield figure


def _gains(rows: Sequence[Row]) -> Iterator[Figure]:
    """The paper's question which objects benefit most."""
    for title, values in gains(rows):
        figure, axes = _canvas(0.35 * len(values) + 1.2)
        classes = sorted(values, key=values.__getitem__)
        axes.barh(classes, [values[c] for c in classes], color=["C2" if values[c] >= 0 else "C3" for c in classes])
        axes.axvline(0, color="0.4", linewidth=0.8)
        axes.set(xlabel="share of the IoU error that is gone, %", title=title)
        yield figure


def _curves(rows: Sequence[Row]) -> Figure | None:
    """Training loss of each line, its first seed."""
    first = {name: next(row for row in rows if row.name == name) for name in _names(rows)}
    drawn = {name: row.curve for name, row in first.items() if row.curve}
    if not drawn:
        return None
    figure, axes = _canvas(4.0)
    for name, points in drawn.items():
        axes.plot(*zip(*points, strict=True), label=name.rpartition(": ")[2])
    axes.set(xlabel="optimiser step", ylabel="local loss, mean of an epoch", yscale="log", title="Training, first seed")
    axes.legend(fontsize=8)
    return figure


def _canvas(height: float) -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8, height), layout="constrained")
    axes: Axes = figure.subplots()
    axes.grid(alpha=0.3)
    return figure, axes


def _names(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.name for row in rows))


def _values(rows: Sequence[Row], name: str, metric: str) -> list[float]:
    return [v for row in rows if row.name == name and (v := row.metrics.get(metric)) is not None]


def _class_means(rows: Sequence[Row], name: str) -> dict[str, float]:
    keys = dict.fromkeys(key for row in rows if row.name == name for key in row.metrics if key.startswith("IoU "))
    values: dict[str, list[float]] = {key: _values(rows, name, key) for key in keys}
    return {key.removeprefix("IoU "): statistics.fmean(v) for key, v in values.items() if v}


def _deviation(values: Sequence[float]) -> float:
    return statistics.stdev(values) if len(values) > 1 else 0.0
