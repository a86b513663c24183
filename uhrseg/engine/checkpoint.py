"""Checkpoints: the state of a run, written whole or not at all.

``checkpoints/last`` holds all that a run needs to go on. Random numbers and the sampler have no state of their own:
both are functions of the recipe's seed and the step. ``checkpoints/best`` holds the weights of the best validation.
"""

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

from uhrseg.errors import InputError, RunError

__all__ = ["BEST", "CHECKPOINT", "State", "load_best", "load_checkpoint", "save_best", "save_checkpoint"]

CHECKPOINT = Path("checkpoints", "last")
"""Where a run folder keeps its last checkpoint."""

BEST = Path("checkpoints", "best")
"""Where it keeps the weights of the best validation."""


@dataclass
class State:
    """Everything that changes while training."""

    module: nn.Module
    optimizer: AdamW
    plateau: ReduceLROnPlateau
    step_samples: int  # samples of one optimiser step, all passes and processes: must stay the same
    step: int = 0  # optimiser steps done
    epochs: int = 0  # epochs finished, validation included
    scores: dict[str, Any] | None = None  # of the last validation
    best: float | None = None  # best mIoU of a validation


def save_checkpoint(fabric: Fabric, state: State, run_dir: Path) -> None:
    """Write ``checkpoints/last``; all processes call it.

    Raises `RunError`, leaving the one before, when it cannot be written or the weights are no longer finite.
    """
    if fabric.is_global_zero:
        _check_finite(state, run_dir)
        content = {
            "module": state.module.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "plateau": state.plateau.state_dict(),
            "scaler": fabric.strategy.precision.state_dict(),  # of fp16; else empty
            "step_samples": state.step_samples,
            "step": state.step,
            "epochs": state.epochs,
            "scores": state.scores,
            "best": state.best,
        }
        _write(content, run_dir / CHECKPOINT)
    fabric.barrier()


def save_best(fabric: Fabric, state: State, run_dir: Path) -> None:
    """Write ``checkpoints/best`` if the last validation was the best so far; all processes call it."""
    score: float | None = None if state.scores is None else state.scores["miou"]
    if score is not None and (state.best is None or score > state.best):
        state.best = score
        if fabric.is_global_zero:
            content = {"module": state.module.state_dict(), "step": state.step, "scores": state.scores}
            _write(content, run_dir / BEST)
    fabric.barrier()


def load_checkpoint(fabric: Fabric, state: State, run_dir: Path) -> None:
    """Put the last checkpoint of a run into `state`.

    Raises `RunError` when it cannot be read or does not fit, `InputError` when its steps had more or fewer samples.
    """
    path = run_dir / CHECKPOINT
    content = _read(path)
    try:
        _check_samples(content["step_samples"], state.step_samples)
        state.module.load_state_dict(content["module"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.plateau.load_state_dict(content["plateau"])
        fabric.strategy.precision.load_state_dict(content["scaler"])
        for name in ("step", "epochs", "scores", "best"):
            setattr(state, name, content[name])
    except InputError:
        raise
    except (RuntimeError, KeyError, ValueError) as error:
        raise RunError(f"the checkpoint {path} does not fit: {error}") from error


def load_best(state: State, run_dir: Path) -> tuple[int, dict[str, Any]]:
    """Put the weights of ``checkpoints/best`` into the module; returns their step and scores."""
    content = _read(run_dir / BEST)
    state.module.load_state_dict(content["module"])
    return content["step"], content["scores"]


def _read(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise RunError(f"the checkpoint {path} cannot be read: {error}") from error
    return content


def _write(content: dict[str, Any], path: Path) -> None:
    """Write beside `path`, wait for the disk, rename: whatever happens, `path` is whole."""
    partial = path.with_name(path.name + ".partial")
    try:
        with open(partial, "wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except (OSError, RuntimeError) as error:
        partial.unlink(missing_ok=True)
        kept = "the one before it is kept" if path.exists() else "there is none yet"
        raise RunError(
            f"the checkpoint {path} cannot be written ({error}); {kept}: make room on the disk and go on with --resume"
        ) from error


def _check_finite(state: State, run_dir: Path) -> None:
    if all(bool(torch.isfinite(p).all()) for p in state.module.parameters()):
        return
    raise RunError(
        f"the weights are not finite after step {state.step}; {run_dir / CHECKPOINT} from before is kept: "
        "lower train.lr, or set train.clip_norm = 1"
    )


def _check_samples(written: int, now: int) -> None:
    if written != now:
        raise InputError(
            f"the run had {written} samples in a step and would go on with {now}: choose train.batch_size, "
            "train.accumulate and the number of processes so that their product stays the same"
        )
