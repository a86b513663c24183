"""Results are kept row by row, carry where they come from, and the page shows all of them."""

from __future__ import annotations

import csv
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.trees import TREES, small_recipe
from uhrseg.benchmark import datasets
from uhrseg.benchmark.context import STRATEGIES, Suite
from uhrseg.benchmark.provenance import fingerprint, provenance, recipe_hash
from uhrseg.benchmark.rows import Results, Row
from uhrseg.benchmark.run import OnData, run_suites, write_report
from uhrseg.benchmark.tables import suite_table
from uhrseg.benchmark.trials import DATASETS, Trial, trials_for
from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.recipe import Recipe

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, value: float, seed: int | None = 1, **paper: float) -> Row:
    return Row(suite="s", name=name, seed=seed, metrics={"mIoU": value}, paper=paper, provenance=provenance())


def test_rows_survive_a_crash_and_newer_ones_replace_older(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(row("a", 0.1))
    results.add(row("b", 0.2))
    again = Results(tmp_path)  # as a second run would
    again.add(row("a", 0.3))
    kept = Results(tmp_path).rows
    assert [(r.name, r.metrics["mIoU"]) for r in kept] == [("a", 0.3), ("b", 0.2)]
    with open(tmp_path / "results.csv", newline="") as file:
        assert [line["value"] for line in csv.DictReader(file)] == ["0.3", "0.2"]
    assert json.loads((tmp_path / "results.json").read_text())["schema_version"] == 1


def test_a_foreign_results_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"rows": [{"x": 1}]}')
    with pytest.raises(InputError, match="no results file"):
        Results(tmp_path)


def test_seeds_become_mean_and_spread_beside_the_papers_number() -> None:
    values = [0.50, 0.54, 0.58]
    table = suite_table([row("relays", v, seed, mIoU=0.5) for seed, v in enumerate(values)])
    assert table.header == ["", "mIoU", "paper", "diff", "seeds"]
    spread = np.std(values, ddof=1)
    assert table.lines == [["relays", f"0.540 ± {spread:.3f}", "0.5", "+8.0%", "0, 1, 2"]]


def test_the_simulated_suite_is_scored_reported_and_repeatable(tmp_path: Path) -> None:
    first = run_suites(["simulated"], tmp_path, quick=True).rows[0]
    assert first.metrics["IoU mound"] > 0.4
    assert first.provenance.model_sha256 and first.provenance.data_fingerprint
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert not re.search(r'(src|href)="(?!data:)', page)  # opens offline
    Balanced().feed(page)
    assert first.provenance.model_sha256[:12] in page
    second = run_suites(["simulated"], tmp_path / "again", quick=True).rows[0]
    speed = {"Mpx/s"}
    assert {k: v for k, v in first.metrics.items() if k not in speed} == {
        k: v for k, v in second.metrics.items() if k not in speed
    }
    assert first.provenance == second.provenance


def test_an_unknown_suite_is_named_before_anything_runs(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="did you mean simulated"):
        run_suites(["simulatd"], tmp_path / "never")
    assert not (tmp_path / "never").exists()


def test_the_context_suite_trains_scores_and_goes_on(tmp_path: Path) -> None:
    options = OnData(seeds=(1,), tables=("mark",))
    rows = run_suites(["context"], tmp_path, quick=True, on_data=options).rows
    assert {row.name for row in rows} == set(STRATEGIES)
    assert all(row.metrics["mIoU"] is not None and row.provenance.recipe_sha256 for row in rows)
    drawn = {name for row in rows for name in row.pictures.values()}
    assert all((tmp_path / name).read_bytes().startswith(b"\x89PNG") for name in drawn)
    assert {row.name for row in rows if "attention" in row.pictures} == {"registers", "relays", "relays, parallel"}
    page = (tmp_path / "index.html").read_text(encoding="utf-8")
    assert "relays: attention" in page
    again: list[Row] = []
    run_suites(["context"], tmp_path, quick=True, on_data=options, on_row=again.append)
    assert again == []  # what is in the results is not run again
    with pytest.raises(InputError, match="no part of the context suite"):
        run_suites(["context"], tmp_path, on_data=OnData(tables=("marks",)))


def test_what_makes_another_table_of_the_context_suite_is_in_its_name(tmp_path: Path) -> None:
    names = {Suite("control").name, Suite("control", "long").name, Suite("control", "small", ("train.epochs=32",)).name}
    assert names == {"context: control", "context, long: control", "context: control (train.epochs=32)"}
    (tmp_path / "scenes" / "control").mkdir(parents=True)  # as if they had been made
    assert Suite("control", overrides=("train.epochs=32",)).recipe("relays", 1, tmp_path).train.epochs == 32
    with pytest.raises(InputError, match="choose from small"):
        run_suites(["context"], tmp_path, on_data=OnData(tables=("mark",), size="huge"))


def test_text_is_escaped(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.add(row("<script>", 0.5))
    assert "<script>" not in write_report(results).read_text(encoding="utf-8")


def test_hashes_follow_what_they_stand_for(tmp_path: Path) -> None:
    recipe = Recipe.read(ROOT / "recipes" / "lidar_demo.toml")
    elsewhere = Recipe.read(ROOT / "recipes" / "lidar_demo.toml", ["data.root=x", "seed=7"])
    other = Recipe.read(ROOT / "recipes" / "lidar_demo.toml", ["train.lr=1e-3"])
    assert recipe_hash(recipe) == recipe_hash(elsewhere) != recipe_hash(other)
    for name, text in (("a", "1"), ("b", "2")):
        (tmp_path / name).write_text(text)
    files = [tmp_path / "a", tmp_path / "b"]
    assert fingerprint(files) == fingerprint(files[::-1])
    before = fingerprint(files)
    (tmp_path / "b").write_text("3")
    assert fingerprint(files) != before


class Balanced(HTMLParser):
    """Fails on a tag that is closed without having been opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_papers_lines_are_trained_scored_and_not_run_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = TREES["cityscapes"](tmp_path / "tree")
    small = small_recipe("cityscapes", root).write(tmp_path / "cityscapes.toml")
    one = [Trial("Table 3", "Sliding window", ("model.strategy=single",), {"cityscapes": 68.2})]
    monkeypatch.setattr(datasets, "trials_for", lambda dataset: one)
    options = OnData(recipe=small, train=True, seeds=(1,))
    first = run_suites(["cityscapes"], tmp_path / "report", quick=True, on_data=options).rows[0]
    assert first.paper == {"mIoU": 68.2} and first.rule.startswith("val: mean of IoU over")
    again: list[Row] = []
    run_suites(["cityscapes"], tmp_path / "report", quick=True, on_data=options, on_row=again.append)
    assert again == []
    assert "Table 3: Sliding window" in (tmp_path / "report" / "index.html").read_text(encoding="utf-8")


def test_every_line_of_the_papers_tables_is_a_network_that_builds() -> None:
    for dataset in DATASETS[:4]:
        for trial in trials_for(dataset):
            recipe = Recipe.read(ROOT / "recipes" / f"{dataset}.toml", [*trial.changes, "model.pretrained=false"])
            with torch.device("meta"):
                build(
                    **recipe.model.architecture, bands=3, classes=4, size=recipe.window.size,
                    context_factor=recipe.context_factor,
                )  # fmt: skip
