"""Published checkpoints as model folders: `import_checkpoint`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from uhrseg import models
from uhrseg.card import BandSpec, ClassSpec, InputSpec, ModelCard, WeightsSpec, WindowSpec, read_legend
from uhrseg.engine.trained import write_model
from uhrseg.errors import InputError
from uhrseg.legend import Legend, LegendClass
from uhrseg.models.foreign import read_tensors
from uhrseg.models.published import PUBLISHED, from_published, is_fusion, is_unread
from uhrseg.models.segmenter import TWO_SCALES

__all__ = ["DATASETS", "Imported", "PublishedData", "import_checkpoint"]

_CITATION = "Perron et al., Relay Tokens (TMLR 2026)"
_COLORS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#a65628", "#f781bf", "#ffd92f")  # ColorBrewer Set1
_INPUT = ("mean", "std", "gsd_m", "overlap")  # settings of the card rather than of the network
_UNKNOWN_SHA = "0" * 64
_FACTOR = 4  # of the context window, in all published networks


@dataclass(frozen=True)
class PublishedData:
    """What the authors' code says of a data set: classes, bands, resolution in metres, overlap of test windows."""

    legend: Legend
    bands: tuple[BandSpec, ...]
    gsd_m: float | None
    overlap: float


def _legend(background_id: int | None, /, **colors: str) -> Legend:
    return Legend(tuple(LegendClass(i, name, color) for i, (name, color) in enumerate(colors.items())), background_id)


_RGB = ("red", "green", "blue")

DATASETS: dict[str, PublishedData] = {
    # Mean and deviation are computed from the training parcels at run time and are in no checkpoint.
    "archaeoscape": PublishedData(
        _legend(3, mound="#dc9600", water="#1478dc", temple_site="#c800c8", background="#ffffff"),
        (*(BandSpec(name=n, mean=math.nan) for n in _RGB), BandSpec(name="dtm", kind="crop_mean", std=1.0)),
        0.5,
        0.5,
    ),
    "urur": PublishedData(
        _legend(
            0, others="#000000", building="#e6e6e6", greenhouse="#646464", woodland="#c8e6a0", farmland="#5fa307",
            bareland="#ffff64", water="#96c8fa", road="#f05064",
        ),
        tuple(BandSpec(name=n, mean=0.0, std=255.0) for n in _RGB),
        None,
        0.0,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Imported:
    """What became of a checkpoint: its model folder, the tensors taken, the keys left over, and notes for people."""

    folder: Path
    tensors: int
    unused: tuple[str, ...]
    notes: tuple[str, ...]


def import_checkpoint(
    checkpoint: str | Path,
    arch: str,
    classes: str,
    folder: str | Path,
    order: str | None = None,
    faithful: bool | None = None,
    settings: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Imported:
    """Write a checkpoint of the relay paper's code as a model folder; only tensors are read from it.

    arch: a name in `PUBLISHED`. classes: a name in `DATASETS`, names separated by commas, or a TOML file with a
    legend. order, faithful: None keeps what the published network was trained with. settings: sizes that differ
    (``embed_dim``, ``depths``, ``heads``, ``window``, ``image_size``, ...) and, for the card, ``mean``, ``std`` (one
    number per band), ``gsd_m`` and ``overlap``. Raises `InputError` for a file that is no checkpoint or not of this
    architecture, and for classes or settings that do not fit; nothing is written then.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise InputError(f"{folder} exists: give another folder, or --overwrite")
    given = dict(settings or {})
    about = {name: given.pop(name) for name in _INPUT if name in given}
    options = _options(arch, order, faithful, given)
    tensors = read_tensors(checkpoint)
    if is_fusion(tensors) != (options["strategy"] == "decision_fusion"):
        held = "one network twice (decision fusion)" if is_fusion(tensors) else "a single network"
        raise InputError(f"{checkpoint} holds {held}, which is not {arch}: choose another --arch")
    state, leftover = from_published(tensors)
    about["size"] = _size(options.pop("image_size", None), state, options)
    options |= _read_off(state, options)
    bands, count = options.pop("bands"), options.pop("classes")
    about["factor"] = _FACTOR if options["strategy"] in TWO_SCALES else None
    module = models.build(
        **options, bands=bands, classes=count, size=about["size"], context_factor=about["factor"]
    )  # fmt: skip
    _load(module, state, leftover, Path(checkpoint), arch)
    card = _card(arch, classes, (bands, count), options, about, Path(checkpoint))
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_model(module, card, folder)
    return Imported(folder, len(state), tuple(sorted(leftover)), _notes(card))


def _options(arch: str, order: str | None, faithful: bool | None, given: dict[str, Any]) -> dict[str, Any]:
    """Arguments of `build` for a published network."""
    if arch not in PUBLISHED:
        raise InputError(f"unknown architecture {arch!r}: known are {', '.join(PUBLISHED)}")
    options: dict[str, Any] = {**PUBLISHED[arch], **given}
    if order is not None:
        if options["strategy"] != "relays":
            raise InputError(f"--order is for networks with relays, and {arch} has none: leave it out")
        options["order"] = order
    if faithful and "faithful" not in PUBLISHED[arch] and options.get("order") == "sequential":
        raise InputError(f"--faithful {arch} updates both scales at once: leave out --order, or --faithful")
    if faithful is not None and "faithful" in PUBLISHED[arch]:
        options["faithful"] = faithful
    return options


def _size(given: Any, state: Mapping[str, Tensor], options: Mapping[str, Any]) -> int:
    """Side of the windows in pixels; a ViT's position table tells it."""
    table = state.get("trunk.body.pos_embed")
    if given is None and table is not None and table.ndim == 3:
        return math.isqrt(table.shape[1]) * int(options.get("patch_size", 16))
    return 256 if given is None else int(given)


def _read_off(state: Mapping[str, Tensor], options: Mapping[str, Any]) -> dict[str, Any]:
    """What the tensors' shapes tell: bands, classes, relays, and whether each scale has a projector of its own."""
    projector = _first(state, "trunk.patch_embed.proj.weight", "trunk.body.patch_embed.proj.weight")
    head, relays = _first(state, "head.weight", "head.classify.weight"), state.get("trunk.relays")
    if projector is None or head is None:
        raise InputError("the checkpoint has no patch projection or no head under the relay paper's names")
    shape: dict[str, Any] = {
        "bands": projector.shape[1],
        "classes": head.shape[1] if "head.weight" in state else head.shape[0],
        "share_projector": not any(key.startswith(("trunk.context_embed", "trunk.context_pos")) for key in state),
    }
    if any(key.startswith("trunk.context_blocks.") for key in state):
        shape["share_blocks"] = False
    if relays is not None:
        shape["relays"] = relays.shape[1]
        if options["strategy"] == "single":  # one scale with tokens: the registers baseline
            shape["strategy"] = "registers"
    elif options["strategy"] == "relays":
        raise InputError("the checkpoint has no relay tokens: choose an architecture without rt_")
    return shape


def _first(state: Mapping[str, Tensor], *names: str) -> Tensor | None:
    return next((state[name] for name in names if name in state), None)


def _load(module: nn.Module, state: dict[str, Tensor], leftover: dict[str, Tensor], path: Path, arch: str) -> None:
    """Fill the network, or say what does not fit."""
    own = module.state_dict()
    misfits = [
        _naming("keys missing", sorted(own.keys() - state.keys())),
        _naming("keys too many", sorted(state.keys() - own.keys())),
        _naming(
            "of another shape",
            [
                f"{k} {tuple(state[k].shape)} in place of {tuple(own[k].shape)}"
                for k in sorted(own.keys() & state.keys())
                if own[k].shape != state[k].shape
            ],
        ),
        _naming("keys nobody knows", sorted(key for key in leftover if not _harmless(key))),
    ]
    if any(misfits):
        raise InputError(
            f"{path} is not the network {arch}: {'; '.join(m for m in misfits if m)}: choose another --arch, or give "
            "the sizes that differ with --set (embed_dim, depths, heads, window, image_size)"
        )
    if not all(torch.isfinite(t).all() for t in state.values() if t.is_floating_point()):
        raise InputError(f"{path} holds weights that are not finite: choose another epoch")
    module.load_state_dict(state)


def _harmless(key: str) -> bool:
    """Not the network's (metrics, losses), or known to be without effect in it."""
    return is_unread(key) or key.startswith(("criterion.", "val_", "train_", "test_"))


def _naming(what: str, names: Sequence[str]) -> str:
    return f"{len(names)} {what} ({', '.join(names[:3])}{', ...' if len(names) > 3 else ''})" if names else ""


def _card(
    arch: str, classes: str, shape: tuple[int, int], options: dict[str, Any], about: Mapping[str, Any], path: Path
) -> ModelCard:
    """The card of an imported network of ``shape`` (bands, classes), its weights not yet hashed."""
    bands, count = shape
    data = DATASETS.get(classes)
    legend = _legend_of(classes) if data is None else data.legend
    if len(legend) != count:
        raise InputError(f"--classes {classes} names {len(legend)} classes, but {path} was trained for {count}")
    return ModelCard(
        name=f"{arch}-{path.stem}",
        description=f"Imported from {path.name}, a checkpoint of the relay paper's code ({arch}).",
        citation=_CITATION,
        architecture={k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        input=InputSpec(
            gsd_m=about.get("gsd_m", data.gsd_m if data else None), band=_bands(data, bands, about)
        ),
        window=WindowSpec(
            size=about["size"], context_factor=about["factor"], context="decimate",
            overlap=about.get("overlap", data.overlap if data else 0.25),
        ),
        class_=tuple(ClassSpec(id=c.id, name=c.name, color=c.color) for c in legend.classes),
        background=legend.background,
        ignore=legend.ignore,
        weights=WeightsSpec(sha256=_UNKNOWN_SHA),
        training={"imported_from": path.name, "architecture": arch},
    )  # fmt: skip


def _legend_of(classes: str) -> Legend:
    """The classes of a TOML file, or of names with colours of a palette."""
    if classes.endswith(".toml"):
        return read_legend(classes)
    names = [name.strip() for name in classes.split(",")]
    return Legend(tuple(LegendClass(i, name, _COLORS[i % len(_COLORS)]) for i, name in enumerate(names)))


def _bands(data: PublishedData | None, count: int, about: Mapping[str, Any]) -> tuple[BandSpec, ...]:
    """The input channels; a mean that nobody knows is nan, and `check_fit` refuses to predict with it."""
    bands = data.bands if data else tuple(BandSpec(name=f"band{i + 1}", mean=math.nan) for i in range(count))
    if len(bands) != count:
        names = ", ".join(b.name for b in bands)
        raise InputError(f"the data set has {len(bands)} bands ({names}), but the checkpoint was trained on {count}")
    for key in ("mean", "std"):
        if key in about:
            values = about[key]
            if not isinstance(values, list) or len(values) != count:
                raise InputError(f"--set {key} needs a list of {count} numbers, one per band: {key}=[...]")
            bands = tuple(BandSpec(**{**b.model_dump(), key: v}) for b, v in zip(bands, values, strict=True))
    return bands


def _notes(card: ModelCard) -> tuple[str, ...]:
    unknown = [band.name for band in card.input.band if math.isnan(band.mean)]
    if not unknown:
        return ()
    return (
        f"The mean and std of {', '.join(unknown)} are in no checkpoint: write the training set's into card.toml "
        "before you predict, or import again with --set mean=[...] --set std=[...].",
    )
