"""Validation while training: whole stitched scenes, scored as `predict` would draw them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from uhrseg.card import ModelCard
from uhrseg.data.datasets import LabelledRaster
from uhrseg.data.scenes import labels_on
from uhrseg.engine.device import resolve_precision
from uhrseg.engine.predict import predict_labels
from uhrseg.engine.score import Confusion
from uhrseg.geo.scene import Scene
from uhrseg.recipe import Recipe

__all__ = ["reduced", "score_columns", "score_line", "validate"]


def validate(
    module: nn.Module, card: ModelCard, rasters: Sequence[LabelledRaster], recipe: Recipe, fabric: Fabric
) -> dict[str, Any]:
    """Scores of whole stitched scenes (`Confusion.scores`); processes share the scenes. Leaves `module` in eval."""
    module.eval()
    confusion = Confusion(len(card.legend))
    precision = resolve_precision(recipe.train.precision, fabric.device)
    for source in rasters[fabric.global_rank :: fabric.world_size]:
        prediction = predict_labels(source.raster, module, card, device=str(fabric.device), precision=precision)
        labels = labels_on(source, Scene.open(source.raster).geobox, recipe.data)
        confusion.update(labels, prediction, recipe.data.ignore)
    counts = torch.from_numpy(np.append(confusion.matrix.ravel(), confusion.unpredicted)).to(fabric.device)
    counts = reduced(fabric, counts, "sum").cpu()
    confusion.matrix = counts[:-1].reshape(confusion.matrix.shape).numpy()
    confusion.unpredicted = int(counts[-1])
    return confusion.scores(card.legend)


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
