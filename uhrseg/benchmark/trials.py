"""The paper's tables as trials: what changes in a recipe, and the mIoU the paper reports (Relay tokens, section 4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

__all__ = ["DATASETS", "TRIALS", "Trial", "trials_for"]

DATASETS = ("archaeoscape", "urur", "gleason", "cityscapes", "dubai")
"""Suites that need data; the first four are the paper's."""


@dataclass(frozen=True)
class Trial:
    """One line of one table: a recipe with `changes` (``table.key=value``), and the paper's mIoU per data set, in %."""

    table: str
    name: str
    changes: tuple[str, ...]
    paper: Mapping[str, float] = field(default_factory=dict)
    datasets: tuple[str, ...] = DATASETS


def _row(archaeoscape: float, urur: float, gleason: float, cityscapes: float) -> dict[str, float]:
    return dict(zip(DATASETS, (archaeoscape, urur, gleason, cityscapes), strict=False))


def _changes(trunk: str, strategy: str, *more: str) -> tuple[str, ...]:
    return f"model.trunk={trunk}", f"model.strategy={strategy}", *more


_SEPARATE = "model.share_projector=false"  # Flatten Swin and GLAM: separate on every data set (section 4.1)
_CNN = ("window.size=512", "model.drop_path=0")

TABLE_1 = (
    Trial("Table 1", "ViT", _changes("vit_s", "single"), _row(46.5, 36.3, 33.2, 53.0)),
    Trial("Table 1", "ViT + relays", _changes("vit_s", "relays"), _row(46.7, 40.4, 49.1, 61.0)),
    Trial("Table 1", "SwinV2", _changes("swinv2_s", "single"), _row(51.9, 41.0, 48.1, 68.2)),
    Trial("Table 1", "SwinV2 + relays", _changes("swinv2_s", "relays"), _row(57.8, 46.4, 55.5, 75.1)),
    Trial("Table 1", "Flatten Swin", _changes("flatten_swin_s", "single"), _row(53.4, 43.0, 50.7, 70.2)),
    Trial(
        "Table 1", "Flatten Swin + relays", _changes("flatten_swin_s", "relays", _SEPARATE),
        _row(55.2, 45.8, 57.7, 77.5),
    ),
    Trial("Table 1", "GLAM", _changes("glam_s", "single"), _row(52.5, 43.9, 47.7, 72.9)),
    Trial("Table 1", "GLAM + relays", _changes("glam_s", "relays", _SEPARATE), _row(53.8, 44.5, 54.1, 76.9)),
    Trial(
        "Table 1", "DeepLabv3", _changes("deeplabv3", "single", *_CNN, "model.head=bilinear"),
        _row(49.7, 41.7, 46.3, 56.6),
    ),
    Trial("Table 1", "U-Net", _changes("unet", "single", *_CNN), _row(49.9, 43.1, 53.5, 67.8)),
    Trial("Table 1", "PVTv2", _changes("pvtv2", "single"), _row(52.1, 41.2, 48.6, 66.1)),
)  # fmt: skip

TABLE_3 = (
    Trial("Table 3", "Sliding window", _changes("swinv2_s", "single"), _row(51.9, 41.0, 48.1, 68.2)),
    Trial("Table 3", "Registers", _changes("swinv2_s", "registers"), _row(53.2, 41.4, 47.8, 68.0)),
    Trial("Table 3", "Downsampling", _changes("swinv2_s", "downsampling"), _row(47.1, 45.3, 55.1, 61.8)),
    Trial("Table 3", "Decision fusion", _changes("swinv2_s", "decision_fusion"), _row(56.5, 43.8, 55.1, 72.3)),
    Trial("Table 3", "Relay tokens", _changes("swinv2_s", "relays"), _row(57.8, 45.6, 57.0, 75.1)),
    Trial("Table 3", "Relay tokens, parallel", _changes("swinv2_s", "relays", "model.order=parallel"), {}, ("dubai",)),
)

FIGURE_6 = tuple(
    Trial("Figure 6", f"context {256 * k} px", _changes("swinv2_s", "relays", f"window.context_factor={k}"))
    for k in (2, 4, 8, 16)
)  # the figure's numbers are not in the text

_RELAYS = {2: 51.2, 4: 57.8, 8: 55.7}  # Table 6, configuration B
FIGURE_7 = tuple(
    Trial(
        "Figure 7", f"{n} relays", _changes("swinv2_s", "relays", f"model.relays={n}"),
        {"archaeoscape": _RELAYS[n]} if n in _RELAYS else {}, ("archaeoscape", "dubai"),
    )
    for n in (1, 2, 4, 8, 16, 32)
)  # fmt: skip


def _table_6(dataset: str, trunk: str, numbers: Mapping[str, float], shared: bool) -> tuple[Trial, ...]:
    no_cons, no_global = "loss.consistency_weight=0", "loss.global_weight=0"
    other = f"model.share_projector={'false' if shared else 'true'}"
    lines = {
        "Relay tokens": _changes(trunk, "relays"),
        "Sliding window": _changes(trunk, "single"),
        "no consistency loss": _changes(trunk, "relays", no_cons),
        "no global loss": _changes(trunk, "relays", no_global),
        "neither loss": _changes(trunk, "relays", no_cons, no_global),
        "2 relays": _changes(trunk, "relays", "model.relays=2"),
        "8 relays": _changes(trunk, "relays", "model.relays=8"),
        "Token concatenation": _changes(trunk, "token_concat"),
        "Different projectors" if shared else "Shared projectors": _changes(trunk, "relays", other),
    }
    return tuple(
        Trial("Table 6", name, lines[name], {dataset: value}, (dataset,)) for name, value in numbers.items()
    )  # fmt: skip


TABLE_6 = (
    *_table_6("gleason", "vit_s", {
        "Relay tokens": 49.1, "Sliding window": 33.2, "no consistency loss": 47.2, "no global loss": 47.8,
        "neither loss": 48.1, "2 relays": 49.3, "8 relays": 46.3, "Token concatenation": 46.8,
        "Different projectors": 46.3,
    }, shared=True),
    *_table_6("archaeoscape", "swinv2_s", {
        "Relay tokens": 57.8, "Sliding window": 51.9, "no consistency loss": 52.1, "no global loss": 50.9,
        "neither loss": 48.6, "2 relays": 51.2, "8 relays": 55.7, "Shared projectors": 49.6,
    }, shared=False),
)  # fmt: skip

TABLE_7 = (
    Trial("Table 7", "ViT", _changes("vit_s", "single"), {"cityscapes": 53.0}, ("cityscapes",)),
    Trial("Table 7", "ViT + relays", _changes("vit_s", "relays"), {"cityscapes": 61.0}, ("cityscapes",)),
    Trial(
        "Table 7", "ViT + relays, 6 blocks", _changes("vit_s", "relays", "model.depth=6"), {"cityscapes": 55.0},
        ("cityscapes",),
    ),
    Trial(
        "Table 7", "ViT + relays, parallel", _changes("vit_s", "relays", "model.order=parallel"), {"cityscapes": 56.4},
        ("cityscapes",),
    ),
)  # fmt: skip

_SIZES = {"t": (64.9, 73.5), "s": (68.2, 75.1), "b": (68.1, 75.1), "l": (67.0, 74.1)}
TABLE_A1 = tuple(
    Trial("Table A-1", name, _changes(f"swinv2_{size}", strategy), {"cityscapes": value}, ("cityscapes",))
    for size, values in _SIZES.items()
    for name, strategy, value in (
        (f"SwinV2-{size.upper()}", "single", values[0]),
        (f"SwinV2-{size.upper()} + relays", "relays", values[1]),
    )
)

TABLE_A2 = (
    Trial(
        "Table A-2", "Flatten Swin-S / 256", _changes("flatten_swin_s", "single"), {"cityscapes": 68.0},
        ("cityscapes",),
    ),
    Trial(
        "Table A-2", "Flatten Swin-S / 512", _changes("flatten_swin_s", "single", "window.size=512"),
        {"cityscapes": 73.5}, ("cityscapes",),
    ),
    Trial(
        "Table A-2", "Flatten Swin-S / 256 + relays", _changes("flatten_swin_s", "relays", _SEPARATE),
        {"cityscapes": 75.3}, ("cityscapes",),
    ),
)  # fmt: skip

TRIALS: tuple[Trial, ...] = (*TABLE_1, *TABLE_3, *FIGURE_6, *FIGURE_7, *TABLE_6, *TABLE_7, *TABLE_A1, *TABLE_A2)


def trials_for(dataset: str) -> list[Trial]:
    """The lines of every table that concern a data set, in the paper's order."""
    return [trial for trial in TRIALS if dataset in trial.datasets]
