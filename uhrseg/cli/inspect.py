"""``uhrseg inspect``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from uhrseg.cli import options
from uhrseg.cli.console import print_json, say
from uhrseg.errors import InputError

if TYPE_CHECKING:
    from uhrseg.geo.scene import Scene


def inspect_command(
    raster: Annotated[str, typer.Argument(metavar="RASTER", help="Anything GDAL opens.")],
    model: Annotated[
        str | None, typer.Option("--model", metavar="MODEL", help="Say whether the raster fits this model.")
    ] = None,
    png: Annotated[Path | None, typer.Option("--png", metavar="FILE.png", help="Write a quicklook.")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="CLASSES.tif", help="Class map drawn over the quicklook.")
    ] = None,
    polygons: Annotated[
        Path | None, typer.Option("--polygons", metavar="FILE", help="Polygons outlined on the quicklook.")
    ] = None,
    bidx: options.Bidx = None,
    nodata: options.Nodata = None,
    allow_network: options.AllowNetwork = False,
    overwrite: options.Overwrite = False,
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Say what a raster is and whether it fits a model (exit code 2 if not), and draw a quicklook.

    \b
    Example:
      $ uhrseg inspect parcel.tif --model swinv2-relay --png parcel.png
    """
    from uhrseg.geo.facts import raster_facts
    from uhrseg.geo.scene import Scene

    if (labels or polygons) and not png:
        raise InputError("--labels and --polygons are drawn over the quicklook: name the quicklook with --png")
    if png and png.exists() and not overwrite:
        raise InputError(f"{png} exists: pass --overwrite to replace it")
    scene = Scene.open(raster, bidx=options.band_numbers(bidx), nodata=nodata, allow_network=allow_network)
    facts = raster_facts(raster, scene)
    misfit = None if model is None else _misfit(scene, model)
    if json:
        print_json(facts.as_dict() | ({} if model is None else {"fit": {"model": model, "misfit": misfit}}))
    else:
        typer.echo("\n".join(facts.lines()))
        if model is not None and misfit is None:
            typer.echo(f"  model       fits {model}")
    if png:
        _draw(scene, labels, polygons, png)
        say(f"wrote {png}")
    if misfit:
        raise InputError(misfit)


def _misfit(scene: Scene, model: str) -> str | None:
    """Why the scene does not fit the model; None when it does."""
    from uhrseg.card import ModelCard
    from uhrseg.engine.fit import check_fit, find_model

    card = ModelCard.read(find_model(model))
    try:
        check_fit(scene, card)
    except InputError as error:
        return str(error)
    return None


def _draw(scene: Scene, labels: Path | None, polygons: Path | None, png: Path) -> None:
    from uhrseg.report.quicklook import quicklook

    quicklook(scene.paths[0], labels, None, png, polygons_path=polygons)
