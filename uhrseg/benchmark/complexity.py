"""Suite ``complexity``: parameters and multiply-adds of the papers' networks, beside the papers' tables.

1 multiply-add counts as 1, as fvcore does; context logits included. Networks are built without memory (torch's meta
device). Published networks carry parameters that are never run or whose result is thrown away; ours lack them, so the
column "as published" adds their number before comparing. (Their multiply-adds are not in the papers' figures: fvcore
counts what the output hangs on.)
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from uhrseg.benchmark.provenance import provenance
from uhrseg.benchmark.rows import Row
from uhrseg.models import build, sizes
from uhrseg.models.pyramid import PyramidTrunk
from uhrseg.models.relay import one_scale
from uhrseg.models.sizes import parameters

__all__ = ["TABLES", "Network", "complexity", "make", "multiply_adds", "parameters", "unread"]

IMAGENET_CLASSES = 1000
AUXILIARY_CHANNELS = 256  # of the FCN head that mmsegmentation trains beside UPerNet


@dataclass(frozen=True)
class Network:
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
_AT_512: dict[str, Any] = {"classes": 150, "size": 512}

# The relay paper, Table 4: 19 classes, 3 bands, 256 px.
TABLE_4 = {
    "ViT": Network("vit_s", 23.9, 6.6, {"strategy": "single"}),
    "ViT + relay tokens": Network("vit_s", 24.3, 13.6),
    "SwinV2": Network("swinv2_s", 64.7, 12.6, {"strategy": "single"}),
    "SwinV2 + relay tokens": Network("swinv2_s", 65.1, 26.0),
    "GLAM": Network("glam_s", 132.0, 75.4, {"strategy": "single", **_GLAM}),
    "GLAM + relay tokens": Network("glam_s", 133.0, 152.0, _GLAM),
}

# The relay paper prints none for these: the sizes and costs of its published code, run.
PUBLISHED_CODE = {
    "Flatten-Swin": Network("flatten_swin_s", 64.98, 12.50, {"strategy": "single"}),
    "Flatten-Swin + relay tokens": Network("flatten_swin_s", 65.37, 25.69),
    "GLAM + relay tokens, linear head": Network("glam_s", 116.31, 37.93, {"head": "linear", **_FAITHFUL}),
}

# The GLAM paper, Table 6: 121 M, 81 G and 197 M, 99 G, where G leaves out the head and the padding of windows.
# Here the same networks as its published code runs them, padding included: 150 classes, 512 px.
TABLE_6 = {
    "Swin-UPerNet T": Network("swin_t", 59.94, 25.6, _MMSEG, **_AT_512, backbone_only=True),
    "Swin-UPerNet B": Network("swin_b", 121.28, 87.1, _MMSEG, **_AT_512, backbone_only=True),
    "GLAM-Swin-UPerNet T": Network("glam_t", 104.99, 32.2, {**_MMSEG, **_FAITHFUL}, **_AT_512, backbone_only=True),
    "GLAM-Swin-UPerNet S": Network("glam_s", 133.40, 60.4, {**_MMSEG, **_FAITHFUL}, **_AT_512, backbone_only=True),
    "GLAM-Swin-UPerNet B": Network("glam_b", 197.78, 104.7, {**_MMSEG, **_FAITHFUL}, **_AT_512, backbone_only=True),
}

# The U-Nets of the GLAM paper's Table 1, which prints scores only: its published code, run.
TABLE_1 = {
    "Swin-UNet T": Network("swin_t", 41.4, 53.8, _UNET, **_AT_512),
    "Swin-UNet S": Network("swin_s", 84.0, 101.3, _UNET, **_AT_512),
    "Swin-UNet B": Network("swin_b", 149.2, 177.0, _UNET, **_AT_512),
    "GLAM-Swin-UNet T": Network("glam_t", 124.3, 66.4, {**_UNET, **_FAITHFUL}, **_AT_512),
    "GLAM-Swin-UNet S": Network("glam_s", 181.2, 122.6, {**_UNET, **_FAITHFUL}, **_AT_512),
    "GLAM-Swin-UNet B": Network("glam_b", 290.6, 211.0, {**_UNET, **_FAITHFUL}, **_AT_512),
    "GLAM-Swin-UNet T + NLU": Network("glam_t", 130.2, 74.4, {**_UNET, **_FAITHFUL, "head": "unet_nlu"}, **_AT_512),
    "GLAM-Swin-UNet S + NLU": Network("glam_s", 187.0, 130.7, {**_UNET, **_FAITHFUL, "head": "unet_nlu"}, **_AT_512),
    "GLAM-Swin-UNet B + NLU": Network("glam_b", 301.0, 225.0, {**_UNET, **_FAITHFUL, "head": "unet_nlu"}, **_AT_512),
}


TABLES = {
    "relay paper, Table 4": TABLE_4,
    "relay paper's code": PUBLISHED_CODE,
    "GLAM paper's code, Table 6": TABLE_6,
    "GLAM paper's code, U-Nets": TABLE_1,
}


def make(network: Network, **more: Any) -> Any:
    """A network of a table on the meta device; ``more`` goes to `build`."""
    options = {"share_projector": False, **network.options, **more}
    with torch.device("meta"):
        model = build(network.trunk, bands=3, classes=network.classes, size=network.size, **options)
    return model.eval().requires_grad_(False)


def multiply_adds(model: Any, network: Network) -> float:
    """Multiply-adds of one window (pair) with all logits, in billions."""
    image = torch.empty(1, 3, network.size, network.size, device="meta")
    if network.backbone_only:
        return sizes.multiply_adds(lambda: one_scale(model.trunk, image))
    relays = model.strategy == "relays"
    return sizes.multiply_adds(lambda: model(image, image if relays else None, with_context_logits=relays))


def unread(model: Any, network: Network) -> float:
    """Millions of parameters that the published network has and never reads."""
    channels, head = model.trunk.channels, str(network.options.get("head", "linear"))
    if not isinstance(model.trunk, PyramidTrunk):
        return IMAGENET_CLASSES * (channels[-1] + 1) / 1e6
    numbers: int = 0
    if network.trunk.startswith("glam"):  # the exchange after the last block of each stage
        stages = channels + (channels[:-1] if "unet" in head else [])
        numbers += sum(4 * c * (c + 1) for c in stages)
    if head == "linear" and network.trunk.startswith("glam"):
        numbers += sum(2 * c for c in channels[:-1])  # norms of maps the head does not read
    if head == "upernet_mmseg":  # the auxiliary head, for training only
        numbers += (9 * channels[2] + 2 + network.classes) * AUXILIARY_CHANNELS + network.classes
    if head == "unet_nlu":  # patch expansions and shortcuts that no step runs; bias rows that no offset reaches
        numbers += sum(8 * c * c + 2 * c + 2 * c * c + c for c in channels[:-1])
        numbers += sum((27**2 - 13**2) * step.up.attn.heads for step in model.head.steps)
    return numbers / 1e6


def complexity() -> Iterator[Row]:
    """One row per network of the papers, theirs beside ours; no weights, no memory, no data."""
    for suite, networks in TABLES.items():
        for name, network in networks.items():
            model = make(network)
            own = parameters(model)
            theirs = {"as published, M": network.paper_m, "GMAC": network.paper_g}
            metrics = {
                "parameters, M": own,
                "as published, M": own + unread(model, network),
                "GMAC": multiply_adds(model, network),
            }
            yield Row(suite=f"complexity: {suite}", name=name, metrics=metrics, paper=theirs, provenance=provenance())
