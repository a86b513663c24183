"""Weights of a network as one safetensors file."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from uhrseg.errors import InputError

__all__ = ["load_weights", "save_weights"]


def save_weights(model: nn.Module, path: str | Path, half: bool = False) -> Path:
    """Write every parameter and stored buffer to ``path`` (safetensors), as float16 if ``half``.

    The file appears whole or not at all.
    """
    path = Path(path)
    partial = path.with_name(path.name + ".partial")
    state = {name: _stored(tensor, half) for name, tensor in model.state_dict().items()}
    save_file(state, partial)
    partial.chmod(0o644)  # safetensors writes for the owner only; a model folder is there to be shared
    partial.replace(path)
    return path


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load a file of `save_weights` into ``model``; the model keeps its dtype (float16 files fit float32 models).

    Raises `InputError` naming missing, unexpected and misshapen keys: nothing is loaded by half.
    """
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path} is not a readable safetensors file: {error}") from error
    own = model.state_dict()
    faults = [
        _listing("missing", own.keys() - state.keys()),
        _listing("unexpected", state.keys() - own.keys()),
        _listing("of another shape", {k for k in own.keys() & state.keys() if own[k].shape != state[k].shape}),
    ]
    if any(faults):
        raise InputError(f"the weights in {path} do not fit this model: " + "; ".join(filter(None, faults)))
    model.load_state_dict(state)


def _stored(tensor: Tensor, half: bool) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    if not half or not tensor.is_floating_point():
        return tensor
    halved = tensor.to(torch.float16)
    if bool(torch.isinf(halved).any() & ~torch.isinf(tensor).any()):
        raise InputError("a weight is beyond float16 (65504): save without half")
    return halved


def _listing(what: str, keys: set[str]) -> str:
    if not keys:
        return ""
    shown = ", ".join(sorted(keys)[:3])
    return f"{len(keys)} keys {what} ({shown}{', ...' if len(keys) > 3 else ''})"
