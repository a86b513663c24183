"""Reference tensors of the authors' networks, as test cases (see ../golden/README.md)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from safetensors import safe_open
from torch import Tensor, nn

from uhrseg.models import build

FOLDER = Path(__file__).parents[1] / "golden" / "relay"
SHARED = Path(__file__).parents[3] / "shared" / "golden"  # all of them, some too large for the repository


def find(folder: str, name: str) -> Path:
    """A reference file, from the repository or from the folder of all of them; skips the test without it."""
    for root in (FOLDER.parent, SHARED):
        for path in (root / folder / f"{name}.safetensors", root / folder / "mini" / f"{name}.safetensors"):
            if path.is_file():
                return path
    pytest.skip(f"the reference {folder}/{name} is not kept in the repository: it is too large")


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
    config |= config.get("net", {})  # of decision fusion, one level down
    state = {key.removeprefix("state."): t for key, t in tensors.items() if key.startswith("state.")}
    return Case(config, state, tensors)


def network(case: Case, **more: Any) -> nn.Module:
    """Our network for the constructor arguments of theirs; ``more`` goes to `build`."""
    config = case.config
    trunk, options = _trunk(config)
    relays = config.get("num_register_tokens") or config.get("nb_register", 0)
    two_scales = config.get("multi_scale", False)
    return build(
        trunk,
        bands=case.local.shape[1],
        classes=config["num_classes"],
        size=case.local.shape[-1],
        strategy="relays" if two_scales else "registers" if relays else "single",
        relays=relays or 4,
        order="sequential" if config.get("relay_order") == "global-then-local" else "parallel",
        share_projector=config.get("share_patch_embed", "Glam" not in config["cls"]),
        **{**options, **more},
    )


def _trunk(config: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    options = {"embed_dim": config["embed_dim"], "heads": config["num_heads"]}
    if "ViT" in config["cls"]:
        shared = {"share_blocks": config.get("share_scale_parameters", True)}
        return "vit_s", {**options, **shared, "depth": config["depth"], "patch_size": config["patch_size"]}
    options |= {"depths": config["depths"], "window": config["window_size"]}
    if config["cls"] == "Glam":
        head = config["segmentation_head"]
        uper = {"head": "upernet_relay", "head_channels": head.get("channels")}
        options |= uper if head["cls"] == "UPerHead" else {"head": "linear"}
        return "glam_t", {**options, "global_tokens": config["gt_num"]}
    if config["cls"] == "Flatten_swin_module":  # their window is that of the linear stages: the whole map
        return "flatten_swin_t", {**options, "window": config["swindow_sizes"], "patch_size": config["patch_size"]}
    return "swinv2_t", {**options, "patch_size": config["patch_size"]}
