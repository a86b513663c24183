"""Golden parity: with the authors' weights our networks return the authors' logits."""

from __future__ import annotations

from ast import literal_eval

import pytest
import torch

from tests.models.golden import FOLDER, SHARED, Case, find, network, read
from uhrseg.models import build
from uhrseg.models.published import PUBLISHED, from_published, is_unread

TOLERANCE = 1e-4
# What their networks carry and never read: classifiers, buffers, GLAM's last exchange of a stage, second copies.
UNREAD = (
    ".head.",
    ".fc_norm.",
    ".patch_embed.1.",
    "relative_position_index",
    ".gt_attn.",
    "attn_mask",
    "positional_encoding",
    ".pe",
    "glam_swin_unet.norm",
)
GLAM = {"glam": "faithful", "rt_glam": "faithful", "rt_glam_fixed": "table", "rt_glam_linhead": "faithful"}
CASES = sorted(path.stem for path in FOLDER.glob("*.safetensors"))


def assert_parity(case: Case, with_context_logits: bool, **more: object) -> None:
    model = network(case, **more)
    state, leftover = from_published(case.state)
    model.load_state_dict(state)  # strict: every tensor of ours has one of theirs
    assert all(any(part in key for part in UNREAD) for key in leftover)
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


@pytest.mark.parametrize("name", ["rt_swin2_sequential", "rt_flatten_swin"])
def test_parity_at_full_size(name: str) -> None:
    path = SHARED / "relay" / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip("the 256 px reference is not kept in the repository (12 MB)")
    faithful = {"faithful": True} if name == "rt_flatten_swin" else {}
    assert_parity(read(path), with_context_logits=True, **faithful)


@pytest.mark.parametrize("name", GLAM)
def test_parity_of_glam(name: str) -> None:
    case = read(find("relay", name))
    options = {"faithful": True} if GLAM[name] == "faithful" else {"position": "table"}
    for both in (False, True) if case.context is not None else (False,):
        assert_parity(case, with_context_logits=both, **options)


@pytest.mark.parametrize("name", ["flatten_swin", "rt_flatten_swin"])
def test_parity_of_flatten_swin(name: str) -> None:
    case = read(find("relay", name))
    for both in (False, True) if case.context is not None else (False,):
        assert_parity(case, with_context_logits=both, faithful=True)


def test_parity_of_blocks_per_scale() -> None:
    case = read(find("relay", "rt_vit_unshared_blocks"))
    for both in (False, True):
        assert_parity(case, with_context_logits=both)


def test_glams_published_slices_are_another_network() -> None:
    """Same weights and images: the parity above tests which slices are cut."""
    mended, published = (read(find("relay", name)) for name in ("rt_glam_fixed", "rt_glam"))
    assert all(torch.equal(mended.state[key], published.state[key]) for key in mended.state)
    assert (mended.tensors["output.local"] - published.tensors["output.local"]).abs().max() > 10 * TOLERANCE


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


LISTED = {
    "ViT_S": "vit_s", "RT_ViT_S": "rt_vit_s", "RT_ViT_S_shared": "rt_vit_s", "Swin2_S": "swin2_s",
    "RT_Swin2_S": "rt_swin2_s", "RT_Swin2_S_shared": "rt_swin2_s", "Flatten_Swin_S_ft256": "flatten_swin_s",
    "RT_Flatten_Swin_S_ft256": "rt_flatten_swin_s", "GLAM_S": "glam_s", "RT_GLAM_S": "rt_glam_s",
}  # fmt: skip


@pytest.mark.parametrize("name", LISTED)
def test_every_key_of_a_published_network_has_its_place_and_shape(name: str) -> None:
    """At full size: 4 bands, 4 classes, 256 px."""
    listing = SHARED / "relay" / f"keys_{name}.txt"
    if not listing.is_file():
        pytest.skip("the listings of keys are not kept in the repository")
    lines = [line.split("\t") for line in listing.read_text().splitlines() if not line.startswith("#")]
    same = name.endswith("_shared")  # a shared projector is one of identical values
    values = torch.zeros(len(lines)) if same else torch.arange(float(len(lines)))
    state = {f"net.{key}": v.expand(literal_eval(shape)) for v, (key, shape, *_) in zip(values, lines, strict=True)}
    mapped, leftover = from_published(state)
    separate = {"share_projector": False} if name.startswith("RT_") and not same else {}
    with torch.device("meta"):
        ours = build(**PUBLISHED[LISTED[name]] | separate, bands=4, classes=4).state_dict()
    assert {k: v.shape for k, v in mapped.items()} == {k: v.shape for k, v in ours.items()}
    assert all(is_unread(key) for key in leftover)


def test_unknown_keys_are_left_over_not_lost() -> None:
    state = {"model.layers.0.blocks.0.norm1.weight": torch.ones(2), "somewhere.else": torch.zeros(1)}
    mapped, leftover = from_published(state)
    assert list(mapped) == ["trunk.layers.0.blocks.0.norm1.weight"]
    assert list(leftover) == ["somewhere.else"]
