"""Names of the authors' published checkpoints -> names of ours.

Of the relay paper's code (github.com/YohannPerron/RelayToken); the GLAM paper's are in `published_glam`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from uhrseg.errors import InputError
from uhrseg.models.published_glam import from_glam
from uhrseg.models.renaming import READ, Table, next_stage, rename

__all__ = ["PUBLISHED", "from_published", "is_fusion", "is_unread"]

_SINGLE = {"strategy": "single"}
_PARALLEL = {"strategy": "relays", "order": "parallel"}  # the published ViT and Swin (the paper's Eq. 11-13)
_SEQUENTIAL = {"strategy": "relays", "order": "sequential"}
_DEEP = {"depths": (2, 2, 18, 2)}  # the published Swin2_T forgets its own depths
_UPER = {"head": "upernet_relay", "head_channels": 512}

PUBLISHED: dict[str, dict[str, Any]] = {
    "vit_s": {"trunk": "vit_s", **_SINGLE},
    "vit_m": {"trunk": "vit_m", **_SINGLE},
    "vit_b": {"trunk": "vit_b", **_SINGLE},
    "rt_vit_s": {"trunk": "vit_s", **_PARALLEL},
    "swin2_t": {"trunk": "swinv2_t", **_SINGLE, **_DEEP},
    "swin2_s": {"trunk": "swinv2_s", **_SINGLE},
    "swin2_b": {"trunk": "swinv2_b", **_SINGLE},
    "swin2_l": {"trunk": "swinv2_l", **_SINGLE},
    "rt_swin2_t": {"trunk": "swinv2_t", **_PARALLEL},
    "rt_swin2_s": {"trunk": "swinv2_s", **_PARALLEL},
    "rt_swin2_b": {"trunk": "swinv2_b", **_PARALLEL},
    "rt_swin2_l": {"trunk": "swinv2_l", **_PARALLEL},
    "decision_fusion_swin2_s": {"trunk": "swinv2_s", "strategy": "decision_fusion"},
    "flatten_swin_s": {"trunk": "flatten_swin_s", **_SINGLE, "faithful": True},
    "rt_flatten_swin_s": {"trunk": "flatten_swin_s", **_SEQUENTIAL, "faithful": True},
    "glam_s": {"trunk": "glam_s", **_SINGLE, **_UPER, "position": "table", "faithful": True},
    "rt_glam_s": {"trunk": "glam_s", **_SEQUENTIAL, **_UPER, "position": "table", "faithful": True},
    "rt_glam_s_lin": {"trunk": "glam_s", **_SEQUENTIAL, "position": "table", "faithful": True},
}
"""The relay paper's networks by the names of its configurations -> arguments of `build`."""

# What the published networks carry and never read (see `from_published`).
_UNREAD = re.compile(
    r"\.(head|fc_norm)\.|\.patch_embed\.1\.|\b(relative_position_index|attn_mask|positional_encoding_?)$"
    r"|\.gt_attn\.|\.pe$|^glam_swin_unet\.norm\d\."
)


def is_unread(key: str) -> bool:
    """Whether a key that `from_published` leaves over is known to have no effect in the published network."""
    return _UNREAD.search(key) is not None


# (pattern, replacement): first match wins; keys have lost the Lightning prefix 'net.'. Sub-modules of the ViT with
# relays sit in lists, so '.0' follows their names; an older class lacks it, and both are read.
_SWIN: Table = (
    (r"^model\.register_token$", "trunk.relays"),
    (r"^model\.patch_embed\.1\.", "trunk.context_embed."),
    (r"^model\.patch_embed\.(0\.)?(?=proj|norm)", "trunk.patch_embed."),
    (r"^model\.layers\.(\d+)\.downsample_token\.", r"trunk.layers.\1.relay_projection."),
    (r"^model\.(layers|norm)\.", r"trunk.\1."),
)
_VIT: Table = (
    (r"^model\.reg_token$", "trunk.relays"),
    (r"^model\.patch_embed\.1\.", "trunk.context_embed."),
    (r"^(model|ViT)\.patch_embed\.(0\.)?(?=proj|norm)", "trunk.body.patch_embed."),
    (r"^model\.blocks\.(\d+)\.(norm1|attn|norm2|mlp)\.1\.", r"trunk.context_blocks.\1.\2."),
    (r"^(model|ViT)\.blocks\.(\d+)\.(norm1|attn|norm2|mlp)\.(0\.)?(?!\d)", r"trunk.body.blocks.\2.\3."),
    (r"^model\.pos_embed\.1$", "trunk.context_pos_embed"),
    (r"^(model|ViT)\.pos_embed(\.0)?$", "trunk.body.pos_embed"),
)
_FLATTEN: Table = (
    (r"^model\.layers\.(\d+)\.downsample\.", next_stage("downsample")),
    (r"^model\.layers\.(\d+)\.downsample_token\.", next_stage("relay_projection")),
    *_SWIN[:3],
    (r"^model\.layers\." + READ, "trunk.layers."),
)
_HEAD: Table = ((r"^seg_head\.layers\.0\.", "head."),)
_COPIES = ("net_high_res.", "net_low_res.")  # of the network, in a checkpoint of decision fusion


def from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a state dict of the relay paper's code; returns what our networks know and, under its old names, the rest.

    Left over are unused classifiers, index and mask buffers, Flatten-Swin's positions, what else GLAM's code carries
    and never reads (`_unread`) and, where both scales share their projector, its second copy: two projectors of
    identical values are how a shared one was published. Decision fusion is one network under two names, whose logits
    are added: its head comes back doubled, since ours takes their mean. Raises `InputError` when the two differ.
    """
    state = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    if is_fusion(state):
        mapped, leftover = from_published(_one_of_two(state))
        return {k: 2 * v if k.startswith("head.") else v for k, v in mapped.items()}, leftover
    if any(key.startswith("glam_swin_unet.") for key in state):
        return from_glam(state)
    table = _table_of(state) + _HEAD
    names = {key: rename(key, table) for key in state}
    shared = _shared_copies(state)
    mapped = {name: state[key] for key, name in names.items() if name is not None and key not in shared}
    leftover = {key: state[key] for key, name in names.items() if name is None or key in shared}
    return _split_positions(mapped), leftover


def is_fusion(state: Mapping[str, Tensor]) -> bool:
    """Whether a state dict is that of the relay paper's decision fusion."""
    return any(key.removeprefix("net.").startswith(_COPIES) for key in state)


def _one_of_two(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The network that stands in a state dict for the local windows and again for the context."""
    one, other = (
        {key.removeprefix(copy): tensor for key, tensor in state.items() if key.startswith(copy)} for copy in _COPIES
    )
    if one.keys() != other.keys() or not all(torch.equal(one[key], other[key]) for key in one):
        raise InputError(
            "the checkpoint has another network for each scale: decision fusion is read only where both share one"
        )
    return {**one, **{key: tensor for key, tensor in state.items() if not key.startswith(_COPIES)}}


def _table_of(state: Mapping[str, Tensor]) -> Table:
    """By what only this family has; the final norm of Flatten-Swin is the last of ours."""
    stages = {int(match[1]) for match in (re.match(r"model\.layers\.(\d+)\.", key) for key in state) if match}
    if any(key.endswith(".attn.dwc.weight") for key in state):
        return (*_FLATTEN, (r"^model\.norm\.", f"trunk.norms.{max(stages)}."))
    return _SWIN if stages else _VIT


def _shared_copies(state: Mapping[str, Tensor]) -> set[str]:
    twins = {key: key.replace("patch_embed.1.", "patch_embed.0.") for key in state if ".patch_embed.1." in key}
    return set(twins) if all(torch.equal(state[a], state[b]) for a, b in twins.items()) else set()


def _split_positions(mapped: dict[str, Tensor]) -> dict[str, Tensor]:
    """The first R rows of a ViT's position table belong to the relays; the context's table wins, being read last."""
    own, context, relays = "trunk.body.pos_embed", "trunk.context_pos_embed", mapped.get("trunk.relays")
    if relays is None or own not in mapped:
        return mapped
    count = relays.shape[1]
    tables = {name: mapped[name] for name in (own, context) if name in mapped}
    rows = {name: table[:, count:] for name, table in tables.items()}
    return {**mapped, **rows, "trunk.relay_position": tables.get(context, tables[own])[:, :count]}
