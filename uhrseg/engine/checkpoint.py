"""Checkpoints: the state of a run, written whole or not at all."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning_fabric import Fabric
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau

from uhrseg.errors import RunError

__all__ = ["CHECKPOINT", "State", "load_checkpoint", "save_checkpoint"]

CHECKPOINT = Path("checkpoints", "last")
"""Where a run folder keeps its last checkpoint."""


@dataclass
class State:
    """Everything that changes while training."""

    module: nn.Module
    optimizer: AdamW
    plateau: ReduceLROnPlateau
    step: int = 0  # optimiser steps done
    epochs: int = 0  # epochs finished, validation included
    scores: dict[str, Any] | None = None  # of the last validation


def save_checkpoint(fabric: Fabric, state: State, run_dir: Path) -> None:
    """Write ``checkpoints/last`` beside its place and rename: it is always whole.

    Raises `RunError`, leaving the one before, when it cannot be written.
    """
    path = run_dir / CHECKPOINT
    if fabric.is_global_zero:
        content = {
            "module": state.module.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "plateau": state.plateau.state_dict(),
            "step": state.step,
            "epochs": state.epochs,
            "scores": state.scores,
        }
        partial = path.with_name("last.partial")
        try:
            torch.save(content, partial)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"the checkpoint {path} cannot be written ({error}); the one before it is kept") from error
    fabric.barrier()


def load_checkpoint(state: State, run_dir: Path) -> None:
    """Put the last checkpoint of a run into `state`; raises `RunError` when it cannot be read or does not fit."""
    path = run_dir / CHECKPOINT
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state.module.load_state_dict(content["module"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.plateau.load_state_dict(content["plateau"])
        state.step, state.epochs, state.scores = content["step"], content["epochs"], content["scores"]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise RunError(f"the checkpoint {path} cannot be read: {error}") from error
