"""Parameters and multiply-adds of the papers' networks, beside the papers' tables.

Usage: python benchmarks/complexity.py
1 multiply-add counts as 1, as fvcore does; context logits included. Networks are built without memory (torch's meta
device). Published networks carry parameters that are never run or whose result is thrown away; ours lack them, so the
column "+ unread" adds their number before comparing. (Their multiply-adds are not in the papers' figures: fvcore counts
what the output hangs on.)
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uhrseg.models import build
from uhrseg.models.pyramid import PyramidTrunk
from uhrseg.models.relay import one_scale

IMAGENET_CLASSES = 1000
AUXILIARY_CHANNELS = 256  # of the FCN head that mmsegmentation trains beside UPerNet


@dataclass(frozen=True)
class Row:
    """One network of a paper: how it is built, and the paper's millions of parameters and billions of multiply-adds."""

    trunk: str
    paper_m: float
    paper_g: float
    options: dict[str, Any] = field(default_factory=dict)
    classes: int = 19
    size: int = 256
    backbone_only: bool = False  # in the multiply-adds


_GLAM = {"head": "upernet_relay", "faithful": True}
_MMSEG = {"strategy": "single", "head": "upernet_mmseg"}
_UNET = {"strategy": "single", "head": "unet"}
_FAITHFUL = {"faithful": True}
_AT_512 = {"classes": 150, "size": 512}

# The relay paper, Table 4: 19 classes, 3 bands, 256 px.
TABLE_4 = {
    "ViT": Row("vit_s", 23.9, 6.6, {"strategy": "single"}),
    "ViT + relay tokens": Row("vit_s", 24.3, 13.6),
    "SwinV2": Row("swinv2_s", 64.7, 12.6, {"strategy": "single"}),
    "SwinV2 + relay tokens": Row("swinv2_s", 65.1, 26.0),
    "GLAM": Row("glam_s", 132.0, 75.4, {"strategy": "single", **_GLAM}),
    "GLAM + relay tokens": Row("glam_s", 133.0, 152.0, _GLAM),
}

# The relay paper prints none for these: the sizes and costs of its published code, run.
PUBLISHED_CODE = {
    "Flatten-Swin": Row("flatten_swin_s", 64.98, 12.50, {"strategy": "single"}),
    "Flatten-Swin + relay tokens": Row("flatten_swin_s", 65.37, 25.69),
    "GLAM + relay tokens, linear head": Row("glam_s", 116.31, 37.93, {"head": "linear", **_FAITHFUL}),
}

# The GLAM paper, Table 6: 121 M, 81 G and 197 M, 99 G, where G leaves out the head and the padding of windows.
# Here the same networks as its published code runs them, padding included: 150 classes, 512 px.
TABLE_6 = {
    "Swin-UPerNet T": Row("swin_t", 59.94, 25.6, _MMSEG, **_AT_512, backbone_only=True),
    "Swin-UPerNet B": Row("swin_b", 121.28, 87.1, _MMSEG, **_AT_512, backbone_only=True),
    "GLAM-Swin-UPerNet T": Row("glam_t", 104.99, 32.2, {**_MMSEG, **_FAITHFUL}, **_AT_512, backbone_only=True),
    "GLAM-Swin-UPerNet S": Row("glam_s", 133.40, 60.4, {**_MMSEG, **_FAITHFUL}, **_AT_512, backbone_only=True),
    "GLAM-Swin-UPerNet B": Row("glam_b", 197.78, 104.7, {**_MMSEG, **_FAITHFUL}, **_AT_512, backbone_only=True),
}

# The U-Nets of the GLAM paper's Table 1, which prints scores only: its published code, run.
TABLE_1 = {
    "Swin-UNet T": Row("swin_t", 41.4, 53.8, _UNET, **_AT_512),
    "Swin-UNet S": Row("swin_s", 84.0, 101.3, _UNET, **_AT_512),
    "Swin-UNet B": Row("swin_b", 149.2, 177.0, _UNET, **_AT_512),
    "GLAM-Swin-UNet T": Row("glam_t", 124.3, 66.4, {**_UNET, **_FAITHFUL}, **_AT_512),
    "GLAM-Swin-UNet S": Row("glam_s", 181.2, 122.6, {**_UNET, **_FAITHFUL}, **_AT_512),
    "GLAM-Swin-UNet B": Row("glam_b", 290.6, 211.0, {**_UNET, **_FAITHFUL}, **_AT_512),
    "GLAM-Swin-UNet T + NLU": Row("glam_t", 130.2, 74.4, {**_UNET, **_FAITHFUL, "head": "unet_nlu"}, **_AT_512),
    "GLAM-Swin-UNet S + NLU": Row("glam_s", 187.0, 130.7, {**_UNET, **_FAITHFUL, "head": "unet_nlu"}, **_AT_512),
    "GLAM-Swin-UNet B + NLU": Row("glam_b", 301.0, 225.0, {**_UNET, **_FAITHFUL, "head": "unet_nlu"}, **_AT_512),
}


def make(row: Row, **more: Any) -> nn.Module:
    """A network of a table on the meta device; ``more`` goes to `build`."""
    options = {"share_projector": False, **row.options, **more}
    with torch.device("meta"):
        model = build(row.trunk, bands=3, classes=row.classes, size=row.size, **options)
    return model.eval().requires_grad_(False)


def parameters(model: nn.Module) -> float:
    """Learned numbers, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def multiply_adds(model: nn.Module, row: Row) -> float:
    """Multiply-adds of one window (pair) with all logits, in billions."""
    image = torch.empty(1, 3, row.size, row.size, device="meta")
    run: Callable[[], object] = lambda: one_scale(model.trunk, image)  # noqa: E731
    if not row.backbone_only:
        relays = model.strategy == "relays"
        run = lambda: model(image, image if relays else None, with_context_logits=relays)  # noqa: E731
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9


def unread(model: nn.Module, row: Row) -> float:
    """Millions of parameters that the published network has and never reads."""
    channels, head = model.trunk.channels, str(row.options.get("head", "linear"))
    if not isinstance(model.trunk, PyramidTrunk):
        return IMAGENET_CLASSES * (channels[-1] + 1) / 1e6
    numbers = 0
    if row.trunk.startswith("glam"):  # the exchange after the last block of each stage
        stages = channels + (channels[:-1] if "unet" in head else [])
        numbers += sum(4 * c * (c + 1) for c in stages)
    if head == "linear" and row.trunk.startswith("glam"):
        numbers += sum(2 * c for c in channels[:-1])  # norms of maps the head does not read
    if head == "upernet_mmseg":  # the auxiliary head, for training only
        numbers += (9 * channels[2] + 2 + row.classes) * AUXILIARY_CHANNELS + row.classes
    if head == "unet_nlu":  # patch expansions and shortcuts that no step runs; bias rows that no offset reaches
        numbers += sum(8 * c * c + 2 * c + 2 * c * c + c for c in channels[:-1])
        numbers += sum((27**2 - 13**2) * step.up.attn.heads for step in model.head.steps)
    return numbers / 1e6


def main() -> None:
    """Print the tables, and what the defaults weigh that leave out what the published code never needed."""
    tables = {
        "The relay paper, Table 4": TABLE_4, "The relay paper's code": PUBLISHED_CODE,
        "The GLAM paper's code, Table 6": TABLE_6, "The GLAM paper's code, U-Nets": TABLE_1,
    }  # fmt: skip
    for title, table in tables.items():
        print(f"\n{title}\n{'':34}{'params M':>9}{'+ unread':>9}{'theirs':>8}{'default':>9}{'GMAC':>9}{'theirs':>8}")
        for name, row in table.items():
            model = make(row)
            own, cost, more = parameters(model), multiply_adds(model, row), unread(model, row)
            default = parameters(make(row, **({"faithful": False} if "faithful" in row.options else {})))
            print(f"{name:34}{own:9.2f}{own + more:9.2f}{row.paper_m:8.1f}{default:9.2f}{cost:9.2f}{row.paper_g:8.1f}")


if __name__ == "__main__":
    main()
