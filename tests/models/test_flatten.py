"""Flatten-Swin: focused linear attention against its definition, and its positional term."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.models.flatten import FocusedLinearAttention
from uhrseg.models.glam import GlamBlock


def attention(positional: bool = True) -> FocusedLinearAttention:
    torch.manual_seed(0)
    made = FocusedLinearAttention(8, 6, 2, positional).eval()
    for parameter in made.parameters():
        nn.init.normal_(parameter, 0.0, 0.5)
    return made


def by_definition(made: FocusedLinearAttention, x: Tensor) -> Tensor:
    """Han et al. 2023, Eq. 3, 5 and 9, for one sample and with every N x N weight written out."""
    q, k, v = (t[0] for t in made.qkv(x).chunk(3, -1))  # (N, C)
    relays = k.shape[0] - 36
    k = k + torch.cat((made.positional_encoding[0], torch.zeros(relays, 8)))
    q, k = (_feature(t, F.softplus(made.scale[0])) for t in (q, k))
    heads = []
    for h in (slice(0, 4), slice(4, 8)):
        weights = q[:, h] @ k[:, h].T  # (N, N)
        y = weights @ v[:, h] / len(v) / (weights.mean(1, keepdim=True) + 1e-6)
        grid = v[:36, h].T.reshape(1, 4, 6, 6)
        local = F.conv2d(grid, made.dwc.weight, made.dwc.bias, padding=2, groups=4)
        heads.append(y + torch.cat((local[0].flatten(1).T, torch.zeros(relays, 4))))
    return made.proj(torch.cat(heads, 1))


def _feature(x: Tensor, scale: Tensor) -> Tensor:
    x = (x.clamp_min(0) + 1e-6) / scale
    return x**3 / (x**3).norm(dim=-1, keepdim=True) * x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("relays", [0, 3])
def test_linear_cost_gives_the_same_as_all_pairs(relays: int) -> None:
    made, x = attention(), torch.randn(1, 36 + relays, 8)
    with torch.no_grad():
        torch.testing.assert_close(made(x, 6, 6)[0], by_definition(made, x), atol=1e-4, rtol=1e-4)


def test_training_and_use_agree() -> None:
    """The convolution takes a whole batch when training and single samples when not."""
    made, x = attention(), torch.randn(3, 39, 8)
    with torch.no_grad():
        torch.testing.assert_close(made.train()(x, 6, 6), made.eval()(x, 6, 6))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_takes_tokens_of_either_precision(dtype: torch.dtype) -> None:
    """Blocks hand on float32 or bfloat16, depending on what came before."""
    made, x = attention(), torch.randn(1, 39, 8)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = made(x.to(dtype), 6, 6)
    torch.testing.assert_close(y.float(), made(x, 6, 6).detach(), atol=0.1, rtol=0.1)


def test_the_positional_term_is_kept_unless_faithful() -> None:
    sizes = {"bands": 3, "classes": 2, "size": 64, "embed_dim": 8, "depths": (1, 1), "heads": (1, 2), "window": 4}
    kept, published = build("flatten_swin_t", **sizes), build("flatten_swin_t", **sizes, faithful=True)
    names = {name for name, _ in kept.named_parameters()} - {name for name, _ in published.named_parameters()}
    assert names == {"trunk.layers.0.blocks.0.attn.positional_encoding"}
    kept.load_state_dict(published.state_dict(), strict=False)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert not torch.equal(kept.eval()(image, image).logits, published.eval()(image, image).logits)
        kept.trunk.layers[0].blocks[0].attn.positional_encoding.zero_()
        assert torch.equal(kept(image, image).logits, published(image, image).logits)


def test_the_first_half_of_the_stages_is_linear() -> None:
    with torch.device("meta"):
        stages = build("flatten_swin_s", bands=3, classes=2).trunk.stages
    assert [type(stage.blocks[0].attn).__name__[:7] for stage in stages] == ["Focused", "Focused", "BiasAtt", "BiasAtt"]
    shifts = [block.shift for block in (*stages[2].blocks, *stages[3].blocks) if isinstance(block, GlamBlock)]
    assert shifts == [0, 4] * 9 + [0, 0]  # the last map is one window


def test_sizes_that_do_not_divide_are_refused() -> None:
    with pytest.raises(InputError, match=r"size = 250 .* multiple of 32"), torch.device("meta"):
        build("flatten_swin_s", bands=3, classes=2, size=250)
