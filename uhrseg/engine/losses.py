"""The losses of the paper (section 3.2, Eq. 8-10), with ignored pixels left out of all three.

Shapes: B samples, C classes, S pixels a side, f context factor, s = S / f cells a side.

Every term is a sum over valid places divided by a normaliser that depends on the labels alone. A step made of several
passes or processes therefore has the loss of one big batch when all of them divide by the step's normalisers
(`loss_normalisers`, summed over passes and processes). Dice is a ratio of sums over the batch: its parts need the
step's sums (`dice_sums`), and then have the big batch's value and, added up, its gradient.

Where the published code differs: with ignored pixels it divides the global term by all cells, valid or not, and does
not mask the consistency term; here both are means over the cells without any ignored pixel. Without ignored pixels
the values are the same. On a crop without a single valid pixel every term is 0 with gradient 0 (published: NaN).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from uhrseg.models.fusion import crop_context

__all__ = ["Losses", "dice_sums", "loss_normalisers", "relay_loss"]


class Logits(Protocol):
    """What a model returns: `logits` (B, C, S, S), `context_logits` alike or None, `auxiliary_logits` or None."""

    @property
    def logits(self) -> Tensor:
        """Local logits (B, C, S, S)."""

    @property
    def context_logits(self) -> Tensor | None:
        """Context logits (B, C, S, S), or None for one scale."""

    @property
    def auxiliary_logits(self) -> Tensor | None:
        """Logits (B, C, H, W) of an auxiliary head for the local window, or None without one."""


class Losses(NamedTuple):
    """The weighted `total` and its unweighted terms, each a 0-d float32 tensor.

    Over the passes of a step everything adds up but Dice, whose value is that of the whole step in each of them.
    """

    total: Tensor
    local: Tensor
    global_: Tensor
    consistency: Tensor
    auxiliary: Tensor
    dice: Tensor


def relay_loss(
    output: Logits,
    labels: Tensor,
    factor: int | None = 4,
    ignore: int = 255,
    global_weight: float = 0.1,
    consistency_weight: float = 0.1,
    class_weights: Tensor | None = None,
    dice_weight: float = 0.0,
    normalisers: Tensor | None = None,
    dice_totals: Tensor | None = None,
    auxiliary_weight: float = 0.4,
) -> Losses:
    """Local cross-entropy + weighted global and consistency terms (+ Dice, + an auxiliary head's) of one batch.

    `labels` (B, S, S) int64 with `ignore` where nothing is known. An output without context logits has local terms
    only. `normalisers` (3,) as `loss_normalisers` gives them and `dice_totals` (3, C) as `dice_sums` does, over the
    whole step; default: those of this batch. Computed in float32.
    The consistency term sends gradients into both scales, as published. The auxiliary term is the local one of logits
    enlarged to the labels (Zhao et al. 2017, PSPNet, section 3.3; weight 0.4 in mmsegmentation).
    """
    logits = output.logits.float()  # (B, C, S, S)
    if normalisers is None:
        normalisers = loss_normalisers(labels, logits.shape[1], factor, ignore, class_weights)
    normalisers = _nonzero(normalisers)
    local = _cross_entropy(logits, labels, class_weights, ignore) / normalisers[0]
    dice = dice_loss(logits, labels, ignore, dice_totals) if dice_weight else local.new_zeros(())
    total = local + dice_weight * dice
    global_ = consistency = auxiliary = local.new_zeros(())
    if output.auxiliary_logits is not None:
        enlarged = F.interpolate(
            output.auxiliary_logits.float(), labels.shape[-2:], mode="bilinear", align_corners=False
        )
        auxiliary = _cross_entropy(enlarged, labels, class_weights, ignore) / normalisers[0]
        total = total + auxiliary_weight * auxiliary
    if output.context_logits is not None:
        if factor is None:
            raise ValueError("context logits need the context factor")
        log_context = crop_context(output.context_logits.float(), factor).log_softmax(dim=1)  # (B, C, s, s)
        targets, valid = pooled_labels(labels, logits.shape[1], factor, ignore)
        global_ = _soft_cross_entropy(log_context, _weighted(targets, class_weights), valid) / normalisers[1]
        pooled = F.avg_pool2d(logits.softmax(dim=1), factor)  # (B, C, s, s)
        consistency = _soft_cross_entropy(log_context, pooled, valid) / normalisers[2]
        total = total + global_weight * global_ + consistency_weight * consistency
    return Losses(total, local, global_, consistency, auxiliary, dice)


def loss_normalisers(
    labels: Tensor, classes: int, factor: int | None, ignore: int = 255, class_weights: Tensor | None = None
) -> Tensor:
    """What the local, global and consistency sums of `labels` (B, S, S) are divided by: (3,) float32.

    Without class weights: the number of valid pixels, and twice that of valid cells.
    """
    known = labels != ignore
    weights = torch.ones(classes, device=labels.device) if class_weights is None else class_weights
    pixels = weights[labels[known]].sum()
    if factor is None:
        return torch.stack([pixels, pixels, pixels]).float()
    targets, valid = pooled_labels(labels, classes, factor, ignore)
    return torch.stack([pixels, (_weighted(targets, class_weights) * valid).sum(), valid.sum()]).float()


def pooled_labels(labels: Tensor, classes: int, factor: int, ignore: int) -> tuple[Tensor, Tensor]:
    """Class shares (B, C, s, s) of each f x f cell of `labels`, and (B, 1, s, s) whether all its pixels are known."""
    known = (labels != ignore).unsqueeze(1)  # (B, 1, S, S)
    one_hot = torch.zeros(labels.shape[0], classes, *labels.shape[1:], device=labels.device)
    one_hot.scatter_(1, labels.masked_fill(labels == ignore, 0).unsqueeze(1), known.float())
    valid = F.avg_pool2d(known.float(), factor) == 1
    return F.avg_pool2d(one_hot, factor), valid


def dice_loss(logits: Tensor, labels: Tensor, ignore: int, totals: Tensor | None = None) -> Tensor:
    """Soft Dice loss, 1 - 2|PY| / (|P| + |Y|), averaged over the classes that `labels` (B, S, S) hold; 0 for none.

    With `totals` (3, C), the detached sums of a whole step, the value is the step's and the gradient this batch's part
    of it: the ratio does not change when all sums are scaled alike, so totals may as well be means over processes
    whose gradients are averaged. (Milletari et al. 2016, V-Net, with the denominator unsquared.)
    """
    sums = dice_sums(logits, labels, ignore)
    if totals is not None:
        sums = totals + (sums - sums.detach())
    overlap, predicted, labelled = sums  # (C,) each
    present = labelled > 0
    return ((1 - 2 * overlap / _nonzero(predicted + labelled)) * present).sum() / present.sum().clamp(min=1)


def dice_sums(logits: Tensor, labels: Tensor, ignore: int) -> Tensor:
    """Per class the overlap |PY|, the predicted |P| and the labelled |Y| over the known pixels: (3, C) float32."""
    targets, known = pooled_labels(labels, logits.shape[1], 1, ignore)
    probability = logits.float().softmax(dim=1) * known
    return torch.stack([x.sum(dim=(0, 2, 3)) for x in (probability * targets, probability, targets)])


def _cross_entropy(logits: Tensor, labels: Tensor, class_weights: Tensor | None, ignore: int) -> Tensor:
    """Sum over valid pixels of -log p of the label's class."""
    return F.cross_entropy(logits, labels, class_weights, ignore_index=ignore, reduction="sum")


def _soft_cross_entropy(log_probability: Tensor, targets: Tensor, valid: Tensor) -> Tensor:
    """Sum over valid cells of -sum_k targets_k log p_k."""
    return -(targets * log_probability * valid).sum()


def _weighted(targets: Tensor, class_weights: Tensor | None) -> Tensor:
    return targets if class_weights is None else targets * class_weights.view(1, -1, 1, 1)


def _nonzero(counts: Tensor) -> Tensor:
    """Counts with 1 for 0: a sum over nothing is 0, divided by 1."""
    return torch.where(counts > 0, counts, torch.ones_like(counts)).float()
