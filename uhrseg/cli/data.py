"""``uhrseg data``: look at a recipe's data before training, and prepare data sets that need it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uhrseg.cli import options
from uhrseg.cli.console import Command, print_json, progress_bar, say
from uhrseg.errors import InputError

if TYPE_CHECKING:
    from uhrseg.data.check import DataReport, SplitReport

app = typer.Typer(
    help="Check the data of a recipe, and prepare data sets.", no_args_is_help=True, rich_markup_mode=None
)


@app.command("check", cls=Command)
def check_command(
    recipe: Annotated[Path, typer.Argument(metavar="RECIPE.toml", help="The recipe whose data to check.")],
    overrides: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a value of the recipe; repeatable."),
    ] = None,
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Say what a recipe trains on: files, sizes, class shares, CRS, resolution, and everything that is wrong.

    Every pixel of images and labels is read, in pieces. Problems end with exit code 2.

    \b
    Example:
      $ uhrseg data check recipes/lidar_demo.toml --set data.root=data
    """
    from uhrseg.data.check import check_data
    from uhrseg.recipe import Recipe

    plan = Recipe.read(recipe, overrides or [])
    with progress_bar("reading", quiet or json) as progress:
        report = check_data(plan.data, progress)
    if json:
        print_json(report.as_dict())
    elif not quiet:
        _show(report, plan.data.legend.classes)
    if report.problems:
        count = len(report.problems)
        listed = "\n".join(f"  {problem}" for problem in report.problems)
        raise InputError(f"{count} problem{'s' if count > 1 else ''} in the data of {recipe}:\n{listed}")


@app.command("prepare", cls=Command)
def prepare_command(
    dataset: Annotated[str, typer.Argument(metavar="DATASET", help="archaeoscape, urur, gleason or cityscapes.")],
    root: Annotated[Path, typer.Argument(metavar="DIR", help="The data set's folder.")],
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Make what a data set does not bring: for gleason, the majority of the annotators' maps.

    \b
    Example:
      $ uhrseg data prepare gleason datasets/Gleason
    """
    from uhrseg.data.datasets import gleason
    from uhrseg.presets import PRESETS

    if dataset not in PRESETS:
        raise InputError(f"no data set is called {dataset!r}: the published ones are {', '.join(PRESETS)}")
    if not root.is_dir():
        raise InputError(f"{root} is no folder: name the folder of the data set")
    if dataset != "gleason":
        say(f"{dataset} needs no preparation: pass --set data.root={root}")
        return
    folder = gleason.prepare(root)
    if not quiet:
        say(f"wrote {folder}")


def _show(report: DataReport, classes: Any) -> None:
    """Two tables on stdout: the splits, and the share of each class in them."""
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    splits = Table("split", box=SIMPLE)
    for heading in ("files", "Mpx", "labelled"):
        splits.add_column(heading, justify="right")
    for heading in ("size in px", "GSD in m", "CRS"):
        splits.add_column(heading)
    for split in report.splits:
        splits.add_row(*_row(split))
    shares = Table("class", box=SIMPLE)
    for split in report.splits:
        shares.add_column(split.name, justify="right")
    for c in classes:
        cells = [f"{split.shares[c.name]:.2%}" if split.labelled else "-" for split in report.splits]
        shares.add_row(f"[{c.color}]\N{FULL BLOCK}[/] {c.name}", *cells)
    console = Console()
    console.print(splits, shares)


def _row(split: SplitReport) -> tuple[str, ...]:
    labelled = split.labelled / split.pixels if split.pixels else 0.0
    return (
        split.name, f"{split.files}", f"{split.pixels / 1e6:,.2f}", f"{labelled:.1%}", split.size_range,
        split.gsd_range, ", ".join(split.crs) or "-",
    )  # fmt: skip
