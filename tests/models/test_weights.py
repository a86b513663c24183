"""Weights files: what is saved comes back, and what does not fit is refused by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from uhrseg.errors import InputError
from uhrseg.models import build, load_weights, save_weights

SMALL = {"bands": 3, "classes": 4, "size": 64, "embed_dim": 8, "depths": (2, 2), "heads": (1, 2), "window": 4}


def make(seed: int, **more) -> nn.Module:
    torch.manual_seed(seed)
    return build("swinv2_t", **{**SMALL, **more}).eval()


@pytest.mark.parametrize("head", ["linear", "upernet"])
def test_round_trip_is_exact(tmp_path: Path, head: str) -> None:
    a, b, image = make(0, head=head), make(1, head=head), torch.randn(1, 3, 64, 64)
    path = save_weights(a, tmp_path / "model.safetensors")
    load_weights(b, path)
    with torch.no_grad():
        assert torch.equal(a(image, image).logits, b(image, image).logits)
    assert list(tmp_path.iterdir()) == [path]


def test_half_is_float16_on_disk_and_float32_in_the_model(tmp_path: Path) -> None:
    a, b = make(0), make(1)
    load_weights(b, save_weights(a, tmp_path / "half.safetensors", half=True))
    assert {t.dtype for t in load_file(tmp_path / "half.safetensors").values()} == {torch.float16}
    for name, tensor in b.state_dict().items():
        assert tensor.dtype == torch.float32
        assert torch.equal(tensor, a.state_dict()[name].half().float())


def test_half_refuses_what_float16_cannot_hold(tmp_path: Path) -> None:
    model = make(0)
    model.head.bias.data[0] = 1e6
    with pytest.raises(InputError, match="beyond float16"):
        save_weights(model, tmp_path / "model.safetensors", half=True)
    assert not list(tmp_path.iterdir())


def test_a_shared_projector_is_stored_once(tmp_path: Path) -> None:
    shared = load_file(save_weights(make(0), tmp_path / "shared.safetensors"))
    apart = load_file(save_weights(make(0, share_projector=False), tmp_path / "apart.safetensors"))
    assert sorted(apart.keys() - shared.keys()) == [
        f"trunk.context_embed.{part}" for part in ("norm.bias", "norm.weight", "proj.bias", "proj.weight")
    ]


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"share_projector": False}, r"4 keys missing \(trunk.context_embed.norm.bias"),
        ({"strategy": "single"}, "keys unexpected .*trunk.relays"),
        ({"classes": 5}, r"2 keys of another shape \(head.bias, head.weight\)"),
    ],
)
def test_what_does_not_fit_is_named_and_nothing_is_loaded(tmp_path: Path, other: dict, words: str) -> None:
    path, model = save_weights(make(0), tmp_path / "model.safetensors"), make(1, **other)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(InputError, match=words):
        load_weights(model, path)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("content", [None, b"", b"not weights at all"])
def test_unreadable_files_are_refused(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "model.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(InputError, match=r"model\.safetensors is not a readable safetensors file"):
        load_weights(make(0), path)
