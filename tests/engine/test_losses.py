"""Golden values: the authors' published losses (see README of the golden files); tolerance 1e-5 as they were
obtained as differences of float32 totals."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.models.golden import find
from uhrseg.engine.losses import crop_context, dice_loss, loss_normalisers, pooled_labels, relay_loss

GOLDEN = Path(__file__).parents[1] / "golden_losses"


def output(local: Tensor, context: Tensor | None) -> SimpleNamespace:
    return SimpleNamespace(logits=local, context_logits=context, auxiliary_logits=None)


def golden(case: str) -> tuple[SimpleNamespace, Tensor, dict[str, Tensor]]:
    file = load_file(GOLDEN / f"loss_{case}.safetensors")
    local, context = (file[f"input.logits_{s}"].requires_grad_() for s in ("local", "global"))
    return output(local, context), file["input.labels"].long(), file


def random_case(ignored: float = 0.0, size: int = 32) -> tuple[SimpleNamespace, Tensor]:
    torch.manual_seed(0)
    labels = torch.randint(0, 5, (3, size, size))
    labels[torch.rand(labels.shape) < ignored] = 255
    logits = [torch.randn(3, 5, size, size, requires_grad=True) for _ in range(2)]
    return output(*logits), labels


def test_without_ignored_pixels_losses_and_gradients_are_the_published_ones() -> None:
    out, labels, file = golden("noignore")
    losses = relay_loss(out, labels, factor=4)
    assert losses.local.item() == pytest.approx(file["loss.local"].item(), abs=1e-5)
    assert losses.global_.item() == pytest.approx(file["loss.global"].item(), abs=1e-5)
    assert losses.consistency.item() == pytest.approx(file["loss.consistency"].item(), abs=1e-5)
    assert losses.total.item() == pytest.approx(file["loss.total_0.1_0.1"].item(), abs=1e-5)
    losses.total.backward()
    torch.testing.assert_close(out.logits.grad, file["grad.logits_local"], atol=1e-7, rtol=1e-4)
    torch.testing.assert_close(out.context_logits.grad, file["grad.logits_global"], atol=1e-7, rtol=1e-4)


def test_with_ignored_pixels_the_global_term_is_the_published_one_over_valid_cells_only() -> None:
    out, labels, file = golden("ignore_random")
    losses = relay_loss(out, labels, factor=4)
    valid_share = pooled_labels(labels, 4, 4, 255)[1].float().mean().item()
    assert 0 < valid_share < 0.5  # ten per cent of scattered pixels spoil most cells
    assert losses.local.item() == pytest.approx(file["loss.local"].item(), abs=1e-5)
    assert losses.global_.item() * valid_share == pytest.approx(file["loss.global"].item(), abs=1e-5)


@pytest.mark.parametrize("case", ["ignore_block", "overlap50"])
def test_losses_of_larger_gaps_and_of_centre_crops_are_the_published_ones(case: str) -> None:
    """With overlap o the published test losses look at the centres 1 - o of both windows."""
    file = load_file(find("relay", f"loss_{case}"))
    centre = slice(16, 48) if case == "overlap50" else slice(None)
    local, context = (file[f"input.logits_{s}"][..., centre, centre] for s in ("local", "global"))
    labels = file["input.labels"].long()[..., centre, centre]
    losses = relay_loss(output(local, context), labels, factor=4)
    valid_share = pooled_labels(labels, local.shape[1], 4, 255)[1].float().mean().item()
    assert losses.local.item() == pytest.approx(file["loss.local"].item(), abs=1e-5)
    assert losses.global_.item() * valid_share == pytest.approx(file["loss.global"].item(), abs=1e-5)


def test_a_batch_without_labels_is_nan_as_published_and_zero_here() -> None:
    file = load_file(find("relay", "loss_allignored"))
    out = output(*(file[f"input.logits_{s}"] for s in ("local", "global")))
    losses = relay_loss(out, file["input.labels"].long())
    assert file["loss.local"].isnan() and losses.local == losses.global_ == 0


def test_the_crop_is_the_published_one() -> None:
    out, _, file = golden("noignore")
    torch.testing.assert_close(crop_context(out.context_logits, 4), file["debug.global_crop"])


def test_ignored_pixels_have_no_say() -> None:
    """Logits at ignored pixels, and of cells that hold one, change neither losses nor gradients elsewhere."""
    out, labels = random_case(ignored=0.03)
    before = relay_loss(out, labels, factor=4, dice_weight=1.0)
    with torch.no_grad():
        out.logits.masked_fill_((labels == 255).unsqueeze(1), 9.0)
    after = relay_loss(out, labels, factor=4, dice_weight=1.0)
    torch.testing.assert_close(torch.stack(after), torch.stack(before))
    after.total.backward()
    assert not out.logits.grad.masked_select((labels == 255).unsqueeze(1)).any()


def test_a_crop_without_a_valid_pixel_gives_zero_and_no_gradient() -> None:
    out, labels = random_case()
    losses = relay_loss(out, torch.full_like(labels, 255), factor=4, dice_weight=1.0)
    losses.total.backward()
    assert [x.item() for x in losses] == [0.0] * 6
    assert not out.logits.grad.any() and not out.context_logits.grad.any()


def test_cells_are_averages_computed_by_hand() -> None:
    out, labels = random_case(ignored=0.01)
    one_hot = np.eye(5)[np.where(labels == 255, 0, labels)]  # (B, S, S, C)
    known = (labels != 255).numpy()
    context = crop_context(out.context_logits, 4).detach().log_softmax(1).numpy()
    local = out.logits.detach().softmax(1).numpy()
    global_, consistency = [], []
    for b in range(3):
        for r in range(8):
            for c in range(8):
                cell = np.s_[b, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4]
                if known[cell].all():
                    global_.append(-(one_hot[cell].mean((0, 1)) * context[b, :, r, c]).sum())
                    pooled = local[b, :, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].mean((1, 2))
                    consistency.append(-(pooled * context[b, :, r, c]).sum())
    losses = relay_loss(out, labels, factor=4)
    assert 0 < len(global_) < 192
    assert losses.global_.item() == pytest.approx(np.mean(global_), rel=1e-5)
    assert losses.consistency.item() == pytest.approx(np.mean(consistency), rel=1e-5)


@pytest.mark.parametrize("weights", [None, torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])])
def test_parts_with_common_normalisers_add_up_to_the_whole(weights: Tensor | None) -> None:
    """What accumulation and several processes rely on; the last part is ignored altogether."""
    out, labels = random_case(ignored=0.05)
    labels[2] = 255
    whole = relay_loss(out, labels, 4, class_weights=weights)
    counts = torch.stack([loss_normalisers(labels[k : k + 1], 5, 4, 255, weights) for k in range(3)]).sum(0)
    parts = [
        relay_loss(
            output(out.logits[k : k + 1], out.context_logits[k : k + 1]), labels[k : k + 1], 4,
            class_weights=weights, normalisers=counts,
        )
        for k in range(3)
    ]  # fmt: skip
    torch.testing.assert_close(torch.stack([torch.stack(p) for p in parts]).sum(0), torch.stack(whole))


def test_class_weights_are_those_of_weighted_cross_entropy() -> None:
    out, labels = random_case(ignored=0.1)
    weights = torch.tensor([1.0, 2.0, 0.5, 3.0, 1.0])
    expected = torch.nn.functional.cross_entropy(out.logits, labels, weights, ignore_index=255)
    torch.testing.assert_close(relay_loss(out, labels, 4, class_weights=weights).local, expected)


def test_one_scale_has_local_terms_only() -> None:
    out, labels = random_case(ignored=0.1)
    losses = relay_loss(output(out.logits, None), labels, factor=None)
    assert losses.total.item() == losses.local.item() > 0
    assert losses.global_.item() == losses.consistency.item() == 0


def test_an_auxiliary_heads_term_is_that_of_its_enlarged_logits() -> None:
    out, labels = random_case(ignored=0.2)
    out.auxiliary_logits = torch.randn(3, 5, 4, 4, requires_grad=True)
    with_it, without = relay_loss(out, labels), relay_loss(output(out.logits, out.context_logits), labels)
    enlarged = torch.nn.functional.interpolate(out.auxiliary_logits, (32, 32), mode="bilinear")
    expected = torch.nn.functional.cross_entropy(enlarged, labels, ignore_index=255)
    torch.testing.assert_close(with_it.auxiliary, expected)
    torch.testing.assert_close(with_it.total, without.total + 0.4 * expected)
    torch.testing.assert_close(relay_loss(out, labels, auxiliary_weight=0.0).total, without.total)
    assert without.auxiliary == 0


def test_half_precision_logits_are_lifted_to_float32() -> None:
    out, labels = random_case()
    halves = output(out.logits.detach().bfloat16(), out.context_logits.detach().bfloat16())
    floats = output(halves.logits.float(), halves.context_logits.float())
    torch.testing.assert_close(torch.stack(relay_loss(halves, labels)), torch.stack(relay_loss(floats, labels)))


def test_dice_is_zero_when_right_and_counts_present_classes_only() -> None:
    labels = torch.zeros(1, 8, 8, dtype=torch.long)
    labels[0, :2] = 2
    right = torch.nn.functional.one_hot(labels, 5).permute(0, 3, 1, 2) * 50.0
    assert dice_loss(right, labels, 255).item() == pytest.approx(0, abs=1e-6)
    wrong = right.roll(1, dims=1)  # every pixel another class: both present classes miss wholly
    assert dice_loss(wrong, labels, 255).item() == pytest.approx(1, abs=1e-6)


def test_a_window_without_a_centred_crop_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="no centred crop"):
        crop_context(torch.zeros(1, 2, 30, 30), 4)
