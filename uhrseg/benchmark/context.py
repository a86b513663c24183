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

__all__ = ["EXPERIMENTS", "FULL", "QUICK", "STRATEGIES", "Changes", "Size", "context", "context_recipe"]

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

Changes = dict[str, dict[str, Any]]
"""What a line changes in the recipe, table by table."""

STRATEGIES: dict[str, Changes] = {
    "sliding window": {"model": {"strategy": "single"}},
    "registers": {"model": {"strategy": "registers"}},
    "downsampling": {"model": {"strategy": "downsampling"}},
    "decision fusion": {"model": {"strategy": "decision_fusion"}},
    "relays, parallel": {"model": {"strategy": "relays", "order": "parallel"}},
    "relays": {"model": {"strategy": "relays"}},
}
"""The lines of the paper's Table 3, and the parallel relays of its Table 7."""

RELAY_COUNTS: dict[str, Changes] = {
    "0 relays": {"model": {"strategy": "single"}},
    **{f"{n} relay{'s' * (n > 1)}": {"model": {"strategy": "relays", "relays": n}} for n in (1, 2, 4, 8)},
}
"""The paper's Figure 7."""

LOSSES: dict[str, Changes] = {
    "both losses": {"model": {"strategy": "relays"}},
    "no consistency loss": {"model": {"strategy": "relays"}, "loss": {"consistency_weight": 0.0}},
    "no global loss": {"model": {"strategy": "relays"}, "loss": {"global_weight": 0.0}},
    "neither loss": {"model": {"strategy": "relays"}, "loss": {"consistency_weight": 0.0, "global_weight": 0.0}},
}
"""The losses of the paper's Table 6."""

ORACLE: dict[str, Changes] = {
    "all of the context in full detail": {
        "model": {"strategy": "single", "patch_size": 16},
        "window": {"size": WINDOW * FACTOR},
        "train": {"batch_size": 8},
    }
}
"""What a window as wide as the context, of pixels that are not shrunk, can learn: 64 times the pixels a sample."""

EXPERIMENTS: dict[str, tuple[str, dict[str, Changes]]] = {
    **{cue: (cue, STRATEGIES) for cue in CUES},
    "relay-count": ("mark", RELAY_COUNTS),
    "losses": ("mark", LOSSES),
    "oracle": ("mark", ORACLE),
}
"""What ``--table`` chooses from: a cue and the lines that are trained on it."""


def context_recipe(cue: str, root: Path, changes: Changes, seed: int, size: Size = FULL) -> Recipe:
    """The recipe of one line: a ViT of 0.7 M parameters with patches of 8 px, from scratch."""
    classes = [{"id": i, "name": name, "color": color} for i, (name, color) in enumerate(CLASSES)]
    relief = [{"name": f"relief_{r}m", "kind": "relief", "source": "dtm", "radius_m": float(r)} for r in (8, 40)]
    table: dict[str, Any] = {
        "name": f"context-{cue}",
        "seed": seed,
        "data": {
            "root": str(root), "train": ["train/*_dtm.tif"], "val": ["val/*_dtm.tif"], "labels": "{name}_mask.tif",
            "gsd_m": 1.0, "background": 0, "band": relief, "class": classes,
        },
        "model": {"trunk": "vit_s", "embed_dim": 96, "depth": 6, "heads": 3, "patch_size": 8},
        "window": {"size": WINDOW, "context_factor": FACTOR, "overlap": 0.25},
        "train": {
            "epochs": max(1, size.steps // 50), "steps_per_epoch": min(50, size.steps), "batch_size": size.batch,
            "lr": 1e-3, "weight_decay": 0.01, "schedule": "cosine", "val_every": 0, "workers": 0, "clip_norm": 1.0,
            "prior_bias": True, "flips": True, "scale_probability": 0.0, "rotate_probability": 0.0,
            "balanced_centres": 0.9,
        },
        "loss": {"global_weight": 0.5, "dice_weight": 0.5, "class_weights": [0.1, 1.0, 1.0, 0.5]},
    }  # fmt: skip
    for name, values in changes.items():
        table[name] = {**table[name], **values}
    return Recipe.model_validate(table)


def context(
    experiments: Sequence[str],
    seeds: Sequence[int],
    results: Results,
    size: Size = FULL,
    lines: Sequence[str] | None = None,
) -> Iterator[Row]:
    """One row per experiment, line and seed that the results do not hold yet; runs and scenes are kept in the folder.

    experiments: names in `EXPERIMENTS`. lines: of them, these only (None: all).
    """
    for experiment in experiments:
        cue, changes = EXPERIMENTS[experiment]
        root = results.folder / "scenes" / cue
        if not root.exists():
            simulation, draft = CUES[cue](WINDOW, FACTOR), root.with_name(f".{cue}")
            write_dataset(simulation, draft, seed=1, train=size.train, val=size.val, sites=size.sites).rename(root)
        for seed in seeds:
            for line in changes if lines is None else lines:
                if (f"context: {experiment}", line, seed) not in results:
                    yield _row(experiment, root, line, seed, results.folder, size)


def _row(experiment: str, root: Path, line: str, seed: int, folder: Path, size: Size) -> Row:
    cue, changes = EXPERIMENTS[experiment]
    recipe = context_recipe(cue, root, changes[line], seed, size)
    run = folder / "runs" / f"{cue}-{line.replace(', ', '-').replace(' ', '-')}-{seed}"
    model = train_run(recipe, run)
    return score_model(
        model, recipe, "val", suite=f"context: {experiment}", name=line, seed=seed, pictures=folder / "pictures"
    )
