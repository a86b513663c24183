"""Any timm ViT: class and register tokens, LayerScale, pre-norm, absolute positions; what relays break is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.models.relay import one_scale

# name: side of a patch
HANDLED = {
    "vit_tiny_patch16_224": 16,  # class token
    "vit_small_patch14_dinov2": 14,  # LayerScale
    "vit_small_patch14_reg4_dinov2": 14,  # class and register tokens
    "deit3_small_patch16_224": 16,  # positions for patches only
    "vit_base_patch16_clip_224": 16,  # norm before the blocks
    "vit_base_patch16_siglip_224": 16,  # attention pooling, which segmentation has no use for
    "vit_little_patch16_reg4_gap_256": 16,  # registers without a class token
}
REFUSED = {
    "vit_medium_patch16_rope_reg1_gap_256": "Eva",  # rotary positions
    "eva02_tiny_patch14_224": "Eva",
    "vit_small_patch16_dinov3": "Eva",
    "beit_base_patch16_224": "Beit",
    "deit_tiny_distilled_patch16_224": "VisionTransformerDistilled",
    "vit_relpos_small_patch16_224": "VisionTransformerRelPos",
}
EVERY = pytest.mark.parametrize("name", HANDLED)


def make(name: str, relays: int = 2, strategy: str = "relays", bands: int = 3) -> nn.Module:
    torch.manual_seed(0)
    model = build(
        f"timm:{name}", bands=bands, classes=3, size=4 * HANDLED[name], depth=1, relays=relays, strategy=strategy
    )
    for key, parameter in model.named_parameters():
        if parameter.ndim == 1 and "ls" in key:  # LayerScale starts so small that nothing would be seen
            nn.init.normal_(parameter, 0.5, 0.2)
    return model.eval()


@EVERY
@pytest.mark.parametrize("bands", [1, 13])
def test_shape_and_batch_invariance(name: str, bands: int) -> None:
    model, side = make(name, bands=bands), 4 * HANDLED[name]
    local, context = torch.randn(2, 3, bands, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        found = model(local, context, True)
        assert found.logits.shape == found.context_logits.shape == (3, 3, side, side)
        torch.testing.assert_close(found.logits[:1], model(local[:1], context[:1]).logits, atol=1e-4, rtol=1e-4)
        moved = model(local, context + 1).logits
    assert (moved - found.logits).abs().max() > 1e-5


@EVERY
def test_every_parameter_learns(name: str) -> None:
    model, side = make(name).train(), 4 * HANDLED[name]
    images = torch.randn(2, 2, 3, side, side)
    output = model(images[0], images[1])
    (output.logits.square().sum() + output.context_logits.square().sum()).backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@EVERY
def test_without_relays_it_is_timms_own(name: str) -> None:
    model, side = make(name, strategy="single"), 4 * HANDLED[name]
    image = torch.randn(2, 3, side, side)
    with torch.no_grad():
        tokens = one_scale(model.trunk, image)
        ours = model.trunk.maps(tokens, True)[0].flatten(2).transpose(1, 2)
        body = model.trunk.body
        theirs = body.fc_norm(body.forward_features(image))[:, body.num_prefix_tokens :]
    assert torch.equal(ours, theirs)


@pytest.mark.parametrize("name", REFUSED)
def test_what_relays_would_break_is_refused_with_the_reason(name: str) -> None:
    with pytest.raises(InputError, match=f"{REFUSED[name]}: relays need a plain VisionTransformer"):
        build(f"timm:{name}", bands=3, classes=2, size=64, depth=1)


def test_patches_of_14_px_need_a_window_they_divide() -> None:
    with pytest.raises(InputError, match="patches of 14 px"):
        build("timm:vit_small_patch14_dinov2", bands=3, classes=2, size=256, depth=1)
