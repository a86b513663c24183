"""``uhrseg predict``."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from uhrseg.cli import options
from uhrseg.cli.console import geojson_on_stdout, print_json, progress_bar, say
from uhrseg.errors import InputError, RunError

if TYPE_CHECKING:
    from uhrseg.engine.predict import Report


def predict_command(
    sources: Annotated[
        list[str], typer.Argument(metavar="SOURCE...", help="Rasters: files, a folder, a glob or URLs; one mosaic.")
    ],
    model: Annotated[str, typer.Option("--model", metavar="MODEL", help="Name of shipped weights, or a model folder.")],
    outputs: Annotated[
        list[Path] | None,
        typer.Option(
            "-o",
            "--output",
            metavar="FILE",
            help="Class map (.tif), polygons (.gpkg .fgb .geojson .parquet), or - for GeoJSON on stdout.",
        ),
    ] = None,
    probabilities: Annotated[
        Path | None, typer.Option("--probabilities", metavar="FILE.tif", help="Also write one band per class.")
    ] = None,
    classes: Annotated[
        str | None,
        typer.Option("--classes", metavar="NAME,...", help="Polygons of these classes. [all but the background]"),
    ] = None,
    min_area: Annotated[
        float | None, typer.Option("--min-area", metavar="M2", min=0, help="Smallest polygon, in m2.")
    ] = None,
    simplify: Annotated[
        float | None, typer.Option("--simplify", metavar="METRES", help="Take out corners of polygons, without gaps.")
    ] = None,
    bounds: Annotated[
        str | None,
        typer.Option("--bounds", metavar="LEFT,BOTTOM,RIGHT,TOP", help="Only this part, in the scene's CRS."),
    ] = None,
    aoi: Annotated[
        Path | None, typer.Option("--aoi", metavar="FILE", help="Only what lies in these polygons, in any CRS.")
    ] = None,
    res: Annotated[
        str | None, typer.Option("--res", metavar="card|METRES", help="Read at the model's, or this, pixel size.")
    ] = None,
    overlap: Annotated[
        float | None,
        typer.Option(
            "--overlap",
            metavar="FRACTION",
            min=0,
            max=0.5,
            help="Share of a window shared with the next. [the model's]",
        ),
    ] = None,
    taper: Annotated[
        Literal["hann", "linear", "crop"], typer.Option("--taper", help="How overlapping windows are blended.")
    ] = "hann",
    chunk: Annotated[
        int | None, typer.Option("--chunk", metavar="PIXELS", min=1, help="Side of a chunk of work. [8192]")
    ] = None,
    workers: options.Workers = None,
    batch_size: options.BatchSize = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            "--scheduler",
            metavar="local:N|tcp://HOST:PORT",
            help="Run chunks on dask workers. [one per GPU, if several]",
        ),
    ] = None,
    compiled: Annotated[bool, typer.Option("--compile", help="Compile the model first; pays on large scenes.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = "auto",
    bidx: options.Bidx = None,
    nodata: options.Nodata = None,
    allow_network: options.AllowNetwork = False,
    overwrite: options.Overwrite = False,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with a run that was interrupted.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and its cost, and write nothing.")] = False,
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Segment rasters into a class map and polygons in their own CRS.

    The suffix of each output decides its format. The result does not depend on --chunk, --workers or --scheduler.

    \b
    Example:
      $ uhrseg predict parcel.tif --model swinv2-relay -o mounds.gpkg -o classes.tif
    """
    if not (outputs or probabilities or dry_run):
        raise InputError("no output: name one with -o, such as -o mounds.gpkg, or pass --dry-run for the plan alone")
    bands, chosen = options.band_numbers(bidx), options.names(classes)

    from uhrseg.engine.predict import predict

    prediction = predict(
        sources,
        model,
        overlap=overlap,
        taper=taper,
        chunk=chunk,
        workers=workers,
        batch_size=batch_size,
        device=device,
        precision=precision,
        bidx=bands,
        nodata=nodata,
        allow_network=allow_network,
        scheduler=scheduler,
        compiled=compiled,
        bounds=options.numbers(bounds, "--bounds"),
        aoi=aoi,
        res=options.resolution(res),
    )
    if dry_run:
        polygons = any(output.suffix.lower() != ".tif" for output in outputs or ())
        forecast = prediction.forecast(polygons or not outputs, probabilities is not None)
        print_json(forecast.as_dict()) if json else typer.echo("\n".join(forecast.lines()))
        return
    with (
        geojson_on_stdout(outputs or (), json) as files,
        progress_bar("Segmenting", quiet) as progress,
        _say_how_to_resume([*files, *([probabilities] if probabilities else [])]),
    ):
        report = prediction.write(
            *files,
            overwrite=overwrite,
            min_area_m2=min_area,
            classes=chosen,
            probabilities=probabilities,
            progress=progress,
            resume=resume,
            simplify_m=simplify,
        )
    if json:
        print_json(report.as_dict())
    elif not quiet:
        _summarise(report)


@contextmanager
def _say_how_to_resume(files: list[Path]) -> Iterator[None]:
    """Add the command that resumes to what ends a run, when it left finished work behind."""
    from uhrseg.engine.journal import work_folder

    try:
        yield
    except (KeyboardInterrupt, RunError) as end:
        if Path("-") in files or not work_folder(files[0]).is_dir():
            raise
        words = [word for word in sys.argv[1:] if word != "--resume"]
        command = shlex.join(["uhrseg", *words, "--resume"])
        if isinstance(end, RunError):
            raise RunError(f"{end}. Finished work is kept. To go on: {command}") from end
        raise KeyboardInterrupt(f"Interrupted, and finished work is kept. To go on: {command}") from end


def _summarise(report: Report) -> None:
    facts = report.as_dict()
    areas, counts = facts["class_area_m2"], facts["class_pixels"]
    for name, pixels in counts.items():
        say(f"{name}: {pixels:,} pixels" + ("" if areas is None else f", {areas[name]:,.0f} m2"))
    for path in facts["outputs"]:
        if Path(path).exists():  # what went to stdout is gone
            say(f"wrote {path}")
    say(
        f"{facts['pixels']:,} pixels in {facts['seconds']['total']:.1f} s "
        f"on {facts['device']} ({facts['precision']}), peak memory {facts['peak_rss_mb']:,.0f} MB"
    )
