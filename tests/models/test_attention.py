"""The attention that is drawn is the attention that is computed."""

from __future__ import annotations

import pytest
import torch

from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.models.attention import relay_attention, swin_weights, vit_weights
from uhrseg.models.relay import two_scales

VIT = {"trunk": "vit_s", "size": 64, "embed_dim": 24, "heads": 3, "depth": 3}
SWIN = {"trunk": "swinv2_t", "size": 64, "embed_dim": 16, "heads": (1, 2), "depths": (2, 2), "window": 4}


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


@pytest.mark.parametrize("options", [VIT, SWIN], ids=["vit", "swin"])
@pytest.mark.parametrize("order", ["sequential", "parallel"])
def test_maps_lie_on_the_finest_tokens_and_leave_the_network_as_it_was(options: dict, order: str) -> None:
    model, (local, context) = network(options, relays=3, order=order), images()
    with torch.inference_mode():
        before = two_scales(model.trunk, local, context, order, True)[0]
        maps = relay_attention(model, local, context)
        after = two_scales(model.trunk, local, context, order, True)[0]
    side = 64 // model.trunk.strides[0]
    for scale in ("local", "context"):
        assert maps[scale].shape == (2, 3, side, side)
        torch.testing.assert_close(maps[scale].mean((-2, -1)), torch.ones(2, 3))
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert not torch.allclose(maps["local"], maps["context"])


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
    with pytest.raises(InputError, match="ViT and SwinV2 trunks only"):
        relay_attention(build("glam_t", bands=2, classes=3, size=224, strategy="registers"), local)
