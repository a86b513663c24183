"""Parameters and multiply-adds of the paper's four networks, beside its Table 4.

Usage: python benchmarks/complexity.py
19 classes, 3 bands, 256 px, one window (pair), context logits included; 1 multiply-add counts as 1, as fvcore does.
The paper's parameters include a 1000-class ImageNet classifier that segmentation never runs; ours have none, so the
column "+ unused" adds its size before comparing. Networks are built without memory (torch's meta device).
"""

from __future__ import annotations

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from uhrseg.models import build

# name: (trunk, strategy, parameters in millions, multiply-adds in billions); the paper, Table 4.
TABLE_4 = {
    "ViT": ("vit_s", "single", 23.9, 6.6),
    "ViT + relay tokens": ("vit_s", "relays", 24.3, 13.6),
    "SwinV2": ("swinv2_s", "single", 64.7, 12.6),
    "SwinV2 + relay tokens": ("swinv2_s", "relays", 65.1, 26.0),
}

IMAGENET_CLASSES = 1000


def make(trunk: str, strategy: str) -> nn.Module:
    """A network of the table on the meta device."""
    with torch.device("meta"):
        return build(trunk, bands=3, classes=19, strategy=strategy, share_projector=False).eval().requires_grad_(False)


def parameters(model: nn.Module) -> float:
    """Learned numbers, in millions."""
    return sum(p.numel() for p in model.parameters()) / 1e6


def unused_classifier(model: nn.Module) -> float:
    """What the paper's counts add, in millions: the ImageNet classifier its networks carry and never run."""
    return IMAGENET_CLASSES * (model.trunk.channels[-1] + 1) / 1e6


def multiply_adds(model: nn.Module) -> float:
    """Multiply-adds of one window (pair) of 256 px with all logits, in billions."""
    image = torch.empty(1, 3, 256, 256, device="meta")
    relays = model.strategy == "relays"
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        model(image, image if relays else None, with_context_logits=relays)
    return counter.get_total_flops() / 2e9


def main() -> None:
    """Print the table."""
    print(f"{'model':24}{'params M':>10}{'+ unused':>10}{'paper':>8}{'GMAC':>8}{'paper':>8}")
    for name, (trunk, strategy, paper_m, paper_g) in TABLE_4.items():
        model = make(trunk, strategy)
        own, total = parameters(model), parameters(model) + unused_classifier(model)
        print(f"{name:24}{own:10.2f}{total:10.2f}{paper_m:8.1f}{multiply_adds(model):8.2f}{paper_g:8.1f}")


if __name__ == "__main__":
    main()
