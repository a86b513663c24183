"""Golden parity: with the authors' weights our networks return the authors' logits."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.models.golden import FOLDER, Case, network, read
from uhrseg.models.published import from_published

TOLERANCE = 1e-4
FULL_SIZE = Path(__file__).parents[3] / "shared" / "golden" / "relay" / "rt_swin2_sequential.safetensors"
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def assert_parity(case: Case, with_context_logits: bool) -> None:
    model = network(case)
    state, leftover = from_published(case.state)
    model.load_state_dict(state)  # strict: every tensor of ours has one of theirs
    assert all(".head." in key or ".fc_norm." in key or ".patch_embed.1." in key for key in leftover)
    with torch.no_grad():
        output = model.eval()(case.local, case.context, with_context_logits=with_context_logits)
    torch.testing.assert_close(output.logits, case.tensors["output.local"], atol=TOLERANCE, rtol=0)
    if with_context_logits:
        torch.testing.assert_close(output.context_logits, case.tensors["output.global"], atol=TOLERANCE, rtol=0)


def test_ten_networks_are_covered() -> None:
    assert len(CASES) == 10


@pytest.mark.parametrize("name", CASES)
def test_parity(name: str) -> None:
    case = read(FOLDER / f"{name}.safetensors")
    assert_parity(case, with_context_logits=case.context is not None)


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith("rt_")])
def test_parity_when_the_last_block_skips_the_context(name: str) -> None:
    assert_parity(read(FOLDER / f"{name}.safetensors"), with_context_logits=False)


def test_parity_at_full_size() -> None:
    if not FULL_SIZE.is_file():
        pytest.skip("the 256 px reference is not kept in the repository (12 MB)")
    assert_parity(read(FULL_SIZE), with_context_logits=True)


def test_training_mode_computes_the_same_without_drop_path() -> None:
    """Gradients take another path through attention than inference does: it has to agree."""
    case = read(FOLDER / "rt_swin2_sequential.safetensors")
    model = network(case)
    model.load_state_dict(from_published(case.state)[0])
    logits = model.eval()(case.local, case.context, with_context_logits=True).logits
    assert logits.requires_grad
    torch.testing.assert_close(logits.detach(), case.tensors["output.local"], atol=TOLERANCE, rtol=0)


def test_orders_differ() -> None:
    """The same weights in the other order are another network: the parity above tests the order."""
    case = read(FOLDER / "rt_swin2_sequential.safetensors")
    other = read(FOLDER / "rt_swin2.safetensors")
    assert all(torch.equal(case.state[key], other.state[key]) for key in case.state)
    assert (case.tensors["output.local"] - other.tensors["output.local"]).abs().max() > 10 * TOLERANCE


def test_lightning_prefix_and_older_names_are_read() -> None:
    case = read(FOLDER / "rt_vit.safetensors")
    older = {
        "net." + key.replace(".attn.0.", ".attn.").replace(".mlp.0.", ".mlp."): tensor
        for key, tensor in case.state.items()
    }
    expected, _ = from_published(case.state)
    mapped, _ = from_published(older)
    assert mapped.keys() == expected.keys()
    assert all(torch.equal(mapped[key], expected[key]) for key in expected)


def test_unknown_keys_are_left_over_not_lost() -> None:
    state = {"model.layers.0.blocks.0.norm1.weight": torch.ones(2), "somewhere.else": torch.zeros(1)}
    mapped, leftover = from_published(state)
    assert list(mapped) == ["trunk.layers.0.blocks.0.norm1.weight"]
    assert list(leftover) == ["somewhere.else"]
