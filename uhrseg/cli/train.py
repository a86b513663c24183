"""``uhrseg train``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer

from uhrseg.cli import options
from uhrseg.cli.console import say


def train_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="What to train, on what, and how.")],
    run_dir: Annotated[
        Path | None,
        typer.Option("-o", "--output", metavar="RUN_DIR", help="Folder of the run. [runs/ and the recipe's name]"),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a value of the recipe; repeatable."),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on from the run's last checkpoint.")] = False,
    fast_dev_run: Annotated[
        bool, typer.Option("--fast-dev-run", help="A few steps only, to see that everything runs.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Train a model from a recipe; the run folder then holds model/, ready for predict.

    \b
    Example:
      $ uhrseg train recipes/lidar_demo.toml -o runs/lidar_demo --set train.epochs=2
    """
    from uhrseg.errors import InputError
    from uhrseg.recipe import Recipe

    first = os.environ.get("RANK", "0") == "0"  # of the processes that torchrun started: it speaks for all
    try:
        plan = Recipe.read(recipe, overrides or [])
        folder = run_dir or Path("runs") / plan.name

        from uhrseg.engine.train import train

        model_folder = train(plan, folder, resume=resume, fast_dev_run=fast_dev_run, quiet=quiet)
    except InputError as error:  # found by every process alike
        if first:
            raise
        raise typer.Exit(error.exit_code) from error
    except KeyboardInterrupt as stop:
        raise KeyboardInterrupt(f"Interrupted. To go on: {_resume(recipe, folder, overrides or [])}") from stop
    if first and not quiet:
        say(f"wrote {model_folder}")


def _resume(recipe: Path, folder: Path, overrides: list[str]) -> str:
    changes = [word for override in overrides for word in ("--set", override)]
    return shlex.join(["uhrseg", "train", str(recipe), "-o", str(folder), *changes, "--resume"])
