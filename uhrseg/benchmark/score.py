"""Whole-scene scores of a trained folder on a split of a data set."""

from __future__ import annotations

import csv
import time
from pathlib import Path

from uhrseg.benchmark.memory import training_megabytes
from uhrseg.benchmark.pictures import draw_attention, draw_scene
from uhrseg.benchmark.provenance import fingerprint, provenance
from uhrseg.benchmark.rows import Row
from uhrseg.data.datasets import Split, find_rasters
from uhrseg.engine.device import resolve_device, resolve_precision
from uhrseg.engine.fit import load_model
from uhrseg.engine.score import Confusion
from uhrseg.engine.validate import labelled_parts
from uhrseg.errors import InputError
from uhrseg.recipe import Recipe

__all__ = ["MEMORY", "score_model"]

MEMORY = "training, MB"
"""Metric of `training_megabytes`."""


def score_model(
    model: str | Path,
    recipe: Recipe,
    split: Split,
    *,
    suite: str,
    name: str,
    seed: int | None,
    device: str = "auto",
    pictures: Path | None = None,
) -> Row:
    """One row: mIoU and IoU per class over all scenes of `split`, stitched, in percent as the paper gives them.

    pictures: a folder for PNGs of the first scene: image, labels, prediction, and where the relays look.
    Raises `InputError` for a model whose classes are not the recipe's, or an empty split.
    """
    module, card = load_model(model)
    legend = recipe.data.legend
    if card.legend.names != legend.names:
        raise InputError(
            f"{model} finds {', '.join(card.legend.names)}, but the data set has {', '.join(legend.names)}: it cannot "
            "be scored there"
        )
    sources = find_rasters(recipe.data, split)
    if not sources:
        raise InputError(f"data set {recipe.data.dataset} has no scenes in its {split} split: check --data")
    where = resolve_device(device)
    precision = resolve_precision("auto", where)
    total, scenes, started = Confusion(len(legend)), {}, time.perf_counter()
    drawn: dict[str, str] = {}
    for source in sources:
        one = Confusion(len(legend))
        for labels, prediction, box in labelled_parts(source, module, card, recipe, str(where), precision):
            one.update(labels, prediction, legend.ignore)
            if pictures is not None and not drawn:
                title = f"{suite} {name} {seed}"
                drawn = draw_scene(source, labels, prediction, box, card, pictures, title)
                drawn |= draw_attention(model, source, labels, box, card, pictures, title)
        value = one.scores(legend)["miou"]
        if value is not None:
            scenes[source.name] = 100 * value
        total.matrix += one.matrix
        total.unpredicted += one.unpredicted
    scores = total.scores(legend)
    pixels, seconds = int(total.matrix.sum()), time.perf_counter() - started
    metrics = {"mIoU": scores["miou"]} | {f"IoU {c}": v["iou"] for c, v in scores["classes"].items()}
    percent = {key: None if value is None else 100 * value for key, value in metrics.items()}
    data = fingerprint({path for source in sources for path in (*source.rasters, source.labels)})
    origin = provenance(
        str(where), precision=precision, model_sha256=card.weights.sha256, recipe=recipe, data=data
    )
    costs = {"Mpx/s": pixels / 1e6 / seconds, MEMORY: training_megabytes(recipe, len(card.input.band), len(legend))}
    return Row(
        suite=suite, name=name, seed=seed, metrics=percent | costs, scenes=scenes, curve=_curve(Path(model)),
        pictures={kind: f"{pictures.name}/{png}" for kind, png in drawn.items()} if pictures else {},
        rule=f"{split}: {scores['miou_rule']}", provenance=origin,
    )  # fmt: skip


def _curve(model: Path) -> list[tuple[int, float]]:
    """Mean local loss of each epoch, from the run the model folder lies in; empty for a model elsewhere."""
    metrics = model.parent / "metrics.csv"
    if not metrics.exists():
        return []
    with open(metrics, encoding="utf-8", newline="") as file:
        return [(int(line["step"]), float(line["local"])) for line in csv.DictReader(file) if line.get("local")]
