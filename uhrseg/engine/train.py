"""Training: the loop, visible in one file.

A run is a function of its recipe. Samples depend on (seed, epoch, index) and the random numbers of the network on
(seed, step, process), so a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from numpy.typing import NDArray
from torch import nn
from torch.optim import AdamW
from torch.utils.data import DataLoader

from uhrseg import models
from uhrseg.card import ModelCard
from uhrseg.data.chips import Chip, Chips
from uhrseg.data.datasets import LabelledRaster
from uhrseg.data.sampling import StepSampler
from uhrseg.data.scenes import band_statistics, class_shares, load_scenes
from uhrseg.data.split import split_rasters, write_blocks
from uhrseg.engine import schedule
from uhrseg.engine.checkpoint import CHECKPOINT, State, load_best, load_checkpoint, save_best, save_checkpoint
from uhrseg.engine.device import resolve_device, resolve_precision
from uhrseg.engine.runlog import RunLog
from uhrseg.engine.step import TERMS, NotFinite, Step, checkpoint_activations
from uhrseg.engine.trained import model_card, with_training, write_model
from uhrseg.engine.trouble import (
    describe_not_finite,
    describe_out_of_memory,
    fitting_batch,
    is_out_of_memory,
    release_memory,
)
from uhrseg.engine.validate import score_columns, score_table, validate
from uhrseg.errors import InputError, RunError
from uhrseg.geo.plan import overlap_pixels
from uhrseg.recipe import Recipe
from uhrseg.report.curves import draw_curves

__all__ = ["train"]

_FABRIC_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_SPEED = ("samples_per_s", "data_wait")
_KEPT = "The last checkpoint is kept"
_FREE_TO_CHANGE = (
    "batch_size", "accumulate", "workers", "device", "compile", "activation_checkpointing", "checkpoint_every", "keep",
    "in_memory",
)  # fmt: skip
"""Keys of the train table that may differ when a run goes on: they change how it is done, not what."""


def train(
    recipe: Recipe, run_dir: Path, resume: bool = False, fast_dev_run: bool = False, quiet: bool = False
) -> Path:
    """Train `recipe` into `run_dir` and return the model folder, ready for `predict`.

    `resume` goes on from ``checkpoints/last``; `fast_dev_run` does two small steps to see that all of it works; `quiet`
    shows no progress. Raises `InputError` for a recipe that does not fit its data or a run folder in use, and
    `RunError` when the loss is not finite or memory runs out (the last checkpoint is kept).
    """
    if fast_dev_run:
        recipe = _shortened(recipe)
    overlap_pixels(recipe.window.size, recipe.window.overlap, recipe.context_factor)
    device = resolve_device(recipe.train.device)
    fabric = _launch(device, resolve_precision(recipe.train.precision, device))
    run_dir = Path(run_dir)
    _check_folder(recipe, run_dir, resume)
    fabric.barrier()  # nobody writes there while others still look
    with tempfile.TemporaryDirectory(prefix="uhrseg-train-") as scratch:
        rasters, val = split_rasters(recipe.data)
        scenes = load_scenes(
            rasters, recipe.data, recipe.context_factor, recipe.window.context, Path(scratch), recipe.train.in_memory
        )
        mean, std = band_statistics(scenes)
        chips = Chips(
            scenes, recipe.train, size=recipe.window.size, factor=recipe.context_factor, legend=recipe.data.legend,
            seed=recipe.seed, std=std,
        )  # fmt: skip
        state = _new_state(recipe, fabric)
        shares = class_shares(scenes, len(recipe.data.class_))
        if recipe.train.prior_bias:
            _start_from_shares(state.module, shares)
        if resume:
            load_checkpoint(fabric, state, run_dir)
        if fabric.is_global_zero:
            (run_dir / CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
            recipe.write(run_dir / "recipe.toml")
            if recipe.data.blocks:
                write_blocks(rasters, run_dir / "blocks.geojson")
        card = model_card(recipe, mean, std)
        _fit(fabric, recipe, state, chips, card, val, run_dir, quiet)
    if fabric.is_global_zero:
        _hand_over(recipe, state, card, len(scenes), run_dir)
    fabric.barrier()
    return run_dir / "model"


def _hand_over(recipe: Recipe, state: State, card: ModelCard, scenes: int, run_dir: Path) -> None:
    """Draw the curves and write ``model/``: the weights of the best validation or of the last step."""
    draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
    step, scores = state.step, state.scores
    if recipe.keeps_best and state.best is not None:
        step, scores = load_best(state, run_dir)
    write_model(state.module, with_training(card, recipe, step, scenes, scores), run_dir / "model")


def _fit(
    fabric: Fabric,
    recipe: Recipe,
    state: State,
    chips: Chips,
    card: ModelCard,
    val: Sequence[LabelledRaster],
    run_dir: Path,
    quiet: bool,
) -> None:
    """The loop over optimiser steps and epochs, from `state` to the end of the recipe."""
    settings = recipe.train
    total = settings.epochs * settings.steps_per_epoch
    batches = _batches(fabric, recipe, chips, state.step, total)
    network: Any = torch.compile(state.module) if settings.compile else state.module
    model, optimizer = fabric.setup(network, state.optimizer)
    step = Step(fabric, recipe, model, optimizer, card)
    columns = ["epoch", "step", "lr", *TERMS, "grad_norm", *_SPEED, *score_columns(card.legend.names)]
    with RunLog(run_dir, columns, state.step, state.epochs, total, fabric.is_global_zero, quiet) as log:
        while state.epochs < settings.epochs:
            while state.step < (state.epochs + 1) * settings.steps_per_epoch:
                model.train()
                started = time.perf_counter()
                passes = [fabric.to_device(next(batches)) for _ in range(settings.accumulate)]
                waited = time.perf_counter() - started
                lr = _set_lr(recipe, state, total)
                terms = _take(step, state, passes, chips, run_dir)
                speed = _speed(state, time.perf_counter() - started, waited)
                log.step({"step": state.step, "epoch": state.epochs, **terms, "lr": lr, **speed})
                if state.step % settings.checkpoint_every == 0:
                    save_checkpoint(fabric, state, run_dir)
            validated = bool(val) and _validates(recipe, state.epochs)
            if validated:
                save_checkpoint(fabric, state, run_dir)  # a validation that fails costs no training
                state.scores = validate(state.module, card, val, recipe, fabric, run_dir)
                save_best(fabric, state, run_dir)
                log.say(score_table(state.epochs, state.scores))
                if settings.schedule == "plateau":
                    state.plateau.step(state.scores["miou"] or 0.0)
            log.epoch(score_columns(card.legend.names, state.scores if validated else None))
            state.epochs += 1
    save_checkpoint(fabric, state, run_dir)


def _take(step: Step, state: State, passes: list[Chip], chips: Chips, run_dir: Path) -> dict[str, float]:
    """One optimiser step; returns its numbers. Raises `RunError`, the state kept, when it cannot be done."""
    try:
        terms = step.gradients(passes, state.step)
        step.update()
        state.step += 1
        return terms
    except NotFinite as error:
        message = describe_not_finite(step, state.module, passes, chips, error)
        raise RunError(f"{message}. {_KEPT}: lower train.lr, set train.clip_norm = 1, or use fp32") from error
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        clean = not step.updating
    # Outside the except block: its traceback held the tensors of the step.
    raise RunError(_out_of_memory(step, state, passes, run_dir, clean))


def _out_of_memory(step: Step, state: State, passes: list[Chip], run_dir: Path, clean: bool) -> str:
    """Save what there is, find out what fits, say both. Several processes: they wait for each other no more."""
    step.optimizer.zero_grad()
    release_memory()
    alone = step.fabric.world_size == 1
    if clean and alone:
        save_checkpoint(step.fabric, state, run_dir)
    kept = f"all {state.step} steps before are saved" if clean and alone else _KEPT
    fits = fitting_batch(step, state.module, passes[0])
    return describe_out_of_memory(len(passes[0]["labels"]), len(passes), fits, kept)


def _launch(device: torch.device, precision: str) -> Fabric:
    """Fabric on this machine's device, or on the processes that torchrun started."""
    local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=max(world // local, 1),
        # Processes wait for each other's validation scenes; torchrun notices a dead one by itself.
        strategy=DDPStrategy(timeout=timedelta(hours=6)) if world > 1 else "auto",
        precision=_FABRIC_PRECISION[precision],
    )
    fabric.launch()
    return fabric


def _batches(fabric: Fabric, recipe: Recipe, chips: Chips, start: int, stop: int) -> Iterator[Chip]:
    """This process' batches of steps `start` to `stop`, made by worker processes ahead of time."""
    settings = recipe.train
    keys = StepSampler(
        start, stop, settings.steps_per_epoch, settings.batch_size, settings.accumulate, fabric.global_rank,
        fabric.world_size,
    )  # fmt: skip
    # The loader's own generator: the network's random numbers must not depend on it.
    loader = DataLoader(
        chips,
        batch_sampler=keys,
        num_workers=settings.workers,
        prefetch_factor=4 if settings.workers else None,
        pin_memory=fabric.device.type == "cuda",
        generator=torch.Generator(),
    )
    return iter(loader)


def _new_state(recipe: Recipe, fabric: Fabric) -> State:
    torch.manual_seed(recipe.seed)
    data, settings = recipe.data, recipe.train
    module = models.build(
        **recipe.model.architecture, bands=len(data.band), classes=len(data.class_), size=recipe.window.size,
        pretrained=recipe.model.pretrained, context_factor=recipe.context_factor,
    ).to(fabric.device)  # fmt: skip
    if settings.activation_checkpointing:
        checkpoint_activations(module)
    # One kernel for all weights; the scaler of fp16 cannot clip gradients for it.
    fused = fabric.device.type == "cuda" and resolve_precision(settings.precision, fabric.device) != "fp16"
    optimizer = AdamW(module.parameters(), lr=settings.lr, weight_decay=settings.weight_decay, fused=fused or None)
    samples = settings.batch_size * settings.accumulate * fabric.world_size
    return State(module, optimizer, schedule.plateau(optimizer), samples)


def _start_from_shares(module: nn.Module, shares: NDArray[np.float64]) -> None:
    """Set the classifier's bias so that an untrained network predicts the class shares (Lin et al. 2017, section 4.1).

    Otherwise, with rare classes, the first hundreds of steps do nothing but learn them.
    """
    biases = [p for name, p in module.named_parameters() if name.endswith("bias") and p.shape == shares.shape]
    if not biases:
        raise InputError("train.prior_bias = true needs a head with a bias per class: set it to false")
    with torch.no_grad():
        biases[-1].copy_(torch.from_numpy(np.log(np.maximum(shares, 1e-4))))


def _set_lr(recipe: Recipe, state: State, total: int) -> float:
    """Set and return the rate of the coming step; after the warm-up a plateau schedule changes it itself."""
    settings = recipe.train
    warm = schedule.warmup_steps(total, settings.warmup)
    if settings.schedule == "cosine":
        schedule.set_lr(state.optimizer, schedule.cosine_lr(state.step, total, warm, settings.lr))
    elif state.step <= warm:
        schedule.set_lr(state.optimizer, schedule.warmup_lr(state.step, warm, settings.lr))
    return float(state.optimizer.param_groups[0]["lr"])


def _validates(recipe: Recipe, epoch: int) -> bool:
    every, last = recipe.train.val_every, epoch + 1 == recipe.train.epochs
    return last or (every > 0 and (epoch + 1) % every == 0)


def _speed(state: State, seconds: float, waited: float) -> dict[str, float]:
    """Samples per second of all processes, and the share of the step spent waiting for data."""
    return dict(zip(_SPEED, (state.step_samples / seconds, waited / seconds), strict=True))


def _shortened(recipe: Recipe) -> Recipe:
    """Two steps of two samples, for `fast_dev_run`."""
    short = {"epochs": 1, "steps_per_epoch": 2, "batch_size": min(recipe.train.batch_size, 2), "val_every": 1}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=short)})


def _check_folder(recipe: Recipe, run_dir: Path, resume: bool) -> None:
    """Refuse a folder in use, or, to resume, one without a checkpoint or of another recipe."""
    if not resume:
        if run_dir.exists() and any(run_dir.iterdir()):
            raise InputError(f"{run_dir} is not empty: choose another folder with -o, or go on with --resume")
        return
    if not (run_dir / CHECKPOINT).is_file():
        raise InputError(f"{run_dir} has no checkpoint to resume from: start it without --resume")
    written = run_dir / "recipe.toml"
    if _lasting(Recipe.read(written)) != _lasting(recipe):
        raise InputError(
            f"the recipe differs from that of the run: resume with {written}; only {', '.join(_FREE_TO_CHANGE)} of the "
            "train table may change"
        )


def _lasting(recipe: Recipe) -> dict[str, Any]:
    """What must be the same when a run goes on."""
    return recipe.model_dump(exclude={"train": set(_FREE_TO_CHANGE)})
