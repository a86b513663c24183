"""The position bias is computed once per weights, and never stale."""

from __future__ import annotations

import copy
import math
import pickle
from collections.abc import Callable

import pytest
import torch
from timm.models.swin_transformer_v2 import WindowAttention
from torch import Tensor, nn

from uhrseg.models.window_attention import CosineAttention

WINDOW, HEADS, DIM, RELAYS = 4, 2, 8, 3
PATCHES = WINDOW * WINDOW


@pytest.fixture
def attention() -> CosineAttention:
    torch.manual_seed(0)
    attention = CosineAttention(DIM, (WINDOW, WINDOW), HEADS)
    for parameter in attention.parameters():
        nn.init.normal_(parameter, std=0.5)
    return attention.eval()


@pytest.fixture
def tokens() -> Tensor:
    torch.manual_seed(1)
    return torch.randn(2, 5, PATCHES + RELAYS, DIM)  # (B, W, N, C)


def fresh(attention: CosineAttention, tokens: Tensor) -> Tensor:
    """The answer with nothing kept."""
    clean = CosineAttention(DIM, (WINDOW, WINDOW), HEADS).to(next(attention.parameters()).dtype)
    clean.load_state_dict(attention.state_dict())
    return run(clean.eval(), tokens)


def run(attention: CosineAttention, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Patches with the mean of the relays behind them in every window."""
    patches, relays = attention(tokens[:, :, :PATCHES], tokens[:, 0, PATCHES:], mask)
    return torch.cat((patches, relays.unsqueeze(1).expand(-1, tokens.shape[1], -1, -1)), 2)


@torch.no_grad()
def test_bias_is_computed_once(attention: CosineAttention, tokens: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    compute = attention._compute_bias
    monkeypatch.setattr(attention, "_compute_bias", lambda *args: calls.append(args) or compute(*args))
    outputs = [run(attention, tokens) for _ in range(3)]
    assert len(calls) == 1
    assert torch.equal(outputs[0], outputs[2])


def optimiser_step(attention: CosineAttention) -> None:
    optimiser = torch.optim.SGD(attention.parameters(), lr=1.0)
    with torch.enable_grad():
        attention.cpb_mlp(attention.relative_coords_table).sum().backward()
    optimiser.step()


def load(attention: CosineAttention) -> None:
    state = {key: tensor + 0.5 for key, tensor in attention.state_dict().items()}
    attention.load_state_dict(state)


def assign(attention: CosineAttention) -> None:
    state = {key: tensor + 0.5 for key, tensor in attention.state_dict().items()}
    attention.load_state_dict(state, assign=True)


def round_trip(attention: CosineAttention) -> None:
    attention.to(torch.bfloat16).to(torch.float32)


def halve(attention: CosineAttention) -> None:
    attention.to(torch.bfloat16)


def write_data_then_eval(attention: CosineAttention) -> None:
    attention.cpb_mlp[2].weight.data.add_(1.0)
    attention.eval()


@pytest.mark.parametrize("change", [optimiser_step, load, assign, round_trip, halve, write_data_then_eval])
@torch.no_grad()
def test_bias_follows_the_weights(
    attention: CosineAttention, tokens: Tensor, change: Callable[[CosineAttention], None]
) -> None:
    before = run(attention, tokens)
    change(attention)
    tokens = tokens.to(next(attention.parameters()).dtype)
    after = run(attention, tokens)
    assert not torch.equal(before, after.to(before.dtype))
    assert torch.equal(after, fresh(attention, tokens))


@torch.no_grad()
def test_bias_follows_shape_mask_and_dtype(attention: CosineAttention, tokens: Tensor) -> None:
    mask = torch.zeros(5, PATCHES, PATCHES)
    mask[0, :8, 8:] = -100.0
    plain = run(attention, tokens)
    masked = run(attention, tokens, mask)
    assert not torch.equal(plain, masked)
    assert attention(tokens[:, :, :PATCHES])[0].shape == (2, 5, PATCHES, DIM)
    with torch.autocast("cpu", torch.bfloat16):
        assert run(attention, tokens).dtype == torch.bfloat16
    assert torch.equal(run(attention, tokens), plain)


@pytest.mark.parametrize("clone", [copy.deepcopy, lambda a: pickle.loads(pickle.dumps(a))])
@torch.no_grad()
def test_copies_are_independent(attention: CosineAttention, tokens: Tensor, clone: Callable) -> None:
    before = run(attention, tokens)
    other = clone(attention)
    assert torch.equal(run(other, tokens), before)
    other.cpb_mlp[2].weight += 1.0
    assert torch.equal(run(attention, tokens), before)
    assert torch.equal(run(other, tokens), fresh(other, tokens))


@torch.no_grad()
def test_pickles_carry_no_kept_bias(attention: CosineAttention, tokens: Tensor) -> None:
    before = len(pickle.dumps(attention))
    run(attention, tokens)
    assert len(pickle.dumps(attention)) == before


def test_inference_mode_leaves_nothing_that_breaks_gradients(attention: CosineAttention, tokens: Tensor) -> None:
    with torch.inference_mode():
        before = run(attention, tokens)
    with torch.no_grad():
        assert torch.equal(run(attention, tokens), before)
    run(attention, tokens).sum().backward()
    assert attention.cpb_mlp[2].weight.grad.any()


@torch.no_grad()
def test_relays_take_no_bias_and_no_mask(attention: CosineAttention) -> None:
    mask = torch.full((5, PATCHES, PATCHES), -100.0)
    bias = attention.bias(PATCHES + RELAYS, mask, torch.float32)
    assert bias.shape == (5, HEADS, PATCHES + RELAYS, PATCHES + RELAYS)
    assert not bias[..., PATCHES:, :].any()
    assert not bias[..., :, PATCHES:].any()
    assert (bias[..., :PATCHES, :PATCHES] < 0).all()


@torch.no_grad()
def test_what_is_wanted_is_what_both_gives(attention: CosineAttention, tokens: Tensor) -> None:
    windows, relays = tokens[:, :, :PATCHES], tokens[:, 0, PATCHES:]
    both = attention(windows, relays)
    of_patches, none = attention(windows, relays, want="tokens")
    assert none is None
    torch.testing.assert_close(of_patches, both[0], atol=1e-6, rtol=1e-5)
    none, of_relays = attention(windows, relays, want="relays")
    assert none is None
    torch.testing.assert_close(of_relays, both[1], atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_relays_are_tokens_of_every_window(attention: CosineAttention, tokens: Tensor) -> None:
    """As if the relays stood behind the patches of each window of one plain attention, and were averaged after it."""
    windows, relays = tokens[:, :, :PATCHES], tokens[:, 0, PATCHES:]
    x = torch.cat((windows, relays.unsqueeze(1).expand(-1, 5, -1, -1)), 2).flatten(0, 1)  # (10, N, C)
    bias = torch.cat((attention.q_bias, attention.k_bias, attention.v_bias))
    qkv = nn.functional.linear(x, attention.qkv.weight, bias).unflatten(2, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
    q, k = (nn.functional.normalize(part, dim=-1) for part in qkv[:2])
    logits = q @ k.transpose(-2, -1) * attention.logit_scale.clamp(max=math.log(100)).exp()
    logits = logits + attention.bias(PATCHES + RELAYS, None, torch.float32)
    y = attention.proj((logits.softmax(-1) @ qkv[2]).transpose(1, 2).flatten(2)).unflatten(0, (2, 5))
    of_patches, of_relays = attention(windows, relays)
    torch.testing.assert_close(of_patches, y[:, :, :PATCHES], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(of_relays, y[:, :, PATCHES:].mean(1), atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_without_relays_it_is_timms_attention(attention: CosineAttention, tokens: Tensor) -> None:
    timms = WindowAttention(DIM, (WINDOW, WINDOW), HEADS).eval()
    timms.load_state_dict(attention.state_dict())
    mask = torch.zeros(5, PATCHES, PATCHES)
    mask[1, :4, 4:] = -100.0
    patches = tokens[:, :, :PATCHES]
    theirs = timms(patches.reshape(10, PATCHES, DIM), mask).view(2, 5, PATCHES, DIM)
    torch.testing.assert_close(attention(patches, mask=mask)[0], theirs, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_fused_kernel_of_other_devices_agrees(attention: CosineAttention, tokens: Tensor) -> None:
    """Other devices take torch's fused attention: the same arguments through it give the same result."""
    q, k, v = (torch.randn(10, HEADS, PATCHES, DIM // HEADS) for _ in range(3))
    bias = torch.randn(5, HEADS, PATCHES, PATCHES)
    from uhrseg.models.window_attention import _fused, _plain

    torch.testing.assert_close(_plain(q, k, v, bias), _fused(q, k, v, bias), atol=1e-5, rtol=1e-5)
