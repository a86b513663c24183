"""Training: the loop, visible in one file.

A run is a function of its recipe. Samples depend on (seed, epoch, index) and the random numbers of the network on
(seed, step, process), so a run that was killed goes on from its last checkpoint as if nothing had happened.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from uhrseg import models
from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec, sha256_of
from uhrseg.data.chips import Chip, Chips
from uhrseg.data.datasets import LabelledRaster, find_rasters
from uhrseg.data.sampling import StepSampler
from uhrseg.data.scenes import band_statistics, labels_on, load_scenes
from uhrseg.engine import schedule
from uhrseg.engine.device import resolve_device, resolve_precision
from uhrseg.engine.losses import Losses, loss_normalisers, relay_loss
from uhrseg.engine.predict import predict_labels
from uhrseg.engine.runlog import RunLog
from uhrseg.engine.score import Confusion
from uhrseg.errors import InputError, RunError
from uhrseg.geo.plan import overlap_pixels
from uhrseg.geo.scene import Scene
from uhrseg.recipe import Recipe
from uhrseg.report.curves import draw_curves

__all__ = ["train", "validate"]

_FABRIC_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
_TERMS = ("loss", "local", "global", "consistency", "dice")
_UNKNOWN_SHA = "0" * 64  # of a card whose weights are not written yet


@dataclass
class State:
    """Everything that changes while training."""

    module: nn.Module
    optimizer: AdamW
    plateau: ReduceLROnPlateau
    step: int = 0  # optimiser steps done


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
    _prepare_folder(recipe, run_dir, resume, fabric)
    rasters = find_rasters(recipe.data, "train")
    scenes = load_scenes(rasters, recipe.data, recipe.context_factor, recipe.window.context, run_dir)
    val = find_rasters(recipe.data, "val") if recipe.data.val else []
    mean, std = band_statistics(scenes)
    chips = Chips(
        scenes, recipe.train, size=recipe.window.size, factor=recipe.context_factor, ignore=recipe.data.ignore,
        seed=recipe.seed, std=std,
    )  # fmt: skip
    state = _new_state(recipe, fabric.device)
    if resume:
        _load_checkpoint(state, run_dir / "checkpoints" / "last")
    card = model_card(recipe, mean, std)
    scores = _fit(fabric, recipe, state, chips, card, val, run_dir)
    if fabric.is_global_zero:
        _write_model(state.module, _with_training(card, recipe, state, len(scenes), scores), run_dir / "model")
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
) -> dict[str, Any] | None:
    """The loop over optimiser steps; returns the last validation's scores."""
    settings, scores = recipe.train, None
    total = settings.epochs * settings.steps_per_epoch
    batches = _batches(fabric, recipe, chips, state.step, total)
    scale = _Scale(card, fabric.device)
    model, optimizer = fabric.setup(state.module, state.optimizer)
    model.train()
    names = [f"val_iou_{name}" for name in card.legend.names]
    columns = ["epoch", "step", "lr", *_TERMS, "samples_per_s", "data_wait", "val_miou", *names]
    epoch_records: list[dict[str, float]] = []
    with RunLog(run_dir, columns, state.step, total, fabric.is_global_zero) as log:
        while state.step < total:
            started = time.perf_counter()
            passes = [fabric.to_device(next(batches)) for _ in range(settings.accumulate)]
            waited = time.perf_counter() - started
            lr = _set_lr(recipe, state, total)
            terms = _step(fabric, recipe, model, optimizer, passes, scale, state.step)
            state.step += 1
            seconds = time.perf_counter() - started
            samples = settings.batch_size * settings.accumulate * fabric.world_size
            epoch = (state.step - 1) // settings.steps_per_epoch
            record = {"step": state.step, "epoch": epoch, **terms, "lr": lr,
                      "samples_per_s": samples / seconds, "data_wait": waited / seconds}  # fmt: skip
            log.step(record)
            epoch_records.append(record)
            if state.step % settings.steps_per_epoch == 0:
                row = {key: float(np.mean([r[key] for r in epoch_records])) for key in columns if key in record}
                row |= {"epoch": epoch, "step": state.step, "lr": lr}
                epoch_records = []
                if val and _validates(recipe, epoch):
                    scores = validate(state.module, card, val, recipe, fabric)
                    model.train()
                    row |= _score_columns(scores)
                    log.say(_score_line(epoch, scores))
                    if settings.schedule == "plateau":
                        state.plateau.step(scores["miou"] or 0.0)
                log.epoch(row)
            if state.step % settings.checkpoint_every == 0 or state.step == total:
                _save_checkpoint(fabric, state, run_dir / "checkpoints" / "last")
    if fabric.is_global_zero:
        draw_curves(run_dir / "metrics.csv", run_dir / "curves.png")
    return scores


def _step(
    fabric: Fabric,
    recipe: Recipe,
    model: nn.Module,
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
    counts = _reduced(fabric, counts)
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
    sums = _reduced(fabric, sums)
    if not torch.isfinite(sums).all():
        raise RunError(_not_finite(passes, Losses(*sums), step))
    if recipe.train.clip_norm:
        fabric.clip_gradients(model, optimizer, max_norm=recipe.train.clip_norm)
    optimizer.step()
    optimizer.zero_grad()
    return dict(zip(_TERMS, sums.tolist(), strict=True))


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
    counts = _reduced(fabric, counts, "sum").cpu()
    confusion.matrix = counts[:-1].reshape(confusion.matrix.shape).numpy()
    confusion.unpredicted = int(counts[-1])
    return confusion.scores(card.legend)


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
        pretrained=recipe.model.pretrained,
    ).to(device)  # fmt: skip
    optimizer = AdamW(module.parameters(), lr=recipe.train.lr, weight_decay=recipe.train.weight_decay)
    return State(module, optimizer, schedule.plateau(optimizer))


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


def _reduced(fabric: Fabric, values: Tensor, how: str = "mean") -> Tensor:
    reduced = fabric.all_reduce(values, reduce_op=how)
    assert isinstance(reduced, Tensor)
    return reduced


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


def _score_columns(scores: dict[str, Any]) -> dict[str, float | None]:
    return {"val_miou": scores["miou"]} | {f"val_iou_{n}": c["iou"] for n, c in scores["classes"].items()}


def _score_line(epoch: int, scores: dict[str, Any]) -> str:
    parts = [f"{name} {c['iou']:.3f}" for name, c in scores["classes"].items() if c["iou"] is not None]
    return f"epoch {epoch}: mean IoU {scores['miou'] or float('nan'):.3f} ({', '.join(parts)}; {scores['miou_rule']})"


def _shortened(recipe: Recipe) -> Recipe:
    """Two steps of two samples, for `fast_dev_run`."""
    short = {"epochs": 1, "steps_per_epoch": 2, "batch_size": min(recipe.train.batch_size, 2), "val_every": 1}
    return recipe.model_copy(update={"train": recipe.train.model_copy(update=short)})


def _prepare_folder(recipe: Recipe, run_dir: Path, resume: bool, fabric: Fabric) -> None:
    """Create the run folder with its resolved recipe, or check that the one to resume is this recipe's."""
    written = run_dir / "recipe.toml"
    if resume:
        if not (run_dir / "checkpoints" / "last").is_file():
            raise InputError(f"{run_dir} has no checkpoint to resume from: start it without --resume")
        if Recipe.read(written) != recipe:
            raise InputError(f"the recipe differs from that of the run: resume with {written} and no --set")
    elif fabric.is_global_zero:
        if run_dir.exists() and any(run_dir.iterdir()):
            raise InputError(f"{run_dir} is not empty: choose another folder with -o, or go on with --resume")
        (run_dir / "checkpoints").mkdir(parents=True, exist_ok=True)
        recipe.write(written)
    fabric.barrier()


def _save_checkpoint(fabric: Fabric, state: State, path: Path) -> None:
    """Write beside `path` and rename: the last checkpoint is always whole."""
    if fabric.is_global_zero:
        content = {
            "module": state.module.state_dict(),
            "optimizer": state.optimizer.state_dict(),
            "plateau": state.plateau.state_dict(),
            "step": state.step,
        }
        partial = path.with_name("last.partial")
        try:
            torch.save(content, partial)
            os.replace(partial, path)
        except (OSError, RuntimeError) as error:
            partial.unlink(missing_ok=True)
            raise RunError(f"the checkpoint {path} cannot be written ({error}); the one before it is kept") from error
    fabric.barrier()


def _load_checkpoint(state: State, path: Path) -> None:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state.module.load_state_dict(content["module"])
        state.optimizer.load_state_dict(content["optimizer"])
        state.plateau.load_state_dict(content["plateau"])
        state.step = content["step"]
    except (OSError, RuntimeError, KeyError, ValueError) as error:
        raise RunError(f"the checkpoint {path} cannot be read: {error}") from error


def model_card(recipe: Recipe, mean: NDArray[np.float64], std: NDArray[np.float64]) -> ModelCard:
    """The card of a recipe's model, its bands scaled by the training scenes' statistics; weights not yet hashed."""
    bands: Sequence[BandSpec] = [
        band.model_copy(update={"mean": float(m), "std": float(s)})
        for band, m, s in zip(recipe.data.band, mean, std, strict=True)
    ]
    window: WindowSpec = recipe.window.model_copy(update={"context_factor": recipe.context_factor})
    classes: tuple[ClassSpec, ...] = recipe.data.class_
    return ModelCard(
        name=recipe.name, license=recipe.license, description=recipe.description, citation=recipe.citation,
        architecture=recipe.model.architecture, input=InputSpec(gsd_m=recipe.data.gsd_m, band=tuple(bands)),
        window=window, class_=classes, background=recipe.data.background, ignore=recipe.data.ignore,
        weights=WeightsSpec(sha256=_UNKNOWN_SHA),
    )  # fmt: skip


def _with_training(
    card: ModelCard, recipe: Recipe, state: State, scenes: int, scores: dict[str, Any] | None
) -> ModelCard:
    """The card with how it was trained and what the last validation gave."""
    settings = recipe.train
    training: dict[str, Any] = {
        "recipe": recipe.name,
        "seed": recipe.seed,
        "scenes": scenes,
        "steps": state.step,
        "samples": state.step * settings.batch_size * settings.accumulate,
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


def _write_model(module: nn.Module, card: ModelCard, folder: Path) -> None:
    """Write the model folder beside its place and swap it in."""
    partial, old = folder.with_name("model.partial"), folder.with_name("model.old")
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
