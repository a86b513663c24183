"""Suites on data sets: trained folders are scored, or every line of the paper's tables is trained and scored."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from uhrseg.benchmark.rows import Results, Row, slug
from uhrseg.benchmark.score import score_model
from uhrseg.benchmark.trials import Trial, trials_for
from uhrseg.data.datasets import Split
from uhrseg.engine.train import train
from uhrseg.recipe import Recipe

__all__ = ["score_folders", "train_run", "train_trials", "trial_name", "trial_row"]


def score_folders(suite: str, recipe: Recipe, models: Sequence[str], pictures: Path) -> Iterator[Row]:
    """One row per trained folder (or shipped name)."""
    for model in models:
        yield score_model(
            model, recipe, _split(recipe), suite=suite, name=Path(model).name, seed=None, pictures=pictures
        )


def train_trials(
    suite: str, recipe: Path, overrides: Sequence[str], seeds: Sequence[int], results: Results,
    tables: Sequence[str] = (), fast_dev_run: bool = False,
) -> Iterator[Row]:  # fmt: skip
    """One row per line of the paper's tables and seed: trained where its folder has no model yet, then scored.

    Runs lie in ``results.folder / runs``; a run that was interrupted goes on from its checkpoint, and a line that is in
    the results is not run again. `tables` limits the lines ("Table 3"); `overrides` change every recipe and win over
    the line's own changes.
    """
    for trial in trials_for(suite):
        if tables and trial.table not in tables:
            continue
        for seed in seeds:
            if (suite, trial_name(trial), seed) not in results:
                yield trial_row(suite, trial, recipe, overrides, seed, results.folder, fast_dev_run)


def trial_name(trial: Trial) -> str:
    """What the row of a line is called."""
    return f"{trial.table}: {trial.name}"


def trial_row(
    suite: str, trial: Trial, recipe: Path, overrides: Sequence[str], seed: int, folder: Path,
    fast_dev_run: bool = False,
) -> Row:  # fmt: skip
    """Train a line of a table, or find it trained in ``folder / runs``, and score it."""
    changed = Recipe.read(recipe, [*trial.changes, *overrides, f"seed={seed}"])
    model = train_run(changed, folder / "runs" / slug(f"{suite} {trial.table} {trial.name} {seed}"), fast_dev_run)
    row = score_model(
        model, changed, _split(changed), suite=suite, name=trial_name(trial), seed=seed, pictures=folder / "pictures"
    )
    return row.model_copy(update={"paper": {"mIoU": trial.paper[suite]} if suite in trial.paper else {}})


def _split(recipe: Recipe) -> Split:
    """The split the paper reports: test, or val where the test labels are not public."""
    return "test" if recipe.data.test else "val"


def train_run(recipe: Recipe, run: Path, fast_dev_run: bool = False) -> Path:
    """The model folder of a run, trained or resumed where it is not complete."""
    if (run / "model" / "card.toml").exists():
        return run / "model"
    resume = (run / "checkpoints" / "last").exists()
    if run.exists() and not resume:
        shutil.rmtree(run)  # interrupted before its first checkpoint
    return train(recipe, run, resume=resume, fast_dev_run=fast_dev_run)
