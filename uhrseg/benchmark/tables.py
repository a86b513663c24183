"""Rows as tables: numbers of several seeds become mean and spread, the paper's number stands beside ours."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from uhrseg.benchmark.rows import Row
from uhrseg.report.page import Table

__all__ = ["suite_notes", "suite_origins", "suite_table"]


def suite_table(rows: Sequence[Row]) -> Table:
    """One line per name, one column per metric (with the paper's number where there is one) and the seeds, if any."""
    metrics = list(dict.fromkeys(metric for row in rows for metric in row.metrics))
    known = {metric for row in rows for metric in row.paper}
    header = ["", *(column for m in metrics for column in ((m, "paper", "diff") if m in known else (m,)))]
    seeded = any(row.seed is not None for row in rows)
    lines = []
    for name in dict.fromkeys(row.name for row in rows):
        same = [row for row in rows if row.name == name]
        cells = [cell for metric in metrics for cell in _cells(same, metric, metric in known)]
        lines.append([name, *cells, *([_seeds(same)] if seeded else [])])
    return Table([*header, *(["seeds"] if seeded else [])], lines)


def _cells(rows: Sequence[Row], metric: str, with_paper: bool) -> list[str]:
    values = [value for row in rows if (value := row.metrics.get(metric)) is not None]
    ours = _spread(values)
    if not with_paper:
        return [ours]
    paper = rows[0].paper.get(metric)
    if paper is None or not values:
        return [ours, "", ""]
    mean = statistics.fmean(values)
    return [ours, f"{paper:g}", f"{(mean - paper) / paper:+.1%}"]


def _spread(values: Sequence[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    digits = 3 if abs(mean) < 10 else 2 if abs(mean) < 100 else 0
    text = f"{mean:.{digits}f}"
    return text if len(values) < 2 else f"{text} ± {statistics.stdev(values):.{digits}f}"


def _seeds(rows: Sequence[Row]) -> str:
    return ", ".join(str(row.seed) for row in rows if row.seed is not None)


def suite_notes(rows: Sequence[Row]) -> list[str]:
    """Rules and notes of a suite, each once."""
    texts = [f"mIoU: {row.rule}" for row in rows if row.rule]
    texts += [f"{row.name}: {row.note}" for row in rows if row.note]
    return list(dict.fromkeys(texts))


def suite_origins(rows: Sequence[Row]) -> list[str]:
    """What the numbers rest on, each once."""
    texts = []
    for row in rows:
        p = row.provenance
        parts = [f"uhrseg {p.version}, torch {p.torch}", p.hardware, p.precision or ""]
        parts += [f"model {p.model_sha256[:12]}"] if p.model_sha256 else []
        parts += [f"recipe {p.recipe_sha256[:12]}"] if p.recipe_sha256 else []
        parts += [f"data {p.data_fingerprint[:12]}"] if p.data_fingerprint else []
        texts.append("; ".join(part for part in parts if part))
    return list(dict.fromkeys(texts))
