"""The mechanism: what passes between the scales, and that nothing else does."""

from __future__ import annotations

import pytest
import torch
from timm.models.swin_transformer_v2 import SwinTransformerV2
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models import build
from uhrseg.models.relay import one_scale

SWIN = {"trunk": "swinv2_t", "embed_dim": 8, "depths": (2, 2), "heads": (1, 2), "window": 4}
VIT = {"trunk": "vit_s", "embed_dim": 24, "depth": 2, "heads": 3}
TRUNKS = pytest.mark.parametrize("options", [SWIN, VIT], ids=["swin", "vit"])
ORDERS = pytest.mark.parametrize("order", ["sequential", "parallel"])


def make(options: dict, bands: int = 3, **more) -> nn.Module:
    """A small network with weights that make every path matter (SwinV2 starts as the identity)."""
    torch.manual_seed(0)
    model = build(bands=bands, classes=4, size=64, **options, **more)
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.3 if parameter.ndim == 1 else 0.0, 0.3)
    return model.eval()


def images(bands: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    torch.manual_seed(1)
    return torch.randn(batch, bands, 64, 64), torch.randn(batch, bands, 64, 64)


@TRUNKS
@ORDERS
def test_context_reaches_the_local_logits(options: dict, order: str) -> None:
    model, (local, context) = make(options, order=order), images()
    other = context.clone()
    other[:, :, :4, :4] += 1.0  # the far corner of the context
    with torch.no_grad():
        assert not torch.allclose(model(local, context).logits, model(local, other).logits)


@TRUNKS
@ORDERS
def test_context_reaches_the_local_logits_through_relays_only(options: dict, order: str) -> None:
    """With the relays cut between context and local pass, the context has no influence at all."""
    model, (local, context) = make(options, order=order), images()
    blocks = list(model.trunk.body.blocks) if options is VIT else [b for s in model.trunk.layers for b in s.blocks]
    for block in blocks:
        _freeze_relays(block, options is VIT, relays=4)
    with torch.no_grad():
        a = model(local, context, with_context_logits=True)
        b = model(local, context + 1.0, with_context_logits=True)
    torch.testing.assert_close(a.logits, b.logits, atol=0, rtol=0)
    assert not torch.allclose(a.context_logits, b.context_logits)


def _freeze_relays(block: nn.Module, is_vit: bool, relays: int) -> None:
    """Make the block return its relays as they came in."""
    if is_vit:
        block.register_forward_hook(lambda _, args, out: torch.cat((args[0][:, :relays], out[:, relays:]), 1))
    else:
        block.register_forward_hook(lambda _, args, out: (out[0], args[1]))


@TRUNKS
def test_sequential_order_sees_the_context_within_one_block(options: dict) -> None:
    """Eq. 4-5: the context speaks first. Parallel (Eq. 11-13): one block is too early for it to be heard."""
    one_block = {**options, **({"depth": 1} if options is VIT else {"depths": (1,), "heads": (1,)})}
    local, context = images()
    for order, heard in (("sequential", True), ("parallel", False)):
        model = make(one_block, order=order)
        with torch.no_grad():
            same = torch.equal(model(local, context).logits, model(local, context + 1).logits)
        assert same is not heard


@TRUNKS
@ORDERS
def test_skipping_what_nothing_reads_changes_nothing(options: dict, order: str) -> None:
    model, (local, context) = make(options, order=order), images()
    with torch.no_grad():
        full = model(local, context, with_context_logits=True)
        short = model(local, context)
    assert short.context_logits is None
    assert full.context_logits.shape == full.logits.shape == (2, 4, 64, 64)
    torch.testing.assert_close(short.logits, full.logits, atol=1e-5, rtol=1e-5)


@TRUNKS
@pytest.mark.parametrize("strategy", ["relays", "single"])
@pytest.mark.parametrize("with_context", [True, False])
def test_few_samples_at_a_time_give_what_all_give(
    options: dict, strategy: str, with_context: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On CPU without gradients blocks take parts of the batch: of 5 samples two at a time, and the last alone."""
    model, (local, context) = make(options, strategy=strategy), images(batch=5)
    given = (local, context, with_context) if strategy == "relays" else (local,)
    sizes = set()
    last = model.trunk.body.blocks[-1] if options is VIT else model.trunk.layers[-1].blocks[-1]
    last.norm2.register_forward_hook(lambda _, args, out: sizes.add(len(args[0])))
    outputs = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for numbers in (10**9, 2 * 16 * 24 if options is VIT else 2 * 8 * 8 * 16):
            monkeypatch.setattr("uhrseg.models.vit._NUMBERS_AT_ONCE", numbers)
            monkeypatch.setattr("uhrseg.models.swin._NUMBERS_AT_ONCE", numbers)
            sizes.clear()
            with torch.inference_mode():
                outputs.append(model(*given))
            assert sizes == ({5} if numbers == 10**9 else {1, 2})
    finally:
        torch.set_num_threads(threads)
    all_at_once, few = outputs
    assert torch.equal(few.logits, all_at_once.logits)
    if with_context and strategy == "relays":
        assert torch.equal(few.context_logits, all_at_once.context_logits)
    with torch.enable_grad():  # gradients: all at once, the head too
        torch.testing.assert_close(model(*given).logits, few.logits, atol=1e-5, rtol=1e-4)
        assert sizes == {1, 2, 5}


@TRUNKS
@ORDERS
@pytest.mark.parametrize("share_projector", [True, False])
def test_gradient_reaches_every_parameter(options: dict, order: str, share_projector: bool) -> None:
    model, (local, context) = make(options, order=order, share_projector=share_projector).train(), images()
    output = model(local, context)
    (output.logits.square().mean() + output.context_logits.square().mean()).backward()
    silent = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert silent == []


def test_gradient_reaches_every_parameter_of_the_pyramid() -> None:
    model, (local, context) = make(SWIN, head="upernet", head_channels=8, detail_channels=4).train(), images()
    output = model(local, context)
    (output.logits.square().mean() + output.context_logits.square().mean()).backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


@TRUNKS
def test_projectors_are_shared_or_apart(options: dict) -> None:
    local, context = images()
    shared, apart = make(options, share_projector=True), make(options, share_projector=False)
    assert not any("context" in name for name, _ in shared.named_parameters())
    with torch.no_grad():
        before = apart(local, context, with_context_logits=True)
        apart.trunk.context_embed.proj.bias += 1.0
        after = apart(local, context, with_context_logits=True)
    assert not torch.allclose(before.context_logits, after.context_logits)


@TRUNKS
def test_separate_projectors_start_equal(options: dict) -> None:
    trunk = build(bands=3, classes=4, size=64, share_projector=False, **options).trunk
    own = trunk.body.patch_embed if options is VIT else trunk.patch_embed
    assert torch.equal(own.proj.weight, trunk.context_embed.proj.weight)


@TRUNKS
@pytest.mark.parametrize("relays", [1, 4, 7])
def test_registers_are_one_scale_with_tokens(options: dict, relays: int) -> None:
    model, (local, context) = make(options, strategy="registers", relays=relays), images()
    assert model.trunk.relays.shape[1] == relays
    with torch.no_grad():
        before = model(local).logits
        model.trunk.relays += 1.0
        assert not torch.allclose(before, model(local).logits)
    with pytest.raises(InputError, match="sees one scale"):
        model(local, context)


def test_initial_relays() -> None:
    """ViT: zero plus position rows; Swin: standard normal (what the authors' code does)."""
    torch.manual_seed(0)
    vit = build(bands=3, classes=4, size=64, relays=64, **VIT).trunk
    assert not vit.relays.any()
    assert vit.relay_position.std().item() == pytest.approx(0.02, rel=0.15)
    assert build(bands=3, classes=4, size=64, relays=64, **SWIN).trunk.relays.std().item() == pytest.approx(
        1.0, rel=0.15
    )


def test_single_vit_is_timms_bit_for_bit() -> None:
    model, (local, _) = make(VIT, strategy="single"), images()
    plain = VisionTransformer(
        64, 16, 3, 0, "", embed_dim=24, depth=2, num_heads=3, class_token=False, final_norm=False
    ).eval()
    plain.load_state_dict(model.trunk.body.state_dict())
    with torch.no_grad():
        assert torch.equal(one_scale(model.trunk, local)[-1], plain.forward_features(local))


@pytest.mark.parametrize("size", [64, 96])
def test_single_swin_is_timms(size: int) -> None:
    """To rounding: timm multiplies the cosines by the temperature, we the queries. 96 px needs padded windows."""
    torch.manual_seed(0)
    model = build("swinv2_t", bands=3, classes=2, size=size, strategy="single", embed_dim=8, heads=(1, 2, 4, 8)).eval()
    plain = SwinTransformerV2(
        size, in_chans=3, num_classes=0, embed_dim=8, depths=(2, 2, 6, 2), num_heads=(1, 2, 4, 8), window_size=8
    ).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, 0.2 if parameter.ndim == 1 else 0.0, 0.2)
    assert not plain.load_state_dict(model.trunk.state_dict()).missing_keys
    image = torch.randn(2, 3, size, size)
    with torch.no_grad():
        ours, theirs = model.trunk.norm(one_scale(model.trunk, image)[-1]), plain.forward_features(image)
    torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bands", [1, 2, 5, 13])
def test_any_number_of_bands(bands: int) -> None:
    model, (local, context) = make(SWIN, bands=bands), images(bands)
    with torch.no_grad():
        assert model(local, context).logits.shape == (2, 4, 64, 64)


@TRUNKS
def test_misuse_is_refused_with_a_sentence(options: dict) -> None:
    model, (local, context) = make(options), images()
    with pytest.raises(InputError, match="needs the context window"):
        model(local)
    with pytest.raises(InputError, match=r"context has shape \(2, 3, 32, 32\).*takes \(B, 3, 64, 64\)"):
        model(local, context[..., :32, :32])
    with pytest.raises(InputError, match="local has shape"):
        model(local[:, :2], context)
