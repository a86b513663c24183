"""``uhrseg evaluate``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uhrseg.cli import options
from uhrseg.cli.console import print_json, say

if TYPE_CHECKING:
    from uhrseg.engine.evaluate import Evaluation


def evaluate_command(
    prediction: Annotated[Path, typer.Argument(metavar="PREDICTION", help="Class map or polygons.")],
    labels: Annotated[Path, typer.Argument(metavar="LABELS", help="Reference: class map or polygons.")],
    legend: Annotated[
        Path | None,
        typer.Option("--legend", metavar="FILE", help="Classes: a model, a class map, a recipe or [[class]] tables."),
    ] = None,
    label_column: Annotated[
        str | None, typer.Option("--label-column", metavar="NAME", help="Attribute of vector labels with the class.")
    ] = None,
    res: Annotated[
        float | None, typer.Option("--res", metavar="METRES", help="Pixels on which two vector files are compared.")
    ] = None,
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Score a class map or polygons against labels.

    \b
    Example:
      $ uhrseg evaluate classes.tif labels.gpkg
    """
    from uhrseg.engine.evaluate import evaluate, legend_named

    classes = None if legend is None else legend_named(legend)
    result = evaluate(prediction, labels, classes, res=res, column=label_column)
    for note in () if quiet else result.notes:
        say(note)
    if json:
        print_json(result.scores)
    else:
        typer.echo("\n".join(_table(result)))


def _table(result: Evaluation) -> list[str]:
    """The scores as aligned lines."""
    classes = result.scores["classes"]
    wide = max(len(name) for name in [*classes, "class"])
    lines = [f"{'class':<{wide}}     IoU      F1  precision  recall       pixels"]
    for name, c in classes.items():
        lines.append(
            f"{name:<{wide}}  {_number(c['iou'])}  {_number(c['f1'])}     {_number(c['precision'])}  "
            f"{_number(c['recall'])}  {c['pixels']:>11,}"
        )
    scores = result.scores
    lines += [f"mean IoU {_number(scores['miou']).strip()} ({scores['miou_rule']})"]
    return [*lines, f"accuracy {_number(scores['accuracy']).strip()}"]


def _number(value: float | None) -> str:
    return "     -" if value is None else f"{value:6.4f}"
