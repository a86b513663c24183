"""Names of the authors' published checkpoints -> names of ours (github.com/YohannPerron/RelayToken)."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

__all__ = ["from_published"]

# (pattern, replacement): first match wins. Inputs have lost the Lightning prefix 'net.'.
_RENAMES = (
    (r"^seg_head\.layers\.0\.", "head."),
    (r"^model\.(?:register_token)$", "trunk.relays"),
    (r"^model\.patch_embed\.0\.", "trunk.patch_embed."),
    (r"^model\.patch_embed\.1\.", "trunk.context_embed."),
    (r"^model\.patch_embed\.(?=proj|norm)", "trunk.patch_embed."),
    (r"^model\.layers\.(\d+)\.downsample_token\.", r"trunk.layers.\1.relay_projection."),
    (r"^model\.layers\.", "trunk.layers."),
    (r"^model\.norm\.", "trunk.norm."),
)


def from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a published state dict; returns what our networks know and what is left over (unused classifiers).

    Two projectors with identical values are the published form of a shared one: the second is left over.
    """
    mapped: dict[str, Tensor] = {}
    leftover: dict[str, Tensor] = {}
    for key, tensor in state.items():
        name = _rename(key.removeprefix("net."))
        (leftover if name is None else mapped)[name or key] = tensor
    return _drop_shared(mapped, leftover)


def _rename(key: str) -> str | None:
    for pattern, replacement in _RENAMES:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return None


def _drop_shared(
    mapped: dict[str, Tensor], leftover: dict[str, Tensor]
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    twins = {k: k.replace("context_embed", "patch_embed") for k in mapped if "context_embed" in k}
    if twins and all(torch.equal(mapped[k], mapped[twin]) for k, twin in twins.items()):
        leftover = {**leftover, **{k: mapped[k] for k in twins}}
        mapped = {k: v for k, v in mapped.items() if k not in twins}
    return mapped, leftover
