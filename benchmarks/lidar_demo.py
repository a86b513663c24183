"""The shipped model's evidence: SwinV2 with and without relays, three seeds each, scored on stitched val rasters.

    python benchmarks/lidar_demo.py --data FOLDER --runs runs        # trains what is missing, resumes what was stopped
    python benchmarks/lidar_demo.py --data FOLDER --runs runs --ship # then packs the first relay run as swinv2-relay

Every run is `uhrseg train recipes/lidar_demo.toml` with a seed and a strategy. The schedule is fixed and the last
checkpoint counts; val is looked at once, at the end.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
from pathlib import Path

import numpy as np

from uhrseg import models
from uhrseg.card import ModelCard, WeightsSpec, sha256_of
from uhrseg.data.datasets import find_rasters
from uhrseg.data.scenes import labels_on
from uhrseg.engine.fit import load_model
from uhrseg.engine.predict import predict_labels
from uhrseg.engine.score import Confusion
from uhrseg.engine.train import train
from uhrseg.geo.scene import Scene
from uhrseg.recipe import Recipe

ROOT = Path(__file__).resolve().parents[1]
RECIPE = ROOT / "recipes" / "lidar_demo.toml"
SHIPPED = ROOT / "uhrseg" / "weights" / "swinv2-relay"
STRATEGIES, SEEDS = ("relays", "single"), (42, 43, 44)


def run(strategy: str, seed: int, options: argparse.Namespace) -> Path:
    """Train one row, or go on with it; returns its model folder."""
    folder = options.runs / f"{strategy}-{seed}"
    if (folder / "model" / "card.toml").is_file():
        return folder / "model"
    overrides = [f"data.root={options.data}", f"model.strategy={strategy}", f"seed={seed}", *options.set]
    resume = (folder / "checkpoints" / "last").is_file()
    return train(Recipe.read(RECIPE, overrides), folder, resume=resume)


def table(folders: dict[tuple[str, int], Path]) -> str:
    """Markdown: one row per run, then mean and standard deviation per strategy."""
    rows: dict[str, list[list[float]]] = {s: [] for s in STRATEGIES}
    names: list[str] = []
    lines = []
    for (strategy, seed), folder in folders.items():
        scores = ModelCard.read(folder).training["validation"]
        names = [n for n in scores["iou"] if n != "background"]
        values = [scores["miou"], *(scores["iou"][n] for n in names)]
        rows[strategy].append(values)
        lines.append(f"| {strategy} | {seed} | " + " | ".join(f"{v:.3f}" for v in values) + " |")
    for strategy, values in rows.items():
        if values:
            mean, spread = np.mean(values, axis=0), np.std(values, axis=0, ddof=1) if len(values) > 1 else [0.0] * 5
            cells = " | ".join(f"{m:.3f} ± {s:.3f}" for m, s in zip(mean, spread, strict=True))
            lines.append(f"| **{strategy}** | mean ± std | {cells} |")
    head = f"| strategy | seed | mean of features | {' | '.join(names)} |"
    return "\n".join([head, "|---" * (len(names) + 3) + "|", *lines])


def ship(folder: Path) -> None:
    """Pack a model folder into the package, weights in fp16."""
    module, card = load_model(folder)
    shutil.rmtree(SHIPPED, ignore_errors=True)
    SHIPPED.mkdir(parents=True)
    weights = SHIPPED / card.weights.file
    models.save_weights(module, weights, half=True)
    weights.chmod(0o644)
    card.model_copy(update={"weights": WeightsSpec(file=card.weights.file, sha256=sha256_of(weights))}).write(SHIPPED)


def check_shipped(data: Path) -> str:
    """The shipped files again on val: scores in fp32 and bf16, and how many labels agree."""
    recipe = Recipe.read(RECIPE, [f"data.root={data}"])
    module, card = load_model(SHIPPED)
    matrices = {precision: Confusion(len(card.legend)) for precision in ("fp32", "bf16")}
    same = total = 0
    for source in find_rasters(recipe.data, "val"):
        labels = labels_on(source, Scene.open(source.raster).geobox, recipe.data)
        maps = {p: predict_labels(source.raster, module, card, precision=p) for p in matrices}
        for precision, confusion in matrices.items():
            confusion.update(labels, maps[precision], recipe.data.ignore)
        same += int((maps["fp32"] == maps["bf16"]).sum())
        total += labels.size
    lines = [f"labels equal in fp32 and bf16: {same / total:.4%}"]
    for precision, confusion in matrices.items():
        scores = confusion.scores(card.legend)
        ious = ", ".join(f"{n} {c['iou']:.3f}" for n, c in scores["classes"].items())
        lines.append(f"{precision}: mean of features {scores['miou']:.3f} ({ious})")
    return "\n".join(lines)


def main() -> None:
    """Train what is missing, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder of lidar_semisynthetic")
    parser.add_argument("--runs", type=Path, default=Path("runs"))
    parser.add_argument("--set", action="append", default=[], help="change the recipe for every run")
    parser.add_argument("--ship", action="store_true", help="pack the first relay run into the package")
    options = parser.parse_args()
    folders = {(s, seed): run(s, seed, options) for seed, s in itertools.product(SEEDS, STRATEGIES)}
    if options.ship:
        ship(folders[STRATEGIES[0], SEEDS[0]])
        print(check_shipped(options.data))
    print(table(folders))


if __name__ == "__main__":
    main()
