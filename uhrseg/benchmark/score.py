"""Whole-scene scores of a trained folder on a split of a data set."""

from __future__ import annotations

import time
from pathlib import Path

from uhrseg.benchmark.provenance import fingerprint, provenance
from uhrseg.benchmark.rows import Row
from uhrseg.data.datasets import Split, find_rasters
from uhrseg.engine.device import resolve_device, resolve_precision
from uhrseg.engine.fit import load_model
from uhrseg.engine.score import Confusion
from uhrseg.engine.validate import labelled_parts
from uhrseg.errors import InputError
from uhrseg.recipe import Recipe

__all__ = ["score_model"]


def score_model(
    model: str | Path, recipe: Recipe, split: Split, *, suite: str, name: str, seed: int | None, device: str = "auto"
) -> Row:
    """One row: mIoU and IoU per class over all scenes of `split`, stitched, in percent as the paper gives them.

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
    for source in sources:
        one = Confusion(len(legend))
        for labels, prediction, _ in labelled_parts(source, module, card, recipe, str(where), precision):
            one.update(labels, prediction, legend.ignore)
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
    return Row(
        suite=suite, name=name, seed=seed, metrics=percent | {"Mpx/s": pixels / 1e6 / seconds}, scenes=scenes,
        rule=f"{split}: {scores['miou_rule']}", provenance=origin,
    )  # fmt: skip
