"""The attention that is drawn is the attention that is computed."""

from __future__ import annotations

import pytest
import torch

from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.models.attention import _glam_map, glam_weights, linear_weights, relay_attention, swin_weights, vit_weights
from uhrseg.models.pyramid import StageTokens

VIT = {"trunk": "vit_s", "size": 64, "embed_dim": 24, "heads": 3, "depth": 3}
SWIN = {"trunk": "swinv2_t", "size": 64, "embed_dim": 16, "heads": (1, 2), "depths": (2, 2), "window": 4}
GLAM = {**SWIN, "trunk": "glam_t", "window": 5, "global_tokens": 3}
FLATTEN = {**SWIN, "trunk": "flatten_swin_t"}


def network(options: dict, **more: object) -> torch.nn.Module:
    torch.manual_seed(0)
    model = build(**options, bands=2, classes=3, **more).eval()
    for parameter in model.parameters():  # no zero norms: every block does something
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def images(size: int = 64) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.randn(2, 2, size, size), torch.randn(2, 2, size, size)


@torch.inference_mode()
def test_vit_weights_give_the_attention_of_the_relays() -> None:
    model = network(VIT)
    block, tokens, relays = model.trunk.body.blocks[1], torch.randn(2, 16, 24), torch.randn(2, 4, 24)
    weights = vit_weights(model.trunk, block, tokens, relays)  # (B, h, R, R + N)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 4))
    x = block.norm1(torch.cat((relays, tokens), 1))
    values = block.attn.qkv(x).unflatten(2, (3, 3, -1))[:, :, 2].transpose(1, 2)
    again = block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, block.attn(x)[:, :4], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("index", [0, 1], ids=["plain", "shifted"])
def test_swin_weights_give_the_attention_of_the_relays(index: int) -> None:
    block = network(SWIN).trunk.layers[0].blocks[index]
    tokens, relays = torch.randn(2, 16, 16, 16), torch.randn(2, 4, 16)
    weights = swin_weights(block, tokens, relays)  # (B, n, h, R, w*w + R)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16, 1, 4))
    values = block.attn._qkv(block._partition(tokens), relays, "both")[2].unflatten(0, (2, 16))
    again = block.attn.proj((weights @ values).transpose(2, 3).flatten(3)).mean(1)
    torch.testing.assert_close(again, block._attend(tokens, relays, "relays")[0], rtol=1e-5, atol=1e-5)


@torch.inference_mode()
@pytest.mark.parametrize("index", [0, 1], ids=["plain", "shifted"])
def test_glam_weights_give_the_attention_of_the_relays(index: int) -> None:
    block = network(GLAM).trunk.layers[0].blocks[index]
    tokens = StageTokens(torch.randn(2, 16, 16, 16), torch.randn(2, 16, 3, 16))  # 4 x 4 windows of 5 tokens, padded
    relays = torch.randn(2, 4, 16)
    weights = glam_weights(block, tokens, relays)  # (B, n, h, R, g + R + w*w)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 16, 1, 4))
    values = block.attn._qkv(block.sequence(tokens, relays)[0], slice(None))[2].unflatten(0, (2, 16))
    again = block.attn.proj((weights @ values).transpose(2, 3).flatten(3)).mean(1)
    torch.testing.assert_close(again, block.attend(tokens, relays, "relays").relays, rtol=1e-5, atol=1e-5)


@torch.inference_mode()
def test_linear_weights_give_the_attention_of_the_relays() -> None:
    block = network(FLATTEN).trunk.layers[0].blocks[1]
    tokens, relays = StageTokens(torch.randn(2, 16, 16, 16)), torch.randn(2, 4, 16)
    weights = linear_weights(block, tokens, relays)  # (B, h, R, HW + R)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 1, 4))
    x = block.norm1(torch.cat((tokens.pixels.flatten(1, 2), relays), 1))
    values = block.attn._features(block.attn.qkv(x), 256)[2]
    again = block.attn.proj((weights @ values).transpose(1, 2).flatten(2))
    torch.testing.assert_close(again, block.attend(tokens, relays, "both").relays, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [VIT, SWIN, GLAM, FLATTEN], ids=["vit", "swin", "glam", "flatten"])
@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_maps_lie_on_the_finest_tokens_and_leave_the_network_as_it_was(options: dict, order: str) -> None:
    model, (local, context) = network(options, relays=3, order=order), images()
    with torch.inference_mode():
        before = model(local, context, True)
        maps = relay_attention(model, local, context)
        after = model(local, context, True)
    side = 64 // model.trunk.strides[0]
    for scale in ("local", "context"):
        assert maps[scale].shape == (2, 3, side, side)
        torch.testing.assert_close(maps[scale].mean((-2, -1)), torch.ones(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(before[:2], after[:2], strict=True))
    assert not torch.allclose(maps["local"], maps["context"])


@torch.inference_mode()
def test_a_map_of_glam_has_its_image_the_right_way_round() -> None:
    block, relays = network(GLAM, relays=2).trunk.layers[0].blocks[1], torch.randn(1, 2, 16)
    tokens = torch.zeros(1, 16, 16, 16)
    tokens[0, 5, 11] = torch.randn(16)
    given, none = (StageTokens(x, torch.zeros(1, 16, 3, 16)) for x in (tokens, tokens * 0))
    change = (_glam_map(block, given, relays) - _glam_map(block, none, relays)).abs()[0, 0]
    rows, cols = (change > 1e-6).nonzero(as_tuple=True)
    assert divmod(int(change.argmax()), 16) == (5, 11)
    assert rows.max() - rows.min() < 5 and cols.max() - cols.min() < 5  # the other patches of its window only


@torch.inference_mode()
def test_a_map_has_its_image_the_right_way_round() -> None:
    """A patch whose key every relay likes is where the map is brightest, through windows and shift."""
    model = network(SWIN, relays=2)
    trunk = model.trunk
    block, tokens, relays = trunk.layers[0].blocks[1], torch.zeros(1, 16, 16, 16), torch.randn(1, 2, 16)
    tokens[0, 5, 11] = 3 * torch.randn(16)
    from uhrseg.models.attention import _swin_map

    change = (_swin_map(trunk, block, tokens, relays) - _swin_map(trunk, block, tokens * 0, relays)).abs()
    rows, cols = (change[0, 0] > 1e-6).nonzero(as_tuple=True)
    assert divmod(int(change[0, 0].argmax()), 16) == (5, 11)
    assert rows.max() - rows.min() < 4 and cols.max() - cols.min() < 4  # the other patches of its window only


def test_registers_look_at_the_local_window_and_other_models_are_refused() -> None:
    local, _ = images()
    assert set(relay_attention(network(VIT, strategy="registers"), local)) == {"local"}
    with pytest.raises(InputError, match="no tokens whose attention"):
        relay_attention(network(VIT, strategy="single"), local)
    assert set(relay_attention(network(GLAM, strategy="registers"), local)) == {"local"}
    with pytest.raises(InputError, match="overwrites what its relays saw"):
        relay_attention(network(GLAM, faithful=True), local, local)
