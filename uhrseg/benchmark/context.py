"""Suite ``context``: scaling strategies on ground where context decides, and on a control where it is worthless.

Every strategy trains the same small ViT from scratch on the same simulated scenes (`uhrseg.data.simulate`), with the
same number of steps and crops. The cue ``mark-near`` shows that what decides can be learned when it lies in the window,
``mark-beyond`` that nothing leaks from where no window reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from uhrseg.benchmark.datasets import train_run
from uhrseg.benchmark.rows import Results, Row
from uhrseg.benchmark.score import score_model
from uhrseg.data.simulate import CLASSES, CUES, write_dataset
from uhrseg.recipe import Recipe

__all__ = ["FULL", "QUICK", "STRATEGIES", "Size", "context", "context_recipe"]

WINDOW, FACTOR = 64, 8


@dataclass(frozen=True)
class Size:
    """How much is made and trained: optimiser steps of `batch` crops, scenes of `sites` x `sites` sites."""

    steps: int = 800
    batch: int = 32
    train: int = 8
    val: int = 2
    sites: int = 5


FULL, QUICK = Size(), Size(steps=2, batch=2, train=1, val=1, sites=2)

STRATEGIES: dict[str, dict[str, Any]] = {
    "sliding window": {"strategy": "single"},
    "registers": {"strategy": "registers"},
    "downsampling": {"strategy": "downsampling"},
    "decision fusion": {"strategy": "decision_fusion"},
    "relays, parallel": {"strategy": "relays", "order": "parallel"},
    "relays": {"strategy": "relays"},
}
"""The lines of the paper's Table 3, and the parallel relays of its Table 7."""


def context_recipe(cue: str, root: Path, model: dict[str, Any], seed: int, size: Size = FULL) -> Recipe:
    """The recipe of one line: a ViT of 0.7 M parameters with patches of 8 px, from scratch."""
    classes = [{"id": i, "name": name, "color": color} for i, (name, color) in enumerate(CLASSES)]
    relief = [{"name": f"relief_{r}m", "kind": "relief", "source": "dtm", "radius_m": float(r)} for r in (8, 40)]
    return Recipe.model_validate(
        {
            "name": f"context-{cue}",
            "seed": seed,
            "data": {
                "root": str(root), "train": ["train/*_dtm.tif"], "val": ["val/*_dtm.tif"], "labels": "{name}_mask.tif",
                "gsd_m": 1.0, "background": 0, "band": relief, "class": classes,
            },
            "model": {"trunk": "vit_s", "embed_dim": 96, "depth": 6, "heads": 3, "patch_size": 8, **model},
            "window": {"size": WINDOW, "context_factor": FACTOR, "overlap": 0.25},
            "train": {
                "epochs": max(1, size.steps // 50), "steps_per_epoch": min(50, size.steps), "batch_size": size.batch,
                "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine", "val_every": 0, "workers": 0, "clip_norm": 1.0,
                "prior_bias": True, "flips": True, "scale_probability": 0.0, "rotate_probability": 0.0,
                "balanced_centres": 0.9,
            },
            "loss": {"global_weight": 0.5, "dice_weight": 0.5, "class_weights": [0.1, 1.0, 1.0, 0.5]},
        }
    )  # fmt: skip


def context(
    cues: Sequence[str], strategies: Sequence[str], seeds: Sequence[int], results: Results, size: Size = FULL
) -> Iterator[Row]:
    """One row per cue, strategy and seed that the results do not hold yet; runs and scenes are kept in the folder."""
    for cue in cues:
        root = results.folder / "scenes" / cue
        if not root.exists():
            simulation, draft = CUES[cue](WINDOW, FACTOR), root.with_name(f".{cue}")
            write_dataset(simulation, draft, seed=1, train=size.train, val=size.val, sites=size.sites).rename(root)
        for seed in seeds:
            for strategy in strategies:
                if (f"context: {cue}", strategy, seed) not in results:
                    yield _row(cue, root, strategy, seed, results.folder / "runs", size)


def _row(cue: str, root: Path, strategy: str, seed: int, runs: Path, size: Size) -> Row:
    recipe = context_recipe(cue, root, STRATEGIES[strategy], seed, size)
    run = runs / f"{cue}-{strategy.replace(', ', '-').replace(' ', '-')}-{seed}"
    return score_model(train_run(recipe, run), recipe, "val", suite=f"context: {cue}", name=strategy, seed=seed)
