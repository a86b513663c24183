"""Baselines are the libraries' networks, made to fit the seam: any bands, no relays, the same strategies of fusion."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models import build

BASELINES = {
    "unet": {"encoder": "resnet18"},
    "deeplabv3": {"head": "bilinear"},
    "pvtv2": {"variant": "b0"},
    "pvtv2 upernet": {"variant": "b0", "head": "upernet", "head_channels": 8},
    "gcvit": {"variant": "xxtiny", "head": "upernet", "head_channels": 8},
}
EVERY = pytest.mark.parametrize("name", BASELINES)


def make(name: str, bands: int = 3, size: int = 64, strategy: str = "single") -> nn.Module:
    torch.manual_seed(0)
    return build(
        name.split()[0], bands=bands, classes=4, size=size, strategy=strategy, context_factor=4, **BASELINES[name]
    )  # fmt: skip


def image(bands: int = 3, batch: int = 3, size: int = 64) -> Tensor:
    return torch.randn(batch, bands, size, size, generator=torch.Generator().manual_seed(1))


@EVERY
@pytest.mark.parametrize("bands", [1, 13])
def test_shape_batch_invariance_and_determinism(name: str, bands: int) -> None:
    model, x = make(name, bands).eval(), image(bands)
    with torch.no_grad():
        logits = model(x).logits
        assert logits.shape == (3, 4, 64, 64)
        assert torch.equal(logits, model(x).logits)
        # Not to the last bit: the libraries' convolutions choose their algorithm by the batch.
        torch.testing.assert_close(logits[1:2], model(x[1:2]).logits, atol=1e-5, rtol=1e-5)


@EVERY
def test_every_parameter_learns(name: str) -> None:
    model = make(name).train()
    model(image()).logits.square().sum().backward()
    assert not [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@EVERY
def test_decision_fusion_averages_both_scales(name: str) -> None:
    single, fused, below = (make(name, strategy=s).eval() for s in ("single", "decision_fusion", "downsampling"))
    local, context = image(batch=1), image(batch=1).flip(2)
    with torch.no_grad():
        expected = 0.5 * (single(local).logits + below(local, context).logits)
        torch.testing.assert_close(fused(local, context).logits, expected, atol=1e-5, rtol=1e-4)


@EVERY
def test_relays_and_registers_are_refused(name: str) -> None:
    for strategy in ("relays", "registers", "token_concat"):
        with pytest.raises(InputError, match="no tokens for relays|attends everywhere"):
            make(name, strategy=strategy)


def test_impossible_sizes_and_variants_are_refused() -> None:
    with pytest.raises(InputError, match="multiple of 32"):
        make("pvtv2", size=80)
    with pytest.raises(InputError, match="choose b0 to b5"):
        build("pvtv2", bands=3, classes=2, strategy="single", variant="b9")
    with pytest.raises(InputError, match="from scratch"):
        build("unet", bands=3, classes=2, strategy="single", pretrained=True)


def test_gcvit_is_timms_at_224_and_runs_at_any_size() -> None:
    theirs = timm.create_model("gcvit_xxtiny", num_classes=0).eval()
    ours = make("gcvit", size=224).eval()
    report = ours.trunk.body
    report.stem.load_state_dict(theirs.stem.state_dict())
    report.layers.load_state_dict(theirs.stages.state_dict(), strict=False)
    x = image(batch=2, size=224)
    with torch.no_grad():
        last = report.norms[-1]
        last.weight.fill_(1), last.bias.zero_()
        found = ours.trunk.maps([report(x)], True)[-1]
        expected = last(theirs.forward_features(x))
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
        for size in (96, 256):
            assert make("gcvit", size=size).eval()(image(batch=1, size=size)).logits.shape[-1] == size


@pytest.mark.parametrize(
    ("trunk", "options", "millions"),  # as the published baselines, run with 19 classes
    [
        ("deeplabv3", {"head": "bilinear"}, 39.64),
        ("unet", {}, 24.44),
        ("pvtv2", {"variant": "b1"}, 23.46),
        ("pvtv2", {"variant": "b3"}, 54.69),
    ],
)
def test_sizes_are_the_published_ones(trunk: str, options: dict[str, str], millions: float) -> None:
    with torch.device("meta"):
        model = build(trunk, bands=3, classes=19, strategy="single", **options)
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(millions, rel=0.005)
