"""How every command talks: data on stdout, everything else on stderr, one message and one exit code per failure."""

from __future__ import annotations

import json
import logging
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from uhrseg.errors import InputError, UhrsegError

__all__ = ["Command", "Progress", "geojson_on_stdout", "print_json", "progress_bar", "say"]

INTERRUPTED = 130
"""Exit code of Ctrl-C: 128 + SIGINT, as shells count."""

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


class Command(TyperCommand):
    """A command whose failures leave one message on stderr and the exit code of the contract.

    A traceback appears with ``--debug`` only. A command raises ``KeyboardInterrupt(sentence)`` to say how to go on.
    """

    def invoke(self, ctx: Any) -> Any:
        """Run the command; every failure becomes `typer.Exit`."""
        _listen_to_the_library(ctx.params)
        try:
            return super().invoke(ctx)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except (KeyboardInterrupt, Exception) as failure:  # noqa: BLE001  nothing stands between here and the user
            if ctx.params.get("debug"):
                traceback.print_exc(file=sys.stderr)
            message, code = _verdict(failure)
        say(message)
        raise typer.Exit(code)


def say(message: str) -> None:
    """Print a message on stderr."""
    typer.echo(message, err=True)


def print_json(value: object) -> None:
    """Print one JSON value on stdout."""
    typer.echo(json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False))


@contextmanager
def progress_bar(label: str, quiet: bool = False) -> Iterator[Progress | None]:
    """A bar with the remaining time on stderr; None where nobody watches (no terminal, or `quiet`)."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Bar(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


@contextmanager
def geojson_on_stdout(outputs: Sequence[Path], json: bool) -> Iterator[list[Path]]:
    """The outputs, ``-`` replaced by a temporary GeoJSON file that is printed when the block ends well.

    Raises `InputError` when ``--json`` wants stdout too.
    """
    dash = Path("-")
    if dash not in outputs:
        yield list(outputs)
        return
    if json:
        raise InputError("-o - and --json both print to stdout: write the polygons to a file, or leave --json out")
    with tempfile.TemporaryDirectory(prefix="uhrseg-") as folder:
        file = Path(folder) / "polygons.geojson"
        yield [file if output == dash else output for output in outputs]
        typer.echo(file.read_text(encoding="utf-8"), nl=False)


def _listen_to_the_library(params: dict[str, Any]) -> None:
    level = logging.ERROR if params.get("quiet") else logging.DEBUG if params.get("verbose") else logging.INFO
    logger = logging.getLogger("uhrseg")
    logger.setLevel(level)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger.handlers = [handler]
    logger.propagate = False
    # rasterio's: pictures without georeference are welcome here, and a data set holds thousands
    warnings.filterwarnings("ignore", message="Dataset has no geotransform")
    warnings.filterwarnings("ignore", message="The given matrix is equal to Affine.identity")


def _verdict(failure: BaseException) -> tuple[str, int]:
    """The message and the exit code of a failure."""
    if isinstance(failure, KeyboardInterrupt):
        return str(failure) or "Interrupted: nothing unfinished was left behind.", INTERRUPTED
    if isinstance(failure, UhrsegError):
        return f"Error: {failure}", failure.exit_code
    if isinstance(failure, OSError):  # disk full, permission denied, a file gone: the system's own sentence says it
        return f"Error: {failure}", 1
    text = " ".join(str(failure).split())
    advice = "This is a bug in uhrseg: run the command again with --debug and report what it prints."
    return f"Error: {type(failure).__name__}: {text}. {advice}", 1
