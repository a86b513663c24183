"""Options that mean the same in every command, each declared once.

Index: Bidx BatchSize Debug Device JsonOutput Nodata Overwrite Precision Quiet Verbose Workers AllowNetwork
"""

from __future__ import annotations

import tomllib
from typing import Annotated, Any, Literal

import typer

from uhrseg.errors import InputError

__all__ = [
    "AllowNetwork",
    "BatchSize",
    "Bidx",
    "Debug",
    "Device",
    "JsonOutput",
    "Nodata",
    "Overwrite",
    "Precision",
    "Quiet",
    "Verbose",
    "Workers",
    "assignments",
    "band_numbers",
    "names",
    "numbers",
    "resolution",
    "seed_numbers",
]

AllowNetwork = Annotated[
    bool, typer.Option("--allow-network", help="Let a local source (such as a VRT) read from the network.")
]
BatchSize = Annotated[
    int | None,
    typer.Option("--batch-size", metavar="N", min=1, help="Windows per call of the model. [4 on a CPU, else 16]"),
]
Bidx = Annotated[
    list[str] | None,
    typer.Option("-b", "--bidx", metavar="N[,N...]", help="Bands to read, from 1, in the model's order."),
]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]
Device = Annotated[str, typer.Option("--device", metavar="auto|cpu|cuda|cuda:N|mps", help="Where the model runs.")]
JsonOutput = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Nodata = Annotated[
    float | None,
    typer.Option("--nodata", metavar="VALUE", help="Value that means no data, in place of what the source says."),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace outputs that exist.")]
Precision = Annotated[
    Literal["auto", "fp32", "bf16", "fp16"],
    typer.Option("--precision", help="Arithmetic of the model; auto: bf16 where the device is fast at it."),
]
Quiet = Annotated[bool, typer.Option("-q", "--quiet", help="Errors only.")]
Verbose = Annotated[bool, typer.Option("-v", "--verbose", help="Say more.")]
Workers = Annotated[int | None, typer.Option("--workers", metavar="N", min=1, help="Chunks at work at a time. [1]")]


def assignments(given: list[str] | None) -> dict[str, Any]:
    """``NAME=VALUE``s as a dict, values in TOML or bare words. Raises `InputError` for anything else."""
    found: dict[str, Any] = {}
    for text in given or []:
        name, equals, value = text.partition("=")
        if not equals or not name.strip():
            raise InputError(f"cannot apply --set {text!r}: write it as OPTION=VALUE")
        try:
            found[name.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name.strip()] = value.strip()
    return found


def names(given: str | None) -> list[str] | None:
    """The parts of ``NAME,NAME``; None stays None."""
    return None if given is None else [part.strip() for part in given.split(",")]


def numbers(given: str | None, option: str) -> list[float] | None:
    """The numbers of ``1.5,2,3``; None stays None. Raises `InputError` for anything else."""
    try:
        return None if given is None else [float(part) for part in given.split(",")]
    except ValueError as error:
        raise InputError(f"{option} {given!r} is not understood: give numbers with commas between") from error


def resolution(given: str | None) -> float | Literal["card"] | None:
    """``card``, a number of metres, or None. Raises `InputError` for anything else."""
    if given is None:
        return None
    if given == "card":
        return "card"
    try:
        return float(given)
    except ValueError as error:
        raise InputError(f"--res {given!r} is not understood: give card, or metres such as 0.5") from error


def seed_numbers(given: str) -> tuple[int, ...]:
    """The numbers of ``42,43,44``. Raises `InputError` for anything else."""
    parts = [part.strip() for part in given.split(",")]
    wrong = [part for part in parts if not part.isdecimal()]
    if wrong:
        raise InputError(f"--seeds {wrong[0]!r} is no seed: give whole numbers, such as --seeds 42,43,44")
    return tuple(int(part) for part in parts)


def band_numbers(given: list[str] | None) -> list[int] | None:
    """The numbers of ``-b 1,2 -b 3``; None stays None. Raises `InputError` for anything but numbers from 1."""
    parts = [part.strip() for group in given or [] for part in group.split(",")]
    wrong = [part for part in parts if not part.isdecimal() or int(part) < 1]
    if wrong:
        raise InputError(f"--bidx {wrong[0]!r} is no band: give band numbers from 1, such as -b 3,2,1")
    return [int(part) for part in parts] or None
