"""What relays are compared with: each strategy sees what its name says, and nothing else."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.models.test_trunks import TRUNKS
from uhrseg.errors import InputError
from uhrseg.models import TWO_SCALES, build

SIZE, FACTOR = 48, 4
FUSED = ("downsampling", "decision_fusion")


def make(strategy: str, trunk: str = "vit", bands: int = 3, **more: Any) -> nn.Module:
    """A network whose every path matters, its weights the same for every strategy."""
    options = {**TRUNKS[trunk], **more}
    model = build(bands=bands, classes=4, size=SIZE, strategy=strategy, context_factor=FACTOR, **options)
    for name, parameter in sorted(model.named_parameters()):
        generator = torch.Generator().manual_seed(sum(map(ord, name)))
        with torch.no_grad():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator) + (parameter.ndim == 1) * 0.3)
    return model.eval()


def images(bands: int = 3, batch: int = 2) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = (2, batch, bands, SIZE, SIZE)
    local, context = torch.randn(shape, generator=generator)
    return local, context


@pytest.mark.parametrize("trunk", ["vit", "swinv2", "glam", "flatten"])
def test_decision_fusion_is_the_mean_of_the_other_two(trunk: str) -> None:
    local, context = images()
    with torch.no_grad():
        fused = make("decision_fusion", trunk)(local, context, True)
        alone = make("single", trunk)(local).logits
        below = make("downsampling", trunk)(local, context, True)
    torch.testing.assert_close(fused.logits, 0.5 * (alone + below.logits))
    torch.testing.assert_close(fused.context_logits, below.context_logits)


def test_downsampling_is_the_enlarged_centre_of_the_context_and_sees_no_detail() -> None:
    local, context = images()
    model = make("downsampling")
    with torch.no_grad():
        found = model(local, context, True)
        assert torch.equal(found.logits, model(torch.zeros_like(local), context).logits)
    centre = found.context_logits[..., 18:30, 18:30]
    torch.testing.assert_close(
        found.logits, F.interpolate(centre, size=(SIZE, SIZE), mode="bilinear", align_corners=False)
    )


@pytest.mark.parametrize("strategy", TWO_SCALES)
def test_far_pixels_reach_the_local_logits(strategy: str) -> None:
    local, context = images(batch=1)
    far = context.clone()
    far[..., :4, :4] += 3  # a corner of the context, outside the local window
    model = make(strategy)
    with torch.no_grad():
        moved = (model(local, far).logits - model(local, context).logits).abs().max()
    assert moved > 1e-4


@pytest.mark.parametrize("strategy", TWO_SCALES)
@pytest.mark.parametrize("bands", [1, 13])
def test_shape_batch_invariance_and_determinism(strategy: str, bands: int) -> None:
    local, context = images(bands, batch=3)
    model = make(strategy, bands=bands)
    with torch.no_grad():
        whole = model(local, context).logits
        assert whole.shape == (3, 4, SIZE, SIZE)
        assert torch.equal(whole, model(local, context).logits)
        one = model(local[1:2], context[1:2]).logits
    torch.testing.assert_close(whole[1:2], one, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("strategy", TWO_SCALES)
@pytest.mark.parametrize("share", [True, False])
def test_every_parameter_learns(strategy: str, share: bool) -> None:
    model = make(strategy, share_projector=share).train()
    output = model(*images())
    assert (output.context_logits is None) == (strategy in FUSED)  # supervised on the fused result alone
    parts = [part for part in output if part is not None]
    sum(part.square().sum() for part in parts).backward()
    idle = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def test_token_concatenation_lets_local_and_context_tokens_attend_to_each_other() -> None:
    local, context = images(batch=1)
    model = make("token_concat")
    with torch.no_grad():
        before = model(local, context, True)
        changed = model(local + 1, context, True)
    assert (before.context_logits - changed.context_logits).abs().max() > 1e-4


def test_what_is_impossible_is_refused() -> None:
    with pytest.raises(InputError, match="attends everywhere"):
        make("token_concat", "swinv2")
    for strategy in FUSED:
        with pytest.raises(InputError, match="context_factor"):
            build(bands=3, classes=4, size=SIZE, strategy=strategy, **TRUNKS["vit"])
        with pytest.raises(InputError, match="context_factor"):
            build(bands=3, classes=4, size=SIZE, strategy=strategy, context_factor=5, **TRUNKS["vit"])
        with pytest.raises(InputError, match="needs the context window"):
            make(strategy)(images()[0])
