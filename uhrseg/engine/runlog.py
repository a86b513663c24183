"""The record of a training run: one JSON line per step, one CSV row per epoch, and a progress bar on a terminal."""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from types import TracebackType
from typing import Any

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["RunLog", "replace_file"]


class RunLog:
    """Writes ``log.jsonl`` and ``metrics.csv`` of `folder`; use it as a context manager.

    What an earlier try wrote after step `step` or after `epochs` finished epochs is dropped. `columns` are those of
    ``metrics.csv``. Processes other than the first write nothing (`writes` false); `quiet` shows no bar.
    """

    def __init__(
        self,
        folder: Path,
        columns: Sequence[str],
        step: int,
        epochs: int,
        total: int,
        writes: bool = True,
        quiet: bool = False,
    ) -> None:
        self.log_path, self.metrics_path = folder / "log.jsonl", folder / "metrics.csv"
        self.columns = list(columns)
        self.writes = writes
        self._records: list[Mapping[str, Any]] = []  # of the current epoch
        if writes:
            self._records = [r for r in _keep_lines(self.log_path, step) if r["epoch"] == epochs]
            _keep_rows(self.metrics_path, self.columns, epochs)
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("[bold]training"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[state]}"),
            TimeRemainingColumn(), console=console, disable=quiet or not (writes and console.is_terminal),
        )  # fmt: skip
        self._task = self._progress.add_task("training", total=total, completed=step, state="")

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def step(self, record: Mapping[str, Any]) -> None:
        """Append one step's numbers and move the bar."""
        if not self.writes:
            return
        with open(self.log_path, "a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        self._records.append(record)
        shown = ("loss", "local", "global", "consistency", "lr", "samples_per_s", "data_wait")
        state = "  ".join(f"{key} {record[key]:.3g}" for key in shown)
        self._progress.update(self._task, completed=record["step"], state=state)

    def epoch(self, scores: Mapping[str, Any]) -> None:
        """Append one row to ``metrics.csv``: the epoch's last step, its mean losses and speed, and `scores`."""
        if not self.writes:
            return
        # A run that goes on under another version may find records without a term.
        held = {key: [r[key] for r in self._records if key in r] for key in self.columns if key in self._records[-1]}
        row: dict[str, Any] = {key: fmean(values) for key, values in held.items()}
        row |= {key: self._records[-1][key] for key in ("epoch", "step", "lr")} | dict(scores)
        self._records = []
        with open(self.metrics_path, "a", encoding="utf-8", newline="") as file:
            csv.DictWriter(file, self.columns).writerow(row)

    def say(self, text: RenderableType) -> None:
        """Print text or a table above the bar, on a terminal only."""
        if not self._progress.disable:
            self._progress.console.print(text)


def replace_file(path: Path, text: str) -> None:
    """Write `text` beside `path` and rename: a reader sees the old file or the new one, never a part."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text, encoding="utf-8")
    os.replace(partial, path)


def _keep_lines(path: Path, step: int) -> list[dict[str, Any]]:
    """Keep the records up to `step` and return them; a last line cut by a kill goes too."""
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    records: list[dict[str, Any]] = [json.loads(line) for line in lines if line.endswith("}")]
    kept = [record for record in records if record["step"] <= step]
    replace_file(path, "".join(json.dumps(record) + "\n" for record in kept))
    return kept


def _keep_rows(path: Path, columns: Sequence[str], epochs: int) -> None:
    """Keep the rows of the first `epochs` epochs."""
    kept: list[dict[str, str]] = []
    if path.exists():
        with open(path, encoding="utf-8", newline="") as file:
            kept = list(csv.DictReader(file))[:epochs]
    partial = path.with_name(path.name + ".partial")
    with open(partial, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(kept)
    os.replace(partial, path)
