"""Names in checkpoints of GLAM -> names of ours: the GLAM paper's code (github.com/themyrl/glam) and the relay paper's.

With UPerNet, a linear head or the U-Net decoder.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from torch import Tensor

from uhrseg.models.renaming import READ, Table, next_stage, rename

__all__ = ["from_glam"]

_GLAM: Table = (
    (r"^register_token$", "trunk.relays"),
    (r"^patch_embed\.1\.", "trunk.context_embed."),
    (r"^patch_embed\.(0\.)?(?=proj|norm)", "trunk.patch_embed."),
    (r"^layers\.(\d+)\.downsample\.", next_stage("downsample")),
    (r"^layers\.(\d+)\.register_downsample\.", next_stage("relay_projection")),
    (r"^layers\.(\d+)\.pe$", r"trunk.layers.\1.position.table"),
    (r"^layers\." + READ, "trunk.layers."),
    (r"^norm(\d)\.", r"trunk.norms.\1."),
)
_UPER: Table = (
    (r"^psp_modules\.(\d)\.1\.conv\.|^psp_modules\.(\d)\.1\.(?!bn)", r"head.pools.\1\2.0."),
    (r"^psp_modules\.(\d)\.(?:2|1\.bn)\.", r"head.pools.\1.1."),
    (r"^(?:conv_seg|cls_seg\.0)\.", "head.classify."),
    (r"^lateral_convs\.", "head.laterals."),
    (r"^fpn_convs\.", "head.smooth."),
    (r"^fpn_bottleneck\.", "head.fuse."),
    (r"^bottleneck\.", "head.bottleneck."),
)
_AUXILIARY: Table = (
    (r"^convs\.0\.conv\.", "head.auxiliary.0."),
    (r"^convs\.0\.bn\.", "head.auxiliary.1."),
    (r"^conv_seg\.", "head.auxiliary.4."),
)
_CONV_BN = {"conv": 0, "bn": 1}  # places in our `nn.Sequential`s
_LINEAR: Table = ((r"^layers\.0\.", "head."),)
_UNET: Table = (
    (r"^layers_up\.0\.(?=expand|norm)", "head.steps.0.up."),
    (r"^layers_up\.(\d)\.upsample\.", r"head.steps.\1.up."),
    (r"^layers_cross_attention_up\.(\d)\.blocks\.0\.(?!proj_shortcut)expand\.", r"head.steps.\1.up.shortcut."),
    (r"^layers_cross_attention_up\.(\d)\.blocks\.0\.(?!proj_shortcut)" + READ, r"head.steps.\1.up."),
    (r"^norm_up\.", "head.norm."),
    (r"^up\.", "head.expand."),
    (r"^output\.", "head.classify."),
)


def _unet(steps: int, first: int) -> Table:
    """The U-Net's names; its decoder's stages are numbered from ``first``."""
    stages = tuple(
        entry
        for i in range(steps)
        for entry in (
            (rf"^layers_up\.{i + first}\.pe$", f"head.steps.{i}.stage.position.table"),
            (rf"^layers_up\.{i + first}\.(?=blocks|global_token)" + READ, f"head.steps.{i}.stage."),
            (rf"^concat_back_dim\.{i + first}\.", f"head.steps.{i}.merge."),
        )
    )
    return (*_UNET, *stages, (r"^norm\.", f"trunk.norms.{steps}."))


def from_glam(state: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Rename a state dict of GLAM; returns what our networks know and, under its old names, what is left over.

    Left over are index buffers and what the code carries to no effect (`_unread`). Bias tables of non-local upsampling
    lose the rows that no offset reaches.
    """
    table = _table_of(state)
    names = {key: _name(key, table) for key in state}
    unread = _unread({name for name in names.values() if name is not None})
    mapped = {name: state[key] for key, name in names.items() if name is not None and name not in unread}
    leftover = {key: state[key] for key, name in names.items() if name is None or name in unread}
    return {name: _reached(name, tensor) for name, tensor in mapped.items()}, leftover


def _table_of(state: Mapping[str, Tensor]) -> Table:
    joins = [key for key in state if re.match(r"^concat_back_dim\.\d\.weight$", key)]
    nlu = any(key.startswith("layers_cross_attention_up.") for key in state)
    return (*_unet(len(joins), 0 if nlu else 1), *_GLAM) if joins else _GLAM


def _name(key: str, table: Table) -> str | None:
    if key.startswith("auxiliary_head."):
        return rename(key.removeprefix("auxiliary_head."), _AUXILIARY)
    for prefix in ("seg_head.", "decode_head."):
        if key.startswith(prefix):
            bare = key.removeprefix(prefix)
            return rename(bare, _LINEAR) or _uper_name(bare)
    return rename(re.sub(r"^(glam_swin_unet|backbone)\.", "", key), table)


def _uper_name(key: str) -> str | None:
    name = rename(key, _UPER)
    return None if name is None else re.sub(r"\.(conv|bn)\.(?=[^.]+$)", lambda m: f".{_CONV_BN[m[1]]}.", name)


def _reached(name: str, table: Tensor) -> Tensor:
    """Of (4w - 1)^2 rows the code of non-local upsampling reads the first (2w - 1)^2."""
    if not name.endswith(".up.attn.relative_position_bias_table"):
        return table
    window = (math.isqrt(table.shape[0]) + 1) // 4
    return table[: (2 * window - 1) ** 2]


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
