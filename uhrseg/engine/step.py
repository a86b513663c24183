"""One optimiser step: passes in, weights changed, the numbers of the step out.

Shapes: B samples, C bands, S pixels a side.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from uhrseg.card import ModelCard
from uhrseg.data.chips import Chip
from uhrseg.engine.losses import Losses, dice_sums, loss_normalisers, relay_loss
from uhrseg.errors import InputError, RunError
from uhrseg.recipe import Recipe

__all__ = ["TERMS", "NotFinite", "Step", "checkpoint_activations", "reduced"]

TERMS = ("loss", "local", "global", "consistency", "auxiliary", "dice")
"""The numbers of a step: the weighted sum and its terms."""


class Step:
    """The step of a recipe: ``gradients(passes, step)``, then ``update()``.

    `model` and `optimizer` are those that Fabric set up. Sums and counts are those of all passes and processes, so that
    the step is that of one big batch.
    """

    def __init__(self, fabric: Fabric, recipe: Recipe, model: Any, optimizer: Any, card: ModelCard) -> None:
        self.fabric, self.recipe = fabric, recipe
        self.model, self.optimizer = model, optimizer
        self.updating = False
        device, bands, loss = fabric.device, card.input.band, recipe.loss
        self.mean = torch.tensor([b.mean for b in bands], device=device).view(-1, 1, 1)
        self.factor = torch.tensor([1 / b.std for b in bands], device=device).view(-1, 1, 1)
        self.class_weights = None if loss.class_weights is None else torch.tensor(loss.class_weights, device=device)
        self.scaled = getattr(fabric.strategy.precision, "scaler", None) is not None  # fp16: skips bad steps itself

    def gradients(self, passes: Sequence[Chip], step: int) -> dict[str, float]:
        """Forward and backward passes of step `step`; the loss, its terms and the norm of the gradient.

        Raises `RunError` when one of them is not finite; the weights are as before then.
        """
        labels = [batch["labels"].long() for batch in passes]
        counts = reduced(self.fabric, torch.stack([self._counts(y) for y in labels]).sum(0))
        totals = self._dice_totals(passes, labels, step)
        sums = torch.zeros(len(TERMS), device=self.fabric.device)
        for i, (batch, y) in enumerate(zip(passes, labels, strict=True)):
            with self.fabric.no_backward_sync(self.model, enabled=i < len(passes) - 1):
                output = self._forward(batch, step, i)
                if totals is None and self.recipe.loss.dice_weight:
                    totals = reduced(self.fabric, dice_sums(output.logits.detach(), y, self.recipe.data.ignore))
                losses = self.loss(output, y, counts, totals)
                self.fabric.backward(losses.total)
            sums += torch.stack(losses).detach()
        sums[-1] /= len(passes)  # Dice is the step's in every pass
        sums[0] -= self.recipe.loss.dice_weight * (len(passes) - 1) * sums[-1]
        numbers = torch.cat([reduced(self.fabric, sums), self._clipped_norm().view(1)]).tolist()
        terms = dict(zip((*TERMS, "grad_norm"), numbers, strict=True))
        self._check(terms, passes, step)
        return terms

    def update(self) -> None:
        """Change the weights by the gradients; `updating` tells of one that was cut short."""
        self.updating = True
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updating = False

    def inputs(self, batch: Chip) -> tuple[Tensor, Tensor | None]:
        """Scaled local and context windows (B, C, S, S) of a batch; the context is None for one scale."""
        context = batch.get("context")
        return self._scale(batch["local"]), None if context is None else self._scale(context)

    def loss(self, output: Any, labels: Tensor, counts: Tensor | None, totals: Tensor | None) -> Losses:
        """The recipe's loss of one pass; `counts` and `totals` of the whole step, None: of this pass."""
        weights = self.recipe.loss
        return relay_loss(
            output, labels, self.recipe.context_factor, self.recipe.data.ignore, weights.global_weight,
            weights.consistency_weight, self.class_weights, weights.dice_weight, counts, totals,
            weights.auxiliary_weight,
        )  # fmt: skip

    def _scale(self, windows: Tensor) -> Tensor:
        return (windows - self.mean) * self.factor

    def _counts(self, labels: Tensor) -> Tensor:
        classes, factor = len(self.recipe.data.class_), self.recipe.context_factor
        return loss_normalisers(labels, classes, factor, self.recipe.data.ignore, self.class_weights)

    def _forward(self, batch: Chip, step: int, index: int) -> Any:
        _seed_network(self.recipe.seed, step, self.fabric.global_rank, index)
        return self.model(*self.inputs(batch))

    def _dice_totals(self, passes: Sequence[Chip], labels: Sequence[Tensor], step: int) -> Tensor | None:
        """Dice sums (3, classes) of several passes, from a forward pass of each; a single pass needs no extra one."""
        if len(passes) == 1 or not self.recipe.loss.dice_weight:
            return None
        with torch.no_grad():
            parts = [
                dice_sums(self._forward(batch, step, i).logits, y, self.recipe.data.ignore)
                for i, (batch, y) in enumerate(zip(passes, labels, strict=True))
            ]
        return reduced(self.fabric, torch.stack(parts).sum(0))

    def _clipped_norm(self) -> Tensor:
        """The norm of the gradient before it is clipped to the recipe's."""
        limit = self.recipe.train.clip_norm or float("inf")
        norm = self.fabric.clip_gradients(self.model, self.optimizer, max_norm=limit, error_if_nonfinite=False)
        assert norm is not None
        return norm.detach()

    def _check(self, terms: dict[str, float], passes: Sequence[Chip], step: int) -> None:
        """Refuse numbers that are not finite; with fp16 a gradient may overflow, the scaler skips such a step."""
        checked = [name for name in terms if not (self.scaled and name == "grad_norm")]
        wrong = [name for name in checked if not np.isfinite(terms[name])]
        if wrong:
            self.optimizer.zero_grad()
            raise NotFinite(step, wrong)


class NotFinite(RunError):
    """The numbers `names` of step `step` (from 0) are not finite."""

    def __init__(self, step: int, names: Sequence[str]) -> None:
        super().__init__(f"step {step + 1}: not finite: {', '.join(names)}")
        self.step, self.names = step, list(names)


def reduced(fabric: Fabric, values: Tensor, how: str = "mean") -> Tensor:
    """`values` averaged ("mean") or added ("sum") over all processes.

    DDP averages gradients, so the sums of a process are divided by mean counts.
    """
    result = fabric.all_reduce(values, reduce_op=how)
    assert isinstance(result, Tensor)
    return result


def checkpoint_activations(module: nn.Module) -> None:
    """Let the transformer blocks of `module` keep their inputs only, and compute the rest again when going back.

    Raises `InputError` for a network that is no stack of blocks or that normalises over the batch.
    """
    stages = getattr(getattr(module, "trunk", None), "stages", None)
    if stages is None or any(isinstance(part, _BatchNorm) for stage in stages for part in _modules(stage)):
        raise InputError("train.activation_checkpointing is for transformer trunks: set it to false for this model")
    for stage in stages:
        for block in stage.blocks:
            part = block if isinstance(block, nn.Module) else block.block  # ViT wraps timm's blocks
            part.forward = _recomputed(part.forward)


def _modules(stage: Any) -> list[nn.Module]:
    return list(stage.modules()) if isinstance(stage, nn.Module) else []


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    def run(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)

    return run


def _seed_network(seed: int, step: int, rank: int, index: int) -> None:
    """Random numbers of the network (drop path) for one pass of one step of one process."""
    state = np.random.SeedSequence((seed, step, rank, index)).generate_state(1, np.uint64)
    torch.manual_seed(int(state[0] >> np.uint64(1)))
