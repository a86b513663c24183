"""Reference tensors of the authors' networks, as test cases (see ../golden/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import safe_open
from torch import Tensor, nn

from uhrseg.models import build

FOLDER = Path(__file__).parents[1] / "golden" / "relay"


@dataclass(frozen=True)
class Case:
    config: dict[str, Any]
    state: dict[str, Tensor]
    tensors: dict[str, Tensor]

    @property
    def local(self) -> Tensor:
        return self.tensors["input.local"]

    @property
    def context(self) -> Tensor | None:
        return self.tensors.get("input.global")


def read(path: Path) -> Case:
    with safe_open(path, "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        config = json.loads(file.metadata()["config"])
    state = {key.removeprefix("state."): t for key, t in tensors.items() if key.startswith("state.")}
    return Case(config, state, tensors)


def network(case: Case) -> nn.Module:
    """Our network for the constructor arguments of theirs."""
    config = case.config
    options = {"embed_dim": config["embed_dim"], "heads": config["num_heads"], "patch_size": config["patch_size"]}
    is_vit = "ViT" in config["cls"]
    options |= {"depth": config["depth"]} if is_vit else {"depths": config["depths"], "window": config["window_size"]}
    relays = config.get("num_register_tokens", 0)
    two_scales = config.get("multi_scale", False)
    return build(
        "vit_s" if is_vit else "swinv2_t",
        bands=case.local.shape[1],
        classes=config["num_classes"],
        size=case.local.shape[-1],
        strategy="relays" if two_scales else "registers" if relays else "single",
        relays=relays,
        order="sequential" if config.get("relay_order") == "global-then-local" else "parallel",
        share_projector=config.get("share_patch_embed", True),
        **options,
    )
