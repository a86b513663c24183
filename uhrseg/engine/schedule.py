"""The learning rate: 5 % linear warm-up, then cosine to zero or steps down on a plateau of the validation score."""

from __future__ import annotations

import math

from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

__all__ = ["cosine_lr", "plateau", "set_lr", "warmup_lr", "warmup_steps"]

WARMUP_START = 0.01
"""First learning rate as a share of the full one (published configuration: 1e-5 of 1e-3)."""


def warmup_steps(total_steps: int, fraction: float) -> int:
    """Number of optimiser steps before the full rate is reached (paper, section 4.1: 5 % of all)."""
    return int(total_steps * fraction)


def warmup_lr(step: int, warm: int, lr: float) -> float:
    """Rate of optimiser step `step` (0, 1, ...) of `warm` warm-up steps: linear from 1 % of `lr` to `lr`."""
    if step >= warm:
        return lr
    start = WARMUP_START * lr
    return start + (lr - start) * step / warm


def cosine_lr(step: int, total_steps: int, warm: int, lr: float) -> float:
    """Warm-up, then half a cosine from `lr` at step `warm` to 0 at `total_steps`."""
    if step < warm:
        return warmup_lr(step, warm, lr)
    return lr * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(total_steps - warm, 1)))


def plateau(optimizer: Optimizer) -> ReduceLROnPlateau:
    """Times 0.2 after the score (higher is better) has not risen by 1 % for more than 4 validations (section 4.1)."""
    return ReduceLROnPlateau(optimizer, mode="max", factor=0.2, patience=4, threshold=0.01)


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every parameter group the rate `lr`."""
    for group in optimizer.param_groups:
        group["lr"] = lr
