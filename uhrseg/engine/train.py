"""Training: the loop, visible in one file.

A run is a function of its recipe. Samples depend on (seed, epoch, index) and the random numbers of the network on
(seed, step, process), so a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
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
from uhrseg.engine.checkpoint import CHECKPOINT, State, load_checkpoint, save_checkpoint
from uhrseg.engine.device import resolve_device, resolve_precision
from uhrseg.engine.losses import Losses, loss_normalisers, relay_loss
from uhrseg.engine.runlog import RunLog
from uhrseg.engine.trained import model_card, with_training, write_model
from uhrseg.engine.validate import reduced, score_columns, score_line, validate
from uhrseg.errors import InputError, RunError
from uhrseg.geo.plan import overlap_pixels
from uhrseg.recipe import Recipe
from uhrseg.report.curves import draw_curves

__all__ = ["train"]

_FABRIC_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_SPEED = ("samples_per_s", "data_wait")
_TERMS = ("loss", "local", "global", "consistency", "dice")


def train(recipe: Recipe, run_dir: Path, resume: bool = False, fast_dev_run: bool = False) -> Path:
    """Train `recipe` into `run_dir` and return the model folder, ready for `predict`.

    `resume` goes on from ``checkpoints/last``; `fast_dev_run` does two small steps to see that all of it works. Raises
    `InputError` for a recipe that does not fit its data or a run folder in use, and `RunError` when the loss is not
    finite (the last checkpoint is kept).
    """
    if fast_dev_run:
        recipe = _shortened(recipe)
    overlap_pixels(recipe.window.size, recipe.window.overlap, recipe.context_factor)
    device = resolve_device(recipe.train.device)
    fabric = _launch(device, resolve_precision(recipe.train.precision, device))
    run_dir = Path(run_dir)
    _check_folder(recipe, run_dir, resume)
    with tempfile.TemporaryDirectory(prefix="uhrseg-train-") as scratch:
        rasters, val = split_rasters(recipe.data)
        scenes = load_scenes(rasters, recipe.data, recipe.context_factor, recipe.window.context, Path(scratch))
        mean, std = band_statistics(scenes)
        chips = Chips(
            scenes, recipe.train, size=recipe.window.size, factor=recipe.context_factor, legend=recipe.data.legend,
            seed=recipe.seed, std=std,
        )  # fmt: skip
        state = _new_state(recipe, fabric.device)
        shares = class_shares(scenes, len(recipe.data.class_))
        if recipe.train.prior_bias:
            _start_from_shares(state.module, shares)
        if resume:
            load_checkpoint(state, run_dir)
        if fabric.is_global_zero:
            (run_dir / CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
            recipe.write(run_dir / "recipe.toml")
            if recipe.data.blocks:
                write_blocks(rasters, run_dir / "blocks.geojson")
        card = model_card(recipe, mean, std)
        _fit(fabric, recipe, state, chips, card, val, run_dir)
    if fabric.is_global_zero:
        draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
        write_model(state.module, with_training(card, recipe, state.step, len(scenes), state.scores), run_dir / "model")
    fabric.barrier()
    return run_dir / "model"


def _fit(
    fabric: Fabric,
    recipe: Recipe,
    state: State,
    chips: Chips,
    card: ModelCard,
    val: Sequence[LabelledRaster],
    run_dir: Path,
) -> None:
    """The loop over optimiser steps and epochs, from `state` to the end of the recipe."""
    settings = recipe.train
    total = settings.epochs * settings.steps_per_epoch
    batches = _batches(fabric, recipe, chips, state.step, total)
    scale = _Scale(card, fabric.device)
    model, optimizer = fabric.setup(state.module, state.optimizer)
    columns = ["epoch", "step", "lr", *_TERMS, *_SPEED, *score_columns(card.legend.names)]
    with RunLog(run_dir, columns, state.step, state.epochs, total, fabric.is_global_zero) as log:
        while state.epochs < settings.epochs:
            while state.step < (state.epochs + 1) * settings.steps_per_epoch:
                model.train()
                started = time.perf_counter()
                passes = [fabric.to_device(next(batches)) for _ in range(settings.accumulate)]
                waited = time.perf_counter() - started
                lr = _set_lr(recipe, state, total)
                terms = _step(fabric, recipe, model, optimizer, passes, scale, state.step)
                state.step += 1
                speed = _speed(recipe, fabric, time.perf_counter() - started, waited)
                log.step({"step": state.step, "epoch": state.epochs, **terms, "lr": lr, **speed})
                if state.step % settings.checkpoint_every == 0:
                    save_checkpoint(fabric, state, run_dir)
            validated = bool(val) and _validates(recipe, state.epochs)
            if validated:
                save_checkpoint(fabric, state, run_dir)  # a validation that fails costs no training
                state.scores = validate(state.module, card, val, recipe, fabric)
                log.say(score_line(state.epochs, state.scores))
                if settings.schedule == "plateau":
                    state.plateau.step(state.scores["miou"] or 0.0)
            log.epoch(score_columns(card.legend.names, state.scores if validated else None))
            state.epochs += 1
    save_checkpoint(fabric, state, run_dir)


def _step(
    fabric: Fabric,
    recipe: Recipe,
    model: Any,
    optimizer: Any,
    passes: list[Chip],
    scale: _Scale,
    step: int,
) -> dict[str, float]:
    """One optimiser step over the passes; returns the terms of the loss of the whole step, all processes together."""
    _seed_network(recipe.seed, step, fabric.global_rank)
    labels = [batch["labels"].long() for batch in passes]
    weights = _class_weights(recipe, fabric.device)
    classes, factor, ignore = len(recipe.data.class_), recipe.context_factor, recipe.data.ignore
    counts = torch.stack([loss_normalisers(y, classes, factor, ignore, weights) for y in labels]).sum(0)
    # DDP averages gradients over processes: each divides by its share of the step's counts.
    counts = reduced(fabric, counts)
    sums = torch.zeros(len(_TERMS), device=fabric.device)
    for i, (batch, y) in enumerate(zip(passes, labels, strict=True)):
        with fabric.no_backward_sync(model, enabled=i < len(passes) - 1):
            output = model(scale(batch["local"]), scale(batch["context"]) if "context" in batch else None)
            losses = relay_loss(
                output, y, factor, ignore, recipe.loss.global_weight, recipe.loss.consistency_weight, weights,
                recipe.loss.dice_weight / len(passes), counts,
            )  # fmt: skip
            fabric.backward(losses.total)
        sums += torch.stack(losses).detach()
    sums[-1] /= len(passes)  # Dice is a mean over passes
    sums = reduced(fabric, sums)
    if not torch.isfinite(sums).all():
        raise RunError(_not_finite(passes, Losses(*sums), step))
    if recipe.train.clip_norm:
        fabric.clip_gradients(model, optimizer, max_norm=recipe.train.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return dict(zip(_TERMS, sums.tolist(), strict=True))


class _Scale:
    """Subtracts the card's mean and divides by its deviation, on the device."""

    def __init__(self, card: ModelCard, device: torch.device) -> None:
        self.mean = torch.tensor([b.mean for b in card.input.band], device=device).view(-1, 1, 1)
        self.factor = torch.tensor([1 / b.std for b in card.input.band], device=device).view(-1, 1, 1)

    def __call__(self, windows: Tensor) -> Tensor:
        return (windows - self.mean) * self.factor  # (B, C, S, S)


def _launch(device: torch.device, precision: str) -> Fabric:
    """Fabric on this machine's device, or on the processes that torchrun started."""
    local, world = (int(os.environ.get(name, "1")) for name in ("LOCAL_WORLD_SIZE", "WORLD_SIZE"))
    fabric = Fabric(
        accelerator=device.type,
        devices=local,
        num_nodes=max(world // local, 1),
        strategy="ddp" if world > 1 else "auto",
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


def _new_state(recipe: Recipe, device: torch.device) -> State:
    torch.manual_seed(recipe.seed)
    data = recipe.data
    module = models.build(
        **recipe.model.architecture, bands=len(data.band), classes=len(data.class_), size=recipe.window.size,
        pretrained=recipe.model.pretrained, context_factor=recipe.context_factor,
    ).to(device)  # fmt: skip
    optimizer = AdamW(module.parameters(), lr=recipe.train.lr, weight_decay=recipe.train.weight_decay)
    return State(module, optimizer, schedule.plateau(optimizer))


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


def _seed_network(seed: int, step: int, rank: int) -> None:
    """Random numbers of the network (drop path) for one step of one process."""
    torch.manual_seed(int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> np.uint64(1)))


def _class_weights(recipe: Recipe, device: torch.device) -> Tensor | None:
    weights = recipe.loss.class_weights
    return None if weights is None else torch.tensor(weights, device=device)


def _not_finite(passes: list[Chip], terms: Losses, step: int) -> str:
    keys = [tuple(key) for batch in passes for key in batch["key"].tolist()]
    wrong = [name for name, value in zip(_TERMS, terms, strict=True) if not torch.isfinite(value)]
    return (
        f"the loss of step {step + 1} is not finite ({', '.join(wrong)}), samples (epoch, index) {keys[0]} to "
        f"{keys[-1]}; the last checkpoint is kept: lower train.lr, set train.clip_norm = 1, or use precision fp32"
    )


def _validates(recipe: Recipe, epoch: int) -> bool:
    every, last = recipe.train.val_every, epoch + 1 == recipe.train.epochs
    return last or (every > 0 and (epoch + 1) % every == 0)


def _speed(recipe: Recipe, fabric: Fabric, seconds: float, waited: float) -> dict[str, float]:
    """Samples per second of all processes, and the share of the step spent waiting for data."""
    samples = recipe.train.batch_size * recipe.train.accumulate * fabric.world_size
    return dict(zip(_SPEED, (samples / seconds, waited / seconds), strict=True))


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
    if Recipe.read(written) != recipe:
        raise InputError(f"the recipe differs from that of the run: resume with {written} and no --set")
