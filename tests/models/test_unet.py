"""U-Net decoders and non-local upsampling: parity with the authors' modules, and what the mended parts promise."""

from __future__ import annotations

import re

import pytest
import torch
from torch import Tensor, nn

from tests.models.golden import find, read
from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.models.glam import GlamTrunk
from uhrseg.models.nlu import CrossAttention, NonLocalUpsampling, _offsets
from uhrseg.models.published_glam import from_glam
from uhrseg.models.relay import one_scale
from uhrseg.models.unet import NluUnetHead, UnetHead

TOLERANCE = 1e-5
NET_TOLERANCE = 1e-4


def cut(state: dict[str, Tensor], drop: str) -> dict[str, Tensor]:
    """Their NLU state without the index, the shortcut not in use and the bias rows no offset reaches."""
    kept = {key: tensor for key, tensor in state.items() if not re.search(drop, key)}
    return {k: t[: 13**2] if k.endswith("relative_position_bias_table") else t for k, t in kept.items()}


def test_cross_attention_is_theirs() -> None:
    case = read(find("glam_fine", "nlu_window_cross_attention"))
    assert torch.equal(_offsets(7, faithful=True), case.state["relative_position_index"])
    attention = CrossAttention(16, 4, faithful=True)
    attention.load_state_dict(cut(case.state, "index"))
    with torch.no_grad():
        y = attention(case.tensors["input.q"][:, None], case.tensors["input.kv"][:, None])[:, 0]
    torch.testing.assert_close(y, case.tensors["output.y"], atol=TOLERANCE, rtol=0)


@pytest.mark.parametrize(("shortcut", "other"), [("expand", "proj_shortcut"), ("bilinear", r"expand\.")])
def test_nlu_is_theirs_with_either_shortcut(shortcut: str, other: str) -> None:
    case = read(find("glam_fine", "nlu_block_" + {"expand": "patchexpand"}.get(shortcut, shortcut)))
    block = NonLocalUpsampling(16, 4, faithful=True, shortcut=shortcut).eval()
    names = {
        "proj_shortcut.": "shortcut.linear.",
        "expand.expand.": "shortcut.expand.",
        "expand.norm.": "shortcut.norm.",
    }
    state = cut(case.state, f"index|^{other}")
    for old, new in names.items():
        state = {key.replace(old, new): tensor for key, tensor in state.items()}
    block.load_state_dict(state)
    low, skip = case.tensors["input.low"].view(2, 8, 9, 32), case.tensors["input.skip"].view(2, 15, 18, 16)
    with torch.no_grad():
        y = block(low, skip).flatten(1, 2)
    torch.testing.assert_close(y, case.tensors["output.y"], atol=TOLERANCE, rtol=0)


def test_true_offsets_are_the_distances_in_coarse_cells() -> None:
    offsets = _offsets(7, faithful=False).view(7, 2, 7, 2, 7, 7)  # query row, column (cell, half); key row, column
    row, col = torch.arange(7), torch.arange(7)
    down = row.view(7, 1, 1, 1, 1, 1) - row.view(1, 1, 1, 1, 7, 1) + 6
    right = col.view(1, 1, 7, 1, 1, 1) - col.view(1, 1, 1, 1, 1, 7) + 6
    assert torch.equal(offsets, (down * 13 + right).expand_as(offsets))
    published = _offsets(7, faithful=True).view(7, 2, 7, 2, 7, 7)
    assert torch.equal(published, offsets[..., [0, 2, 4, 6, 1, 3, 5]])  # their columns of keys


@pytest.mark.parametrize("name", ["glam_swin_unet", "glam_swin_unet_nlu"])
def test_whole_network_is_theirs_at_odd_sizes(name: str) -> None:
    case = read(find("glam_fine", name))
    config = case.config
    sizes = {"depths": config["depths"], "heads": config["num_heads"], "global_tokens": config["gt_num"]}
    trunk = GlamTrunk(3, 96, 0, False, embed_dim=config["embed_dim"], faithful=True, **sizes)
    trunk.drop_lower_norms()
    make = NluUnetHead if name.endswith("nlu") else UnetHead
    head = make(trunk.channels, trunk.strides, config["num_classes"], 3, faithful=True, **sizes)
    network = nn.ModuleDict({"trunk": trunk, "head": head}).eval()
    mapped, leftover = from_glam(case.state)
    unread = (r"relative_position_index", r"blocks\.1\.gt_attn", r"proj_shortcut", r"^layers_patch_expand")
    assert [key for key in leftover if not any(re.search(part, key) for part in unread)] == []
    network.load_state_dict(mapped)
    image = case.tensors["input.image"]
    with torch.no_grad():
        logits = head(trunk.skips(one_scale(trunk, image)), image)
    torch.testing.assert_close(logits, case.tensors["output.logits"], atol=NET_TOLERANCE, rtol=0)


def test_the_decoder_mirrors_the_trunk_it_is_built_for() -> None:
    with torch.device("meta"):
        glam = build("glam_s", bands=3, classes=2, head="unet")
        swin = build("swin_b", bands=3, classes=2, head="unet_nlu")
    assert [len(step.stage.blocks) for step in glam.head.steps] == [18, 2, 2]
    assert glam.head.steps[0].stage.global_token.shape == (10, 384)
    assert all(step.stage.global_token is None for step in swin.head.steps)
    assert swin.head.steps[2].up.attn.heads == 4


@pytest.mark.parametrize("trunk", ["vit_s", "swinv2_t", "timm:vit_tiny_patch16_224"])
def test_other_trunks_are_refused(trunk: str) -> None:
    with pytest.raises(InputError, match="head = 'unet'"), torch.device("meta"):
        build(trunk, bands=3, classes=2, head="unet")
