"""Validation while training: whole stitched scenes, or blocks held out of them, scored as `predict` would draw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn

from uhrseg.card import ModelCard
from uhrseg.data.datasets import LabelledRaster
from uhrseg.data.scenes import labels_on
from uhrseg.engine.device import resolve_precision
from uhrseg.engine.predict import predict
from uhrseg.engine.score import Confusion
from uhrseg.geo.plan import shifted
from uhrseg.recipe import Recipe

__all__ = ["reduced", "score_columns", "score_line", "validate"]


def validate(
    module: nn.Module, card: ModelCard, rasters: Sequence[LabelledRaster], recipe: Recipe, fabric: Fabric
) -> dict[str, Any]:
    """Scores of stitched scenes where they are labelled (`Confusion.scores`); processes share the scenes.

    Leaves `module` in eval.
    """
    module.eval()
    confusion = Confusion(len(card.legend))
    precision = resolve_precision(recipe.train.precision, fabric.device)
    for source in rasters[fabric.global_rank :: fabric.world_size]:
        for labels, prediction in _labelled_parts(source, module, card, recipe, str(fabric.device), precision):
            confusion.update(labels, prediction, recipe.data.ignore)
    counts = torch.from_numpy(np.append(confusion.matrix.ravel(), confusion.unpredicted)).to(fabric.device)
    counts = reduced(fabric, counts, "sum").cpu()
    confusion.matrix = counts[:-1].reshape(confusion.matrix.shape).numpy()
    confusion.unpredicted = int(counts[-1])
    return confusion.scores(card.legend)


def _labelled_parts(
    source: LabelledRaster, module: nn.Module, card: ModelCard, recipe: Recipe, device: str, precision: str
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8]]]:
    """Labels and prediction of the parts of a raster that hold any label; the others are not predicted."""
    size = None if source.blocks is None else max(source.blocks.size, 4 * card.window.size)
    whole = predict(source.raster, (module, card), device=device, precision=precision, chunk=size)
    lazy, grid = whole.labels, whole.plan.geobox
    for chunk in whole.chunks:
        box = shifted(grid, chunk.rows.start, chunk.cols.start, chunk.shape)
        labels = labels_on(source, box, recipe.data, grid)
        if (labels != recipe.data.ignore).any():
            yield labels, np.asarray(lazy[chunk.rows, chunk.cols].values)


def reduced(fabric: Fabric, values: Tensor, how: str = "mean") -> Tensor:
    """`values` averaged ("mean") or added ("sum") over all processes."""
    result = fabric.all_reduce(values, reduce_op=how)
    assert isinstance(result, Tensor)
    return result


def score_columns(names: Sequence[str], scores: dict[str, Any] | None = None) -> dict[str, float | None]:
    """The validation columns of ``metrics.csv``, empty without `scores`."""
    iou = {name: None if scores is None else scores["classes"][name]["iou"] for name in names}
    return {"val_miou": scores and scores["miou"]} | {f"val_iou_{name}": value for name, value in iou.items()}


def score_line(epoch: int, scores: dict[str, Any]) -> str:
    """One line for people: mean IoU, each class, and the rule."""
    parts = [f"{name} {c['iou']:.3f}" for name, c in scores["classes"].items() if c["iou"] is not None]
    return f"epoch {epoch}: mean IoU {scores['miou'] or float('nan'):.3f} ({', '.join(parts)}; {scores['miou_rule']})"
