"""Names of the authors' published checkpoints -> names of ours.

`from_published` reads the relay paper's (github.com/YohannPerron/RelayToken), `from_glam` the GLAM paper's
(github.com/themyrl/glam).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

__all__ = ["from_glam", "from_published"]

_Table = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


def _next_stage(name: str) -> Callable[[re.Match[str]], str]:
    """What they keep at the end of stage N leads into stage N + 1 here: group 1 is N, the rest of the key follows."""
    return lambda match: f"trunk.layers.{int(match[1]) + 1}.{name}."


# What is not a buffer (computed, and of another size with other relays or images), nor the keys' positions, which the
# relay paper's Flatten-Swin carries and never adds.
_READ = r"(?!.*\b(?:relative_position_index|attn_mask|positional_encoding_?)$)"

# (pattern, replacement): first match wins; keys have lost the Lightning prefix 'net.'. Sub-modules of the ViT with
# relays sit in lists, so '.0' follows their names; an older class lacks it, and both are read.
_SWIN: _Table = (
    (r"^model\.register_token$", "trunk.relays"),
    (r"^model\.patch_embed\.1\.", "trunk.context_embed."),
    (r"^model\.patch_embed\.(0\.)?(?=proj|norm)", "trunk.patch_embed."),
    (r"^model\.layers\.(\d+)\.downsample_token\.", r"trunk.layers.\1.relay_projection."),
    (r"^model\.(layers|norm)\.", r"trunk.\1."),
)
_VIT: _Table = (
    (r"^model\.reg_token$", "trunk.relays"),
    (r"^model\.patch_embed\.1\.", "trunk.context_embed."),
    (r"^(model|ViT)\.patch_embed\.(0\.)?(?=proj|norm)", "trunk.body.patch_embed."),
    (r"^(model|ViT)\.blocks\.(\d+)\.(norm1|attn|norm2|mlp)\.(0\.)?(?!\d)", r"trunk.body.blocks.\2.\3."),
    (r"^model\.pos_embed\.1$", "trunk.context_pos_embed"),
    (r"^(model|ViT)\.pos_embed(\.0)?$", "trunk.body.pos_embed"),
)
_FLATTEN: _Table = (
    (r"^model\.layers\.(\d+)\.downsample\.", _next_stage("downsample")),
    (r"^model\.layers\.(\d+)\.downsample_token\.", _next_stage("relay_projection")),
    *_SWIN[:3],
    (r"^model\.layers\." + _READ, "trunk.layers."),
)
_GLAM: _Table = (
    (r"^register_token$", "trunk.relays"),
    (r"^patch_embed\.1\.", "trunk.context_embed."),
    (r"^patch_embed\.(0\.)?(?=proj|norm)", "trunk.patch_embed."),
    (r"^layers\.(\d+)\.downsample\.", _next_stage("downsample")),
    (r"^layers\.(\d+)\.register_downsample\.", _next_stage("relay_projection")),
    (r"^layers\.(\d+)\.pe$", r"trunk.layers.\1.position.table"),
    (r"^layers\." + _READ, "trunk.layers."),
    (r"^norm(\d)\.", r"trunk.norms.\1."),
)
_UPER_NAMES: _Table = (
    (r"^psp_modules\.(\d)\.1\.conv\.|^psp_modules\.(\d)\.1\.(?!bn)", r"head.pools.\1\2.0."),
    (r"^psp_modules\.(\d)\.(?:2|1\.bn)\.", r"head.pools.\1.1."),
    (r"^(?:conv_seg|cls_seg\.0)\.", "head.classify."),
    (r"^lateral_convs\.", "head.laterals."),
    (r"^fpn_convs\.", "head.smooth."),
    (r"^fpn_bottleneck\.", "head.fuse."),
    (r"^bottleneck\.", "head.bottleneck."),
)
_HEAD: _Table = ((r"^seg_head\.layers\.0\.", "head."),)


def from_published(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a state dict of the relay paper's code; returns what our networks know and, under its old names, the rest.

    Left over are unused classifiers, index and mask buffers, Flatten-Swin's positions, what else GLAM's code carries
    and never reads (`_unread`) and, where both scales share their projector, its second copy: two projectors of
    identical values are how a shared one was published. A ViT with separate blocks per scale leaves '.1.' keys over.
    """
    state = {key.removeprefix("net."): tensor for key, tensor in state.items()}
    if any(key.startswith("glam_swin_unet.") for key in state):
        return _from_glam_names(state)
    table = _table_of(state) + _HEAD
    names = {key: _rename(key, table) for key in state}
    shared = _shared_copies(state)
    mapped = {name: state[key] for key, name in names.items() if name is not None and key not in shared}
    leftover = {key: state[key] for key, name in names.items() if name is None or key in shared}
    return _split_positions(mapped), leftover


def from_glam(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a state dict of the GLAM paper's code, backbone and UPerNet; returns ours and the rest, as above."""
    return _from_glam_names(state)


def _table_of(state: Mapping[str, Tensor]) -> _Table:
    """By what only this family has; the final norm of Flatten-Swin is the last of ours."""
    stages = {int(match[1]) for match in (re.match(r"model\.layers\.(\d+)\.", key) for key in state) if match}
    if any(key.endswith(".attn.dwc.weight") for key in state):
        return (*_FLATTEN, (r"^model\.norm\.", f"trunk.norms.{max(stages)}."))
    return _SWIN if stages else _VIT


def _from_glam_names(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    names = {key: _glam_name(key) for key in state}
    unread = _unread({name for name in names.values() if name is not None})
    mapped = {name: state[key] for key, name in names.items() if name is not None and name not in unread}
    leftover = {key: state[key] for key, name in names.items() if name is None or name in unread}
    return mapped, leftover


def _glam_name(key: str) -> str | None:
    for prefix in ("seg_head.", "decode_head."):
        if key.startswith(prefix):
            return _rename(key, _HEAD) or _uper_name(key.removeprefix(prefix))
    return _rename(re.sub(r"^(glam_swin_unet|backbone)\.", "", key), _GLAM)


def _uper_name(key: str) -> str | None:
    name = _rename(key, _UPER_NAMES)
    return None if name is None else re.sub(r"\.(conv|bn)\.(?=[^.]+$)", lambda m: f".{_CONV_BN[m[1]]}.", name)


_CONV_BN = {"conv": 0, "bn": 1}


def _unread(names: set[str]) -> set[str]:
    """Names that GLAM's published code computes or stores to no effect, so ours has no place for them.

    Of each stage: the global attention of its last block, whose tokens are dropped; with one block, the positions
    too. Under a linear head: the norms of all maps but the last.
    """
    depth: dict[str, int] = {}
    for stage, block in (m.groups() for m in (re.match(r"(.*)\.blocks\.(\d+)\.", name) for name in names) if m):
        depth[stage] = max(depth.get(stage, 0), int(block) + 1)
    unread = tuple(f"{stage}.blocks.{count - 1}.gt_attn." for stage, count in depth.items())
    unread += tuple(f"{stage}.position." for stage, count in depth.items() if count == 1)
    if "head.weight" in names:
        unread += tuple(f"trunk.norms.{i}." for i in range(len(depth) - 1))
    return {name for name in names if name.startswith(unread)}


def _rename(key: str, table: _Table) -> str | None:
    for pattern, replacement in table:
        new, count = re.subn(pattern, replacement, key)
        if count:
            return new
    return None


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
