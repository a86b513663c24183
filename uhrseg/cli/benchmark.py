"""``uhrseg benchmark``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uhrseg.cli import options
from uhrseg.cli.console import say

if TYPE_CHECKING:
    from uhrseg.report.page import Table


def benchmark_command(
    suites: Annotated[
        list[str] | None, typer.Argument(metavar="SUITE...", help="What to run; none: all that need no data.")
    ] = None,
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="REPORT_DIR", help="Folder of the report.")
    ] = Path("benchmark"),
    data: Annotated[
        Path | None, typer.Option("--data", metavar="DIR", help="The data set's folder; default: the recipe's.")
    ] = None,
    models: Annotated[
        list[str] | None, typer.Option("--models", metavar="FOLDER", help="Trained folder to score; repeatable.")
    ] = None,
    train: Annotated[
        bool, typer.Option("--train", help="Train every line of the paper's tables, resuming what is there.")
    ] = False,
    tables: Annotated[
        list[str] | None, typer.Option("--table", metavar="TABLE", help="Only this table, e.g. 'Table 3'; repeatable.")
    ] = None,
    seeds: Annotated[str, typer.Option("--seeds", metavar="N[,N...]", help="Seeds of every line.")] = "42,43,44",
    recipe: Annotated[
        Path | None, typer.Option("--recipe", metavar="FILE", help="Recipe of the data set. [recipes/SUITE.toml]")
    ] = None,
    changes: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="TABLE.KEY=VALUE", help="Change a value of every recipe; repeatable."),
    ] = None,
    size: Annotated[
        str, typer.Option("--size", metavar="NAME", help="Of the context suite: small, or long and large for a GPU.")
    ] = "small",
    quick: Annotated[
        bool, typer.Option("--quick", help="Small runs, to see that everything works; no numbers to quote.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Measure what the models cost, how fast they run and how well they segment.

    Rows are kept in REPORT_DIR as they come; rows of the same name are replaced.

    \b
    Example:
      $ uhrseg benchmark
    """
    from uhrseg.benchmark.run import OnData, run_suites
    from uhrseg.benchmark.tables import suite_table

    on_data = OnData(
        root=data, recipe=recipe, models=tuple(models or ()), train=train, seeds=options.seed_numbers(seeds),
        tables=tuple(tables or ()), overrides=tuple(changes or ()), size=size,
    )  # fmt: skip
    results = run_suites(
        suites or [], output, quick, on_data, lambda row: None if quiet else say(f"{row.suite}: {row.name}")
    )
    for suite in dict.fromkeys(row.suite for row in results.rows):
        typer.echo(f"\n{suite}")
        typer.echo("\n".join(_aligned(suite_table([row for row in results.rows if row.suite == suite]))))
    typer.echo(f"\n{output / 'index.html'}")


def _aligned(table: Table) -> list[str]:
    lines = [list(table.header), *map(list, table.lines)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))])
            for line in lines]  # fmt: skip
