"""``uhrseg``: the list of commands. Nothing heavy is imported before a command needs it."""

from __future__ import annotations

from typing import Annotated

import typer

from uhrseg import __version__
from uhrseg.cli import benchmark, data, evaluate, inspect, models, predict, train
from uhrseg.cli.console import Command

__all__ = ["app"]

app = typer.Typer(
    name="uhrseg",
    help="Segment gigapixel LiDAR, aerial and satellite rasters with relay-token transformers.",
    epilog="Exit codes: 0 done, 1 failed at run time, 2 wrong usage or input and model do not fit, 130 interrupted.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("predict", cls=Command)(predict.predict_command)
app.command("train", cls=Command)(train.train_command)
app.add_typer(data.app, name="data")
app.add_typer(models.app, name="models")
app.command("evaluate", cls=Command)(evaluate.evaluate_command)
app.command("benchmark", cls=Command)(benchmark.benchmark_command)
app.command("inspect", cls=Command)(inspect.inspect_command)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"uhrseg {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Segment gigapixel LiDAR, aerial and satellite rasters with relay-token transformers."""
