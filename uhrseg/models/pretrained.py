"""Pretrained trunks: timm's weights, from its hub or a local file, fitted to bands, window size and relays.

Nothing is dropped in silence: every load returns a `PretrainedReport`, and a trunk that did not load is an error.
"""

from __future__ import annotations

import copy
import math
import pickle
import re
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from timm.models import swin_transformer, swin_transformer_v2, vision_transformer
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from uhrseg.errors import InputError, RunError
from uhrseg.models.pyramid import PyramidTrunk
from uhrseg.models.swin import SwinTrunk
from uhrseg.models.vit import VitTrunk

__all__ = ["PretrainedReport", "load_pretrained"]

# What relays and GLAM's global tokens add to a trunk; it starts from its own initial values.
_RELAYS = ("relays", "relay_position", "relay_projection", "context_embed", "context_pos_embed", "context_blocks")
_OWN = (*_RELAYS, "global_token", "position", "gt_attn", "norms")

_Trunk = SwinTrunk | VitTrunk | PyramidTrunk


@dataclass(frozen=True)
class PretrainedReport:
    """What became of every key: names are the trunk's, except ``unused``, which are the file's."""

    source: str
    loaded: tuple[str, ...]
    adapted: dict[str, str]
    missing: tuple[str, ...]
    unused: tuple[str, ...]

    def __str__(self) -> str:
        """One line of counts."""
        counts = f"{len(self.loaded)} tensors loaded, {len(self.adapted)} adapted, {len(self.missing)} new"
        return f"{self.source}: {counts}, {len(self.unused)} of the file unused"


def load_pretrained(trunk: _Trunk, timm_name: str | None, source: bool | str) -> PretrainedReport:
    """Load ``source`` into a trunk: True takes timm's weights of ``timm_name`` from its hub, a path a local file.

    Files may be safetensors or what ``torch.load(weights_only=True)`` reads. Raises `InputError` for an unreadable
    file and `RunError` if the hub is out of reach or any tensor of the trunk (relays aside) found no value.
    """
    state, name = _from_hub(timm_name) if source is True else (_from_file(Path(str(source))), str(source))
    body: nn.Module = trunk.body if isinstance(trunk, VitTrunk) else trunk
    fitted, adapted, unused = _fit(state, trunk, body)
    own = {key: tensor for key, tensor in body.state_dict().items() if not _is_own(key)}
    _refuse_gaps(name, own, fitted)
    body.load_state_dict(fitted, strict=False)
    _copy_to_context(trunk, body)
    prefix = "body." if isinstance(trunk, VitTrunk) else ""
    return PretrainedReport(
        name,
        tuple(prefix + key for key in fitted if key not in adapted),
        {prefix + key: how for key, how in adapted.items()},
        tuple(key for key, _ in trunk.named_parameters() if _is_own(key) and key not in fitted),
        tuple(unused),
    )


def _from_hub(timm_name: str | None) -> tuple[dict[str, Tensor], str]:
    """timm downloads and reads its own weights, whatever their format."""
    if timm_name is None:
        raise InputError("this trunk has no pretrained weights: set pretrained = false")
    try:
        return timm.create_model(timm_name, pretrained=True).state_dict(), f"timm {timm_name}"
    except (OSError, RuntimeError, ValueError) as error:
        raise RunError(
            f"timm's weights {timm_name!r} could not be fetched ({type(error).__name__}): connect to the network, "
            "or set pretrained to the path of a local file of them"
        ) from error


def _from_file(path: Path) -> dict[str, Tensor]:
    try:
        state = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"pretrained = '{path}' is not a readable file of weights: {reason}") from error
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state) if isinstance(state, dict) else state
    if not isinstance(state, dict) or not any(isinstance(value, Tensor) for value in state.values()):
        raise InputError(f"pretrained = '{path}' holds no state dict of tensors")
    return {key: value for key, value in state.items() if isinstance(value, Tensor)}


def _fit(
    state: dict[str, Tensor], trunk: _Trunk, body: nn.Module
) -> tuple[dict[str, Tensor], dict[str, str], list[str]]:
    """The file's tensors under the body's names and shapes; what was changed, and how; what was not used."""
    state, adapted = dict(state), {}
    if isinstance(trunk, VitTrunk):
        adapted = _fold_layer_scale(state, body) | _move_pooled_norm(state, body) | _cut_class_rows(state, trunk.body)
    filtered = dict(_timm_filter(state, trunk, body))
    adapted |= _reshaped(state, filtered) | _fit_bands(filtered, body)
    known = body.state_dict()
    fitted = {key: tensor for key, tensor in filtered.items() if key in known and known[key].shape == tensor.shape}
    return fitted, adapted, [key for key in filtered if key not in fitted]


def _timm_filter(state: dict[str, Tensor], trunk: _Trunk, body: nn.Module) -> dict[str, Tensor]:
    """timm's own reading of foreign checkpoints; it resamples position tables and patch filters to the body's grid."""
    if isinstance(trunk, VitTrunk):
        return vision_transformer.checkpoint_filter_fn(state, trunk.body)
    if isinstance(trunk, PyramidTrunk):
        return _swin_filter(state, trunk)
    return swin_transformer_v2.checkpoint_filter_fn(state, body)


def _swin_filter(state: dict[str, Tensor], trunk: PyramidTrunk) -> dict[str, Tensor]:
    """timm's reading for Swin; its final norm is the last of ours, and tables of blocks we lack are passed by."""
    own, norm = trunk.state_dict().keys(), f"norms.{len(trunk.norms) - 1}."
    state = {re.sub(r"^norm\.", norm, key): tensor for key, tensor in state.items()}
    lacking = {k: v for k, v in state.items() if k.endswith("relative_position_bias_table") and k not in own}
    kept = {key: tensor for key, tensor in state.items() if key not in lacking}
    return {**_resample_places(swin_transformer.checkpoint_filter_fn(kept, trunk), trunk), **lacking}


def _resample_places(state: dict[str, Tensor], trunk: PyramidTrunk) -> dict[str, Tensor]:
    """Flatten-Swin's vectors per place of a square map, (1, side * side, C), for maps of another size."""
    own = trunk.state_dict()
    for key in [k for k in state if k.endswith(".positional_encoding") and k in own]:
        old, new = (math.isqrt(table.shape[1]) for table in (state[key], own[key]))
        grid = state[key].unflatten(1, (old, old)).permute(0, 3, 1, 2).float()
        if old != new:
            grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True)
        state[key] = grid.flatten(2).transpose(1, 2)
    return state


def _reshaped(before: dict[str, Tensor], after: dict[str, Tensor]) -> dict[str, str]:
    pairs = {key: (tuple(before[key].shape), tuple(after[key].shape)) for key in after if key in before}
    return {key: f"resampled {old} to {new}" for key, (old, new) in pairs.items() if old != new}


def _fold_layer_scale(state: dict[str, Tensor], body: nn.Module) -> dict[str, str]:
    """DeiT-III scales each branch by a vector; a body without LayerScale takes it into the last matrix, exactly."""
    own = body.state_dict().keys()
    adapted: dict[str, str] = {}
    for old, new in ((".gamma_1", ".ls1.gamma"), (".gamma_2", ".ls2.gamma")):  # the authors' names, timm's names
        for key in [k for k in state if k.endswith(old)]:
            state[key.removesuffix(old) + new] = state.pop(key)
    for scale, layer in ((".ls1.gamma", ".attn.proj"), (".ls2.gamma", ".mlp.fc2")):
        for key in [k for k in state if k.endswith(scale) and k not in own]:
            target, gamma = key.removesuffix(scale) + layer, state.pop(key)
            state[target + ".weight"] = state[target + ".weight"] * gamma[:, None]
            state[target + ".bias"] = state[target + ".bias"] * gamma
            adapted |= {target + part: "LayerScale multiplied in" for part in (".weight", ".bias")}
    return adapted


def _move_pooled_norm(state: dict[str, Tensor], body: nn.Module) -> dict[str, str]:
    """timm's classifiers that pool before their final norm call it fc_norm; here it acts on every token."""
    if "norm.weight" in state or "fc_norm.weight" not in state or "norm.weight" not in body.state_dict():
        return {}
    for part in ("weight", "bias"):
        state[f"norm.{part}"] = state.pop(f"fc_norm.{part}")
    return {f"norm.{part}": "from fc_norm" for part in ("weight", "bias")}


def _cut_class_rows(state: dict[str, Tensor], body: VisionTransformer) -> dict[str, str]:
    """Position rows of class and distillation tokens, cut off for a body that has neither."""
    table = state.get("pos_embed")
    if table is None or body.num_prefix_tokens:
        return {}
    extra = table.shape[1] - math.isqrt(table.shape[1]) ** 2  # rows beyond a square grid
    if extra not in (1, 2):
        return {}
    state["pos_embed"] = table[:, extra:]
    return {"pos_embed": f"{extra} class rows cut off"}


def _fit_bands(state: dict[str, Tensor], body: nn.Module) -> dict[str, str]:
    """Patch filters for other bands: the file's own first, further ones from their mean, all scaled by old / new
    number of bands so that the response keeps its magnitude. For fewer bands, each starts from the mean."""
    key = "patch_embed.proj.weight"
    weight, bands = state.get(key), body.state_dict()[key].shape[1]
    if weight is None or weight.shape[1] == bands:
        return {}
    given = weight.shape[1]
    mean = weight.mean(1, keepdim=True).expand(-1, bands, -1, -1)
    new = torch.cat((weight, mean[:, given:]), 1) if bands > given else mean
    state[key] = (new * (given / bands)).contiguous()
    return {key: f"{given} bands to {bands}"}


def _refuse_gaps(name: str, own: dict[str, Tensor], fitted: dict[str, Tensor]) -> None:
    gaps = [key for key in own if key not in fitted]
    if gaps:
        shown = ", ".join(f"{key} {tuple(own[key].shape)}" for key in gaps[:3])
        raise RunError(
            f"the pretrained weights {name} do not fit this trunk: {len(gaps)} of {len(own)} tensors found no value of "
            f"their name and shape ({shown}{', ...' if len(gaps) > 3 else ''}); choose the trunk they were made for"
        )


def _copy_to_context(trunk: _Trunk, body: nn.Module) -> None:
    """A separate projector, and separate blocks, start as copies of the local ones."""
    if trunk.context_embed is not None:
        trunk.context_embed.load_state_dict(copy.deepcopy(body.get_submodule("patch_embed").state_dict()))
    blocks = getattr(trunk, "context_blocks", None)
    if blocks is not None:
        blocks.load_state_dict(body.get_submodule("blocks").state_dict())
    table = getattr(trunk, "context_pos_embed", None)
    if table is not None:
        table.data.copy_(body.get_parameter("pos_embed").detach())


def _is_own(key: str) -> bool:
    return any(part in _OWN for part in key.split("."))
