"""Rows of results, each with where it comes from, kept one by one in ``results.json``."""

from __future__ import annotations

import csv
import json
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from uhrseg.card import explain
from uhrseg.errors import InputError

__all__ = ["Provenance", "Results", "Row", "schema", "slug"]

SCHEMA = 1
"""Version of ``results.json``; it changes when a field changes its meaning."""


class Provenance(BaseModel):
    """What a number rests on; absent where it has no meaning (a network that is only counted has no data)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    version: str = Field(description="Version of uhrseg.")
    torch: str = Field(description="Version of torch.")
    hardware: str = Field(description="Processor or GPU, and threads.")
    precision: str | None = Field(None, description="fp32, bf16 or fp16.")
    model_sha256: str | None = Field(None, description="SHA-256 of the weights.")
    recipe_sha256: str | None = Field(None, description="SHA-256 of the resolved recipe without its root.")
    data_fingerprint: str | None = Field(None, description="SHA-256 over the scenes that were scored.")


class Row(BaseModel):
    """One line of one table."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    suite: str = Field(description="Suite, e.g. 'complexity'.")
    name: str = Field(description="What the line is about, e.g. 'SwinV2 + relay tokens'.")
    seed: int | None = Field(None, description="Seed of the training or of the simulation.")
    metrics: dict[str, float | None] = Field(description="Our numbers.")
    paper: dict[str, float] = Field(default_factory=dict, description="The paper's numbers, by the same names.")
    scenes: dict[str, float] = Field(default_factory=dict, description="The main score per scene, for paired tests.")
    curve: list[tuple[int, float]] = Field(default_factory=list, description="Optimiser step, mean local loss since.")
    pictures: dict[str, str] = Field(default_factory=dict, description="PNGs beside this file, by what they show.")
    rule: str = Field("", description="How the main score is averaged.")
    note: str = Field("", description="Why a number differs, or what it leaves out.")
    provenance: Provenance

    @property
    def key(self) -> tuple[str, str, int | None]:
        """A row with the same key is replaced."""
        return self.suite, self.name, self.seed


class _File(BaseModel):
    """``results.json`` of a benchmark: all rows, the first to come first."""

    model_config = ConfigDict(extra="forbid")

    schema_version: int = SCHEMA
    rows: list[Row] = Field(default_factory=list)


def slug(text: str) -> str:
    """`text` as the name of a file or folder: lower case, digits and dashes."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def schema() -> dict[str, Any]:
    """JSON Schema of ``results.json``, as in ``docs/results.schema.json``."""
    return _File.model_json_schema()


class Results:
    """``results.json`` and ``results.csv`` of a report folder, written again after every row: a crash loses none.

    Raises `InputError` for a ``results.json`` that is not ours.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        self._rows = {row.key: row for row in _read(folder / "results.json")}

    @property
    def rows(self) -> list[Row]:
        """All rows in the order in which their keys first came."""
        return list(self._rows.values())

    def __contains__(self, key: object) -> bool:
        return key in self._rows

    def add(self, row: Row) -> None:
        """Keep a row, in place of an older one with its key."""
        self._rows[row.key] = row
        content = _File(rows=self.rows).model_dump(mode="json")
        _replace(self.folder / "results.json", json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        with open(self.folder / ".results.csv", "w", encoding="utf-8", newline="") as file:
            csv.writer(file).writerows(_lines(self.rows))
        os.replace(self.folder / ".results.csv", self.folder / "results.csv")


def _read(path: Path) -> list[Row]:
    if not path.exists():
        return []
    try:
        return _File.model_validate_json(path.read_text(encoding="utf-8")).rows
    except (ValidationError, UnicodeDecodeError) as error:
        reason = explain(error) if isinstance(error, ValidationError) else str(error)
        raise InputError(f"{path} is no results file of this version ({reason}): choose another -o") from error


def _replace(path: Path, text: str) -> None:
    draft = path.with_name(f".{path.name}")
    draft.write_text(text, encoding="utf-8")
    os.replace(draft, path)


def _lines(rows: Iterable[Row]) -> list[list[Any]]:
    """One line per number: suite, name, seed, metric, ours, paper's."""
    lines: list[list[Any]] = [["suite", "name", "seed", "metric", "value", "paper", "hardware", "version"]]
    for row in rows:
        for metric, value in row.metrics.items():
            origin = row.provenance.hardware, row.provenance.version
            lines.append([row.suite, row.name, row.seed, metric, value, row.paper.get(metric), *origin])
    return lines
