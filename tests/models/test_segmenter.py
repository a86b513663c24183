"""A sample's logits do not depend on the batch it sits in: prediction promises the same labels for any tiling."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uhrseg.models import build

NETWORKS = {
    "swin upernet": {"trunk": "swinv2_t", "head": "upernet", "head_channels": 40, "heads": (2, 4, 8, 8)},
    "swin detail": {
        "trunk": "swinv2_t",
        "head": "upernet",
        "head_channels": 40,
        "detail_channels": 8,
        "heads": (2, 4, 8, 8),
    },
    "swin linear": {"trunk": "swinv2_t", "head": "linear", "heads": (2, 4, 8, 8), "share_projector": False},
    "swin parallel": {"trunk": "swinv2_t", "order": "parallel", "heads": (2, 4, 8, 8)},
    "vit": {"trunk": "vit_s", "heads": 4, "depth": 2},
}


def make(name: str) -> nn.Module:
    options = dict(NETWORKS[name])
    if "swin" in name:
        options |= {"embed_dim": 16, "depths": (2, 2, 2, 2)}
    else:
        options |= {"embed_dim": 48}
    torch.manual_seed(0)
    model = build(bands=3, classes=5, size=128, **options)
    for parameter in model.parameters():
        if parameter.ndim == 1:  # the post-norms of SwinV2 start at zero and would hide the blocks
            nn.init.normal_(parameter, 0.5, 0.3)
    return model.eval()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "autocast"])
def test_logits_do_not_depend_on_the_batch(name: str, precision: str) -> None:
    model = make(name)
    local, context = torch.randn(8, 3, 128, 128), torch.randn(8, 3, 128, 128)
    if precision == "bfloat16":
        model, local, context = model.to(torch.bfloat16), local.to(torch.bfloat16), context.to(torch.bfloat16)
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=precision == "autocast"):
        whole = model(local, context, with_context_logits=True)
        for count in (1, 3, 5):
            for start in (0, 8 - count):
                part = slice(start, start + count)
                output = model(local[part], context[part], with_context_logits=True)
                assert torch.equal(output.logits, whole.logits[part]), (count, start)
                assert torch.equal(output.context_logits, whole.context_logits[part]), (count, start)


@pytest.mark.parametrize("name", ["swin upernet", "swin detail"])
def test_training_and_use_agree(name: str) -> None:
    """The head takes a whole batch when training and single samples when not: the same function."""
    model = make(name)
    local, context = torch.randn(3, 3, 128, 128), torch.randn(3, 3, 128, 128)
    with torch.no_grad():
        used = model(local, context, with_context_logits=True)
        for module in model.modules():  # everything but drop path
            module.training = not type(module).__name__.startswith("DropPath")
        trained = model(local, context)
    torch.testing.assert_close(trained.logits, used.logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(trained.context_logits, used.context_logits, atol=1e-4, rtol=1e-4)


def test_context_logits_come_when_training() -> None:
    model, image = make("swin linear"), torch.randn(2, 3, 128, 128)
    assert model.train()(image, image).context_logits is not None
    assert model.train()(image, image, with_context_logits=False).context_logits is None
    assert model.eval()(image, image).context_logits is None


def test_logits_hang_on_a_single_pixel_finer_than_a_token() -> None:
    """UPerNet's last layer gives every pixel of a token weights of its own."""
    model = make("swin upernet")
    for parameter in model.head.classify.parameters():
        nn.init.normal_(parameter)
    with torch.no_grad():
        image = torch.randn(1, 3, 128, 128)
        logits = model(image, image).logits[0, 0]
    inside = logits[:4, :4]
    assert inside.flatten().unique().numel() == 16


def test_the_full_resolution_skip_sees_single_pixels() -> None:
    """With every feature of the trunk silenced, the image still reaches the logits, within three 3x3 convolutions."""
    model, image = make("swin detail"), torch.randn(1, 3, 128, 128)
    for parameter in model.head.classify.parameters():
        nn.init.zeros_(parameter)
    other = image.clone()
    other[0, :, 64, 64] += 1.0
    with torch.no_grad():
        changed = (model(image, image).logits != model(other, image).logits).any(1)[0].nonzero()
    assert changed.min() == 61
    assert changed.max() == 67
