"""Suite ``context``: scaling strategies on ground where context decides, and on a control where it is worthless.

Every strategy trains the same small ViT from scratch on the same simulated scenes (`uhrseg.data.simulate`), with the
same number of steps and crops. The cue ``mark-near`` shows that what decides can be learned when it lies in the window,
``mark-beyond`` that nothing leaks from where no window reaches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uhrseg.benchmark.datasets import train_run
from uhrseg.benchmark.rows import Results, Row, slug
from uhrseg.benchmark.score import score_model
from uhrseg.data.simulate import CLASSES, CUES, write_dataset
from uhrseg.overrides import apply_override
from uhrseg.recipe import Recipe

__all__ = [
    "EXPERIMENTS", "SIZES", "STRATEGIES", "Changes", "Size", "Suite", "context", "context_recipe",
]  # fmt: skip


@dataclass(frozen=True)
class Size:
    """How much is made and trained, and with what window pair and ViT."""

    steps: int = 800  # optimiser steps of `batch` crops
    batch: int = 32
    train: int = 8  # scenes of `sites` x `sites` sites
    val: int = 2
    sites: int = 5
    window: int = 64
    factor: int = 8
    patch: int = 8
    width: int = 96
    depth: int = 6
    heads: int = 3
    lr: float = 1e-3
    workers: int = 0


SIZES: dict[str, Size] = {
    "small": Size(),
    "quick": Size(steps=2, batch=2, train=1, val=1, sites=2),
    "long": Size(steps=1200, batch=128, train=24, val=4, workers=2),
    "large": Size(
        steps=2000, train=24, val=2, window=256, factor=4, patch=16, width=384, depth=12, heads=6, lr=5e-4, workers=2
    ),
}
"""``small`` for a CPU; for a GPU ``long``, the same network with six times the crops and three times the ground, and
``large``, the paper's ViT-S and windows; ``quick`` to see that everything works."""

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

ORACLE: dict[str, Changes] = {"all of the context in full detail": {"model": {"strategy": "single"}}}
"""What a window as wide as the context, of pixels that are not shrunk, can learn."""

EXPERIMENTS: dict[str, tuple[str, dict[str, Changes]]] = {
    **{cue: (cue, STRATEGIES) for cue in CUES},
    "relay-count": ("mark", RELAY_COUNTS),
    "losses": ("mark", LOSSES),
    "oracle": ("mark", ORACLE),
    "oracle-dyke": ("dyke", ORACLE),
    "oracle-moat": ("moat", ORACLE),
}
"""What ``--table`` chooses from: a cue and the lines that are trained on it."""


def context_recipe(
    cue: str, root: Path, changes: Changes, seed: int, size: Size = SIZES["small"], overrides: Sequence[str] = ()
) -> Recipe:
    """The recipe of one line: a ViT from scratch, of 0.7 M parameters (small, long) or 22 M (large).

    overrides: ``table.key=value``, for every line.
    """
    classes = [{"id": i, "name": name, "color": color} for i, (name, color) in enumerate(CLASSES)]
    relief = [{"name": f"relief_{r}m", "kind": "relief", "source": "dtm", "radius_m": float(r)} for r in (8, 40)]
    table: dict[str, Any] = {
        "name": f"context-{cue}",
        "seed": seed,
        "data": {
            "root": str(root), "train": ["train/*_dtm.tif"], "val": ["val/*_dtm.tif"], "labels": "{name}_mask.tif",
            "gsd_m": 1.0, "background": 0, "band": relief, "class": classes,
        },
        "model": {
            "trunk": "vit_s", "embed_dim": size.width, "depth": size.depth, "heads": size.heads,
            "patch_size": size.patch,
        },
        "window": {"size": size.window, "context_factor": size.factor, "overlap": 0.25},
        "train": {
            "epochs": max(1, size.steps // 50), "steps_per_epoch": min(50, size.steps), "batch_size": size.batch,
            "lr": size.lr, "weight_decay": 0.01, "schedule": "cosine", "val_every": 0, "workers": size.workers,
            "clip_norm": 1.0, "prior_bias": True, "flips": True, "scale_probability": 0.0, "rotate_probability": 0.0,
            "balanced_centres": 0.9, "in_memory": size.workers > 0,
        },
        "loss": {"global_weight": 0.5, "dice_weight": 0.5, "class_weights": [0.1, 1.0, 1.0, 0.5]},
    }  # fmt: skip
    for name, values in changes.items():
        table[name] = {**table[name], **values}
    for text in overrides:
        apply_override(table, text)
    return Recipe.model_validate(table)


@dataclass(frozen=True)
class Suite:
    """One table: an experiment (see `EXPERIMENTS`) at a size (see `SIZES`), with changes for every recipe."""

    experiment: str
    size: str = "small"
    overrides: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """What its rows are called; whatever makes them another table is in it."""
        size = "" if self.size == "small" else f", {self.size}"
        changed = f" ({', '.join(self.overrides)})" if self.overrides else ""
        return f"context{size}: {self.experiment}{changed}"

    @property
    def lines(self) -> dict[str, Changes]:
        """Names and changes of the lines."""
        return EXPERIMENTS[self.experiment][1]

    def scenes(self, folder: Path) -> Path:
        """The folder of its scenes, made unless they are there."""
        cue, size = EXPERIMENTS[self.experiment][0], SIZES[self.size]
        root = folder / "scenes" / (cue if self.size == "small" else f"{cue}-{self.size}")
        if not root.exists():
            simulation, draft = CUES[cue](size.window, size.factor), root.with_name(f".{root.name}")
            write_dataset(simulation, draft, seed=1, train=size.train, val=size.val, sites=size.sites).rename(root)
        return root

    def recipe(self, line: str, seed: int, folder: Path) -> Recipe:
        """The recipe of a line."""
        cue, size = EXPERIMENTS[self.experiment][0], SIZES[self.size]
        if self.lines is ORACLE:  # as many pixels as the context covers: wider windows, fewer at once
            wide = size.window * size.factor
            size = replace(size, window=wide, patch=2 * size.patch, batch=max(size.batch // 4, 1))
        return context_recipe(cue, self.scenes(folder), self.lines[line], seed, size, self.overrides)

    def row(self, line: str, seed: int, folder: Path) -> Row:
        """Train a line, or find it trained, and score it."""
        recipe = self.recipe(line, seed, folder)
        words = f"{self.size} {EXPERIMENTS[self.experiment][0]} {line} {seed} {' '.join(self.overrides)}"
        model = train_run(recipe, folder / "runs" / slug(words))
        return score_model(
            model, recipe, "val", suite=self.name, name=line, seed=seed, pictures=folder / "pictures"
        )


def context(
    suites: Sequence[Suite], seeds: Sequence[int], results: Results, lines: Sequence[str] | None = None
) -> Iterator[Row]:
    """One row per suite, line and seed that the results do not hold yet; runs and scenes are kept in the folder.

    lines: of the suites, these only (None: all).
    """
    for suite in suites:
        for seed in seeds:
            for line in suite.lines if lines is None else lines:
                if (suite.name, line, seed) not in results:
                    yield suite.row(line, seed, results.folder)
