"""Memory of a training step, counted instead of measured: without a GPU, and the same whatever else runs."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from uhrseg.models import build
from uhrseg.models.segmenter import TWO_SCALES
from uhrseg.recipe import Recipe

__all__ = ["training_megabytes"]

_PER_PARAMETER = 16  # bytes: weight, gradient and Adam's two moments in float32


def training_megabytes(recipe: Recipe, bands: int, classes: int) -> float:
    """Megabytes that a training step of the recipe's batch holds at its peak, in float32.

    Weights, gradients and Adam's moments, and every activation that the network keeps for its backward pass (counted
    once each, on one sample on the CPU); the losses, copies in flight and the allocator's own come on top.
    """
    window = recipe.window
    options = {**recipe.model.architecture, "context_factor": window.context_factor}
    with torch.random.fork_rng(devices=[]):  # whoever asks draws the same numbers afterwards
        model = build(**options, bands=bands, classes=classes, size=window.size).train()
    image = torch.zeros(1, bands, window.size, window.size)
    weights = sum(p.numel() for p in model.parameters()) * _PER_PARAMETER
    context = image if getattr(model, "strategy", "single") in TWO_SCALES else None
    return (weights + recipe.train.batch_size * _kept_bytes(model, image, context)) / 1e6


def _kept_bytes(model: nn.Module, image: Tensor, context: Tensor | None) -> int:
    """Bytes of the tensors one sample leaves for the backward pass, parameters left out."""
    own = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        key = tensor.untyped_storage().data_ptr()
        if key not in own:
            kept[key] = tensor  # held, so that no other storage takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(image, context)
    del output
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())
