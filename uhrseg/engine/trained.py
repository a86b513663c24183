"""What a training run hands over: a model folder with its card."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from uhrseg import models
from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec, sha256_of
from uhrseg.recipe import Recipe

__all__ = ["model_card", "with_training", "write_model"]

_UNKNOWN_SHA = "0" * 64  # of a card whose weights are not written yet


def model_card(recipe: Recipe, mean: NDArray[np.float64], std: NDArray[np.float64]) -> ModelCard:
    """The card of a recipe's model, its bands scaled by the training scenes' statistics; weights not yet hashed."""
    bands: Sequence[BandSpec] = [
        band.model_copy(update={"mean": float(m), "std": float(s)})
        for band, m, s in zip(recipe.data.band, mean, std, strict=True)
    ]
    window = WindowSpec(**recipe.window.model_dump() | {"context_factor": recipe.context_factor})
    classes: tuple[ClassSpec, ...] = recipe.data.class_
    return ModelCard(
        name=recipe.name, license=recipe.license, description=recipe.description, citation=recipe.citation,
        architecture=recipe.model.architecture, input=InputSpec(gsd_m=recipe.data.gsd_m, band=tuple(bands)),
        window=window, class_=classes, background=recipe.data.background, ignore=recipe.data.ignore,
        weights=WeightsSpec(sha256=_UNKNOWN_SHA),
    )  # fmt: skip


def with_training(card: ModelCard, recipe: Recipe, steps: int, scenes: int, scores: dict[str, Any] | None) -> ModelCard:
    """The card with how it was trained and what the last validation gave."""
    settings = recipe.train
    training: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "scenes": scenes,
        "steps": steps,
        "samples": steps * settings.batch_size * settings.accumulate,
        "schedule": settings.schedule,
        "lr": settings.lr,
        "precision": settings.precision,
    }
    if scores is not None:
        training["validation"] = {key: scores[key] for key in ("miou", "miou_rule", "accuracy") if scores[key]}
        training["validation"]["iou"] = {
            name: c["iou"] for name, c in scores["classes"].items() if c["iou"] is not None
        }
    return card.model_copy(update={"training": training})


def write_model(module: nn.Module, card: ModelCard, folder: Path) -> None:
    """Write weights and card into a folder beside `folder` and swap it in."""
    partial, old = folder.with_name(f"{folder.name}.partial"), folder.with_name(f"{folder.name}.old")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    weights = partial / card.weights.file
    models.save_weights(module, weights)
    card = card.model_copy(update={"weights": WeightsSpec(file=card.weights.file, sha256=sha256_of(weights))})
    card.write(partial)
    if folder.exists():
        folder.rename(old)
    partial.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
