"""Charts, paired tests and the schema: what a report says about its rows follows from them."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from uhrseg.benchmark import rows as rows_module
from uhrseg.benchmark.charts import charts, gains, gallery
from uhrseg.benchmark.context import EXPERIMENTS, Size, context_recipe
from uhrseg.benchmark.memory import training_megabytes
from uhrseg.benchmark.paired import comparisons, sign_flip_test
from uhrseg.benchmark.provenance import provenance
from uhrseg.benchmark.rows import Row
from uhrseg.models import build

ROOT = Path(__file__).resolve().parents[2]


def row(name: str, seed: int, mound: float, scenes: dict[str, float], **more) -> Row:
    metrics = {"mIoU": mound, "IoU mound": mound, "IoU pit": 50.0, "training, MB": 10.0 * len(name)}
    return Row(suite="s", name=name, seed=seed, metrics=metrics, scenes=scenes, provenance=provenance(), **more)


def two_lines(ours: float = 10.0) -> list[Row]:
    lines = []
    for seed, (base, more) in enumerate(((40.0, ours), (44.0, ours), (42.0, ours))):
        lines.append(row("sliding window", seed, base, {"a": base, "b": base + 1}))
        lines.append(row("relays", seed, base + more, {"a": base + more, "b": base + 1 + more}))
    return lines


def test_sign_flips_are_counted() -> None:
    values = [3.0, 1.0, 2.0, -0.5]
    means = [abs(np.mean([s * v for s, v in zip(signs, values, strict=True)])) for signs in product((1, -1), repeat=4)]
    assert sign_flip_test(values) == pytest.approx(np.mean(np.array(means) >= abs(np.mean(values))))
    assert sign_flip_test([1.0] * 5) == 2 ** (1 - 5)
    assert sign_flip_test([1.0, -1.0]) == 1.0
    assert sign_flip_test([1.0] * 40) < 0.01 < sign_flip_test([1.0, -1.0] * 20)


def test_lines_are_compared_by_scene_and_seed() -> None:
    (sentence,) = comparisons(two_lines())
    assert sentence.startswith("relays against sliding window: +10.0 points, p = 0.031 (6 pairs of scene and seed, 3")
    assert comparisons([r for r in two_lines() if r.name == "relays"]) == []


def test_gains_are_the_papers_relative_error_improvement() -> None:
    ((title, values),) = gains(two_lines())
    assert title == "relays over sliding window"
    assert values == pytest.approx({"mound": 100 * 10 / (100 - 42), "pit": 0.0})
    table_1 = [row("Table 1: ViT", 1, 20.0, {}), row("Table 1: ViT + relays", 1, 60.0, {})]
    title, values = next(gains(table_1))
    assert title == "Table 1: ViT + relays over Table 1: ViT" and values == pytest.approx({"mound": 50.0, "pit": 0.0})


def test_every_chart_is_drawn_where_its_numbers_are() -> None:
    assert [f.axes[0].get_title() for f in charts(two_lines())] == [
        "Accuracy",
        "Accuracy against memory of a training step",
        "relays over sliding window",
    ]
    curve = [(50, 1.0), (100, 0.5)]
    counts = [row(f"{n} relays", 1, 30.0 + n, {}, curve=curve) for n in (2, 4, 8)]
    figures = {f.axes[0].get_title(): f.axes[0] for f in charts(counts)}
    assert {"Accuracy against relays", "Training, first seed"} < set(figures)
    assert list(figures["Accuracy against relays"].lines[0].get_xdata()) == [2, 4, 8]
    assert len(figures["Training, first seed"].lines) == 3
    assert charts(two_lines()[:1]) == []


def test_the_gallery_shows_each_picture_once(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"x")
    shown = {"image": "a.png", "prediction": "a.png", "labels": "gone.png"}
    lines = [row("Table 3: Registers", seed, 1.0, {}, pictures=shown) for seed in (1, 2)]
    assert [caption for caption, _ in gallery(lines, tmp_path)] == ["image", "Registers: prediction"]


def test_memory_is_what_the_network_keeps(tmp_path: Path) -> None:
    """Two scales keep about twice of one, a doubled batch twice the activations, and the weights are there."""

    def megabytes(line: str, batch: int) -> float:
        recipe = context_recipe("mark", tmp_path, EXPERIMENTS["mark"][1][line], 1, Size(batch=batch))
        return training_megabytes(recipe, 2, 4)

    one, two = megabytes("sliding window", 32), megabytes("sliding window", 64)
    weights = 2 * one - two
    recipe = context_recipe("mark", tmp_path, EXPERIMENTS["mark"][1]["sliding window"], 1)
    model = build(**recipe.model.architecture, bands=2, classes=4, size=64)
    assert weights == pytest.approx(16e-6 * sum(p.numel() for p in model.parameters()))
    tokens = 32 * 64 * 96 * 4e-6  # MB of one map of tokens; a block keeps some 16 of them (two of width 4 in its MLP)
    assert 6 * 10 * tokens < one - weights < 6 * 24 * tokens
    assert 1.7 < (megabytes("relays", 32) - weights) / (one - weights) < 2.3


def test_the_schema_is_the_documented_one() -> None:
    documented = json.loads((ROOT / "docs" / "results.schema.json").read_text())
    assert documented == rows_module.schema()
