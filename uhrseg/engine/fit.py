"""Does this scene fit this model? Checked before anything is computed; and the models that ship."""

from __future__ import annotations

import math
from pathlib import Path

from torch import nn

from uhrseg import models
from uhrseg.card import ModelCard, sha256_of
from uhrseg.errors import InputError
from uhrseg.geo.bands import Derived
from uhrseg.geo.plan import TilePlan, overlap_pixels
from uhrseg.geo.scene import Scene, gsd_fits

__all__ = ["check_fit", "check_windows", "find_model", "load_model", "plan_for", "shipped_models", "verify_model"]

_WEIGHTS = Path(__file__).resolve().parent.parent / "weights"


def shipped_models() -> dict[str, Path]:
    """Names and folders of the models that come with the package."""
    return {card.parent.name: card.parent for card in sorted(_WEIGHTS.glob("*/card.toml"))}


def find_model(model: str | Path) -> Path:
    """The folder of a shipped model's name or of a model folder.

    Raises `InputError` for anything else; an architecture's name is told apart from weights.
    """
    shipped = shipped_models()
    if str(model) in shipped:
        return shipped[str(model)]
    if Path(model).is_dir():
        return Path(model)
    known = ", ".join(shipped) or "none"
    if str(model) in models.MODELS or str(model).startswith("timm:"):
        raise InputError(
            f"{model} is an architecture without weights: predict needs trained weights, a model folder or one of the "
            f"shipped ones ({known}); train one with uhrseg train"
        )
    raise InputError(f"no model is called {model}: give a model folder or one of the shipped ones ({known})")


def load_model(model: str | Path) -> tuple[nn.Module, ModelCard]:
    """A trained model in eval mode, fp32 on the CPU, and its card.

    Raises `InputError` when the folder, its card or its weights do not hold together (the weights' sha256 is checked
    before they are read).
    """
    folder = find_model(model)
    card = ModelCard.read(folder)
    weights = folder / card.weights.file
    if not weights.is_file():
        raise InputError(f"{folder} has a card but no weights: {card.weights.file} is missing")
    if sha256_of(weights) != card.weights.sha256:
        raise InputError(f"{weights} is not the file its card describes (sha256 differs): fetch or write it again")
    bands, classes = len(card.input.band), len(card.legend)
    module = models.build(
        **card.architecture, bands=bands, classes=classes, size=card.window.size,
        context_factor=card.window.context_factor,
    )  # fmt: skip
    models.load_weights(module, weights)
    return module.eval(), card


def check_fit(scene: Scene, card: ModelCard) -> Derived:
    """The model's input bands of `scene`.

    Raises `InputError`, naming model and scene, when bands or ground sampling distance do not fit.
    """
    unknown = [band.name for band in card.input.band if math.isnan(band.mean)]
    if unknown:
        raise InputError(
            f"model {card.name}: the mean and std of {', '.join(unknown)} are not known (nan): write those of its "
            "training set into its card.toml"
        )
    needed = card.input.raster_bands
    wanted = f"{len(needed)} band(s) {', '.join(needed)}"
    if card.input.gsd_m:
        wanted += f" at {card.input.gsd_m:g} m"
    if len(scene.bands) != len(needed):
        raise InputError(
            f"model {card.name} expects {wanted}; {_name(scene)} has {len(scene.bands)} band(s) "
            f"{', '.join(scene.bands)}: choose them in that order with --bidx, or train with these bands"
        )
    if card.input.gsd_m:
        _check_gsd(scene, card.name, wanted, card.input.gsd_m)
    return Derived(scene, card.input.band)


def _check_gsd(scene: Scene, model: str, wanted: str, gsd: float) -> None:
    actual = scene.gsd_m
    if actual is None:
        raise InputError(
            f"model {model} expects {wanted}; {_name(scene)} has no CRS, so the size of its pixels in metres is "
            "unknown: give it its CRS with gdal_edit -a_srs EPSG:..."
        )
    if not gsd_fits(actual, gsd):
        raise InputError(
            f"model {model} expects {wanted}; {_name(scene)} has pixels of {actual[1]:.4g} x {actual[0]:.4g} m: "
            f"read it at the model's with --res card, or "
            f"resample it with gdalwarp {_to_metres(scene)}-tr {gsd:g} {gsd:g} -tap -r average"
        )


def _to_metres(scene: Scene) -> str:
    """The part of the advice that a CRS needs whose units are not ground metres."""
    crs = scene.geobox.crs.proj if scene.geobox.crs else None
    if crs is None or not crs.is_projected or crs.to_epsg() == 3857:
        return "-t_srs EPSG:... (one in metres) "
    return "" if crs.axis_info[0].unit_conversion_factor == 1 else "-t_srs EPSG:... (one in metres) "


def _name(scene: Scene) -> str:
    more = f" and {len(scene.paths) - 1} more" if len(scene.paths) > 1 else ""
    return f"{Path(scene.paths[0]).name}{more}"


def verify_model(model: str | Path) -> ModelCard:
    """The card of a model whose card, weights (sha256, names, shapes) and architecture agree.

    Raises `InputError` naming the first thing that does not, values that are not finite included.
    """
    module, card = load_model(model)
    check_windows(module, card)
    broken = [name for name, t in module.state_dict().items() if t.is_floating_point() and not t.isfinite().all()]
    if broken:
        raise InputError(f"model {card.name}: {broken[0]} holds values that are not finite: fetch or train it again")
    return card


def check_windows(module: nn.Module, card: ModelCard) -> None:
    """Raise `InputError` when card and network disagree about whether there is a context window."""
    wants = getattr(module, "strategy", None)
    if wants is not None and (wants in models.TWO_SCALES) != (card.window.context_factor is not None):
        raise InputError(
            f"model {card.name}: strategy = {wants!r} but context_factor = {card.window.context_factor}: "
            f"{', '.join(models.TWO_SCALES)} need a context window, others take none; correct its card.toml"
        )


def plan_for(scene: Scene, card: ModelCard, overlap: float | None = None) -> TilePlan:
    """The lattice of windows of a model over a scene; `overlap` defaults to the card's."""
    window = card.window
    share = window.overlap if overlap is None else overlap
    return TilePlan(
        scene.geobox,
        window.size,
        overlap_pixels(window.size, share, window.context_factor),
        window.context_factor,
    )
