"""What a network costs: parameters, and multiply-adds of one window (pair). Nothing is computed: torch's meta device.

1 multiply-add counts as 1, as the papers' tables do. Matrix products and convolutions are counted, nothing else.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uhrseg.models.build import build
from uhrseg.models.segmenter import TWO_SCALES, Segmenter

__all__ = ["SIZES", "Size", "count", "multiply_adds", "network_size", "parameters"]


class Size(NamedTuple):
    """Millions of parameters, billions of multiply-adds."""

    parameters_m: float
    gmac: float


def parameters(model: nn.Module) -> float:
    """Learned numbers, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def multiply_adds(run: Callable[[], object]) -> float:
    """Multiply-adds of what ``run`` does, in billions."""
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops() / 2e9


def count(*, bands: int, size: int, **options: Any) -> Size | None:
    """Size of the network that `build` makes of these, for one local window of ``size`` px with its context.

    None for a model that is no network (``threshold``).
    """
    with torch.device("meta"):
        model = build(**options, bands=bands, size=size)
        image = torch.empty(1, bands, size, size)
    if not isinstance(model, Segmenter):
        return None
    model.eval().requires_grad_(False)
    context = image if model.strategy in TWO_SCALES else None
    return Size(parameters(model), multiply_adds(lambda: model(image, context)))


def network_size(name: str, strategy: str) -> Size | None:
    """Size of a name in `MODELS` as its recipe starts: 3 bands, 8 classes, 256 px, linear head."""
    return count(trunk=name, bands=3, classes=8, size=256, strategy=strategy)


SIZES: dict[str, tuple[Size, Size | None]] = {
    "vit_s": (Size(22.47, 6.32), Size(22.48, 12.20)),
    "vit_m": (Size(39.40, 10.84), Size(39.41, 21.01)),
    "vit_b": (Size(87.41, 23.50), Size(87.42, 45.73)),
    "swinv2_t": (Size(33.87, 6.34), Size(34.26, 12.13)),
    "swinv2_s": (Size(55.25, 11.95), Size(55.64, 23.53)),
    "swinv2_b": (Size(95.28, 20.86), Size(95.97, 41.22)),
    "swinv2_l": (Size(207.79, 62.80), Size(209.34, 124.90)),
    "swin_t": (Size(33.81, 7.75), Size(34.20, 15.26)),
    "swin_s": (Size(55.13, 14.69), Size(55.52, 29.84)),
    "swin_b": (Size(95.13, 25.72), Size(95.82, 52.37)),
    "glam_t": (Size(39.35, 9.07), Size(39.73, 17.91)),
    "glam_s": (Size(67.76, 17.45), Size(68.15, 35.38)),
    "glam_b": (Size(117.56, 30.41), Size(118.25, 61.77)),
    "flatten_swin_t": (Size(35.00, 6.28), Size(35.39, 12.06)),
    "flatten_swin_s": (Size(56.32, 11.86), Size(56.71, 23.61)),
    "flatten_swin_b": (Size(96.72, 20.75), Size(97.41, 41.45)),
    "gcvit": (Size(31.90, 10.57), None),
    "unet": (Size(24.44, 7.81), None),
    "deeplabv3": (Size(39.76, 41.02), None),
    "pvtv2": (Size(17.69, 3.05), None),
}
"""`network_size` of each name, alone and with four relays (None: it takes none). Counting takes some 20 s, so the
numbers are kept; a test counts them again."""
