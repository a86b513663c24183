"""``uhrseg models``: the weights that come with the package, and the architectures a recipe can name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from uhrseg.cli import options
from uhrseg.cli.console import Command, print_json, say
from uhrseg.errors import InputError

if TYPE_CHECKING:
    from uhrseg.card import ModelCard

app = typer.Typer(
    help="List and show models: trained weights, and architectures to train.",
    no_args_is_help=True,
    rich_markup_mode=None,
)


@app.command("list", cls=Command)
def list_command(
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """List the shipped weights (for predict) and the architectures (a recipe's trunk).

    \b
    Example:
      $ uhrseg models list
    """
    from uhrseg.card import ModelCard
    from uhrseg.engine.fit import shipped_models
    from uhrseg.models import MODELS

    weights = [_summary(ModelCard.read(folder)) for folder in shipped_models().values()]
    architectures = [_architecture(name) for name in MODELS]
    if json:
        print_json({"weights": weights, "architectures": architectures})
        return
    typer.echo("Weights: names for predict --model (a model folder works too)")
    typer.echo(_columns(_WEIGHT_COLUMNS, weights))
    typer.echo("\nArchitectures: names for trunk in a recipe; train one to predict with it")
    typer.echo(_columns(_ARCHITECTURE_COLUMNS, architectures))
    typer.echo("\nM: millions of parameters. GMAC: billions of multiply-adds of one window, with its context if it has")
    typer.echo("relays; of architectures at 256 px, 3 bands, 8 classes, linear head.")


@app.command("show", cls=Command)
def show_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of shipped weights, or a model folder.")],
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Show the card of a model: what it sees, what it finds, how it was trained, its licence.

    \b
    Example:
      $ uhrseg models show swinv2-relay
    """
    from json import loads

    from uhrseg.card import ModelCard
    from uhrseg.engine.fit import find_model

    card = ModelCard.read(find_model(name))
    if json:
        print_json(loads(card.model_dump_json(by_alias=True)))  # a mean nobody knows is null
        return
    typer.echo("\n".join(_describe(card)))


@app.command("verify", cls=Command)
def verify_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of shipped weights, or a model folder.")],
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Check that a model's card, weights (sha256, names, shapes) and architecture agree.

    \b
    Example:
      $ uhrseg models verify swinv2-relay
    """
    from uhrseg.engine.fit import verify_model

    card = verify_model(name)
    if not quiet:
        say(f"{card.name}: card, weights and architecture agree (sha256 {card.weights.sha256})")


@app.command("import", cls=Command)
def import_command(
    checkpoint: Annotated[Path, typer.Argument(metavar="CHECKPOINT", help="File of the relay paper's code.")],
    arch: Annotated[str, typer.Option("--arch", metavar="NAME", help="The published network, e.g. rt_swin2_s.")],
    classes: Annotated[
        str, typer.Option("--classes", metavar="DATASET|NAME,...|FILE.toml", help="Data set, class names or a legend.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FOLDER", help="Model folder to write.")],
    order: Annotated[
        Literal["sequential", "parallel"] | None,
        typer.Option("--order", help="Order of the two scales. [as the published network was trained]"),
    ] = None,
    faithful: Annotated[
        bool | None,
        typer.Option("--faithful/--no-faithful", help="Run as the published code does, defects included. [yes]"),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="OPTION=VALUE", help="A size that differs, or mean, std, gsd_m, overlap."),
    ] = None,
    overwrite: options.Overwrite = False,
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Make a model folder of a checkpoint of the relay paper's code. Only tensors are read: nothing in it is run.

    \b
    Example:
      $ uhrseg models import epoch_049.ckpt --arch rt_swin2_s --classes archaeoscape -o archaeoscape
    """
    from uhrseg.engine.importing import import_checkpoint

    done = import_checkpoint(
        checkpoint, arch, classes, output, order, faithful, options.assignments(settings), overwrite
    )
    for line in () if quiet else (*done.notes, f"{done.tensors} tensors in {done.folder}; {_unused(done.unused)}"):
        say(line)
    if json:
        print_json({"folder": str(done.folder), "tensors": done.tensors, "unused": done.unused, "notes": done.notes})


@app.command("export", cls=Command)
def export_command(
    model: Annotated[str, typer.Argument(metavar="FOLDER", help="Model folder, or name of shipped weights.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.onnx", help="File to write.")],
    overwrite: options.Overwrite = False,
    json: options.JsonOutput = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Write a model as ONNX, with a free batch size, checked with onnxruntime against the original.

    \b
    Example:
      $ uhrseg models export swinv2-relay -o swinv2-relay.onnx
    """
    from uhrseg.engine.export import export_onnx

    done = export_onnx(model, output, overwrite)
    if not quiet:
        say(f"wrote {done.path}: inputs {', '.join(done.inputs)}; logits differ by at most {done.difference:.1e}")
    if json:
        print_json({"output": str(done.path), "inputs": done.inputs, "difference": done.difference})


@app.command("attention", cls=Command)
def attention_command(
    name: Annotated[str, typer.Argument(metavar="NAME", help="Name of shipped weights, or a model folder.")],
    image: Annotated[str, typer.Argument(metavar="RASTER", help="Anything GDAL opens.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.png", help="Picture to write.")],
    bounds: Annotated[
        str | None,
        typer.Option("--bounds", metavar="L,B,R,T", help="The window is in the middle of these. [the raster]"),
    ] = None,
    overwrite: options.Overwrite = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = False,
    debug: options.Debug = False,
) -> None:
    """Draw where each relay token looks, in the local window and in its context.

    \b
    Example:
      $ uhrseg models attention swinv2-relay parcel.tif -o attention.png
    """
    from uhrseg.engine.attention import draw_relays

    if output.suffix.lower() != ".png":
        raise InputError(f"{output} is no PNG: name the picture FILE.png")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: pass --overwrite to replace it")
    row, col = draw_relays(name, image, output, options.numbers(bounds, "--bounds"))
    if not quiet:
        say(f"wrote {output}: the window at row {row}, column {col}")


def _unused(keys: tuple[str, ...]) -> str:
    return f"left over, of no effect there: {', '.join(keys)}" if keys else "nothing left over"


def _summary(card: ModelCard) -> dict[str, Any]:
    from uhrseg.models.sizes import count

    size = count(
        bands=len(card.input.band),
        classes=len(card.legend),
        size=card.window.size,
        context_factor=card.window.context_factor,
        **card.architecture,
    )
    return {
        "name": card.name,
        "version": card.version,
        "license": card.license,
        "classes": card.legend.names,
        "bands": [band.name for band in card.input.band],
        "gsd_m": card.input.gsd_m,
        "parameters_m": None if size is None else round(size.parameters_m, 2),
        "gmac": None if size is None else round(size.gmac, 2),
        "trained_on": _trained_on(card),
    }


def _trained_on(card: ModelCard) -> str:
    training = card.training
    if "data" in training or "imported_from" in training:
        return str(training.get("data") or f"imported from {training['imported_from']}")
    return f"{training['scenes']} scenes of {training['recipe']}" if "scenes" in training else "not recorded"


def _architecture(name: str) -> dict[str, Any]:
    """What an architecture costs alone and with relays, and the weights that `pretrained = true` starts it from."""
    from timm.models import get_pretrained_cfg

    from uhrseg.models import MODELS
    from uhrseg.models.sizes import SIZES

    alone, relays = SIZES.get(name, (None, None))
    start = MODELS[name].timm_name
    known = get_pretrained_cfg(start) if start else None
    return {
        "name": name,
        "parameters_m": alone and alone.parameters_m,
        "gmac": alone and alone.gmac,
        "relays_parameters_m": relays and relays.parameters_m,
        "relays_gmac": relays and relays.gmac,
        "pretrained": start and f"timm:{start}",
        "pretrained_license": known and known.license,
    }


_WEIGHT_COLUMNS = {
    "name": "name", "license": "licence", "parameters_m": "M", "gmac": "GMAC", "classes": "classes",
    "trained_on": "trained on",
}  # fmt: skip
_ARCHITECTURE_COLUMNS = {
    "name": "name", "parameters_m": "M", "gmac": "GMAC", "relays_parameters_m": "M, relays",
    "relays_gmac": "GMAC, relays", "pretrained": "weights to start from", "pretrained_license": "licence",
}  # fmt: skip


def _columns(columns: dict[str, str], items: list[dict[str, Any]]) -> str:
    return _table(tuple(columns.values()), [tuple(_cell(item[key]) for key in columns) for item in items])


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.2f}"
    return ", ".join(value) if isinstance(value, list) else str(value)


def _describe(card: ModelCard) -> list[str]:
    """The card as lines for people."""
    window, factor = card.window, card.window.context_factor
    context = "no context" if factor is None else f"context of {window.size * factor} px, {window.context}d by {factor}"
    lines = [
        f"{card.name} {card.version} (licence: {card.license})",
        card.description,
        "",
        f"bands         {', '.join(_band(b) for b in card.input.band)}",
        f"resolution    {'any' if card.input.gsd_m is None else f'{card.input.gsd_m:g} m'}",
        f"window        {window.size} px, {context}, overlap {window.overlap:g}",
        f"architecture  {_pairs(card.architecture)}",
        f"training      {_pairs(card.training)}",
        f"weights       {card.weights.file}, sha256 {card.weights.sha256}",
        f"citation      {card.citation or 'none'}",
        "",
        "classes",
    ]
    legend = card.legend
    notes = {legend.background: " (background)"} if legend.background is not None else {}
    return lines + [f"  {c.id:3d}  {c.color}  {c.name}{notes.get(c.id, '')}" for c in legend.classes]


def _band(band: Any) -> str:
    if band.kind == "raw":
        return str(band.name)
    if band.kind == "crop_mean":
        return f"{band.name} ({band.raster_band} minus its mean over the window)"
    return f"{band.name} ({band.raster_band} minus its mean within {band.radius_m:g} m)"


def _pairs(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items()) or "not recorded"


def _table(header: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    table = [header, *rows]
    widths = [max(len(row[k]) for row in table) for k in range(len(header))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in table)
    return "\n".join(f"  {line.rstrip()}" for line in lines)
