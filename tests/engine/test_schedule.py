from __future__ import annotations

import pytest
import torch
from torch.optim import SGD

from uhrseg.engine.schedule import cosine_lr, plateau, set_lr, warmup_lr, warmup_steps

# Learning rate at the first steps of a 200-step run of the published code (golden warmup.json: 5 %, 1e-5 to 1e-3).
PUBLISHED = [1e-5, 1.09e-4, 2.08e-4, 3.07e-4, 4.06e-4, 5.05e-4, 6.04e-4, 7.03e-4, 8.02e-4, 9.01e-4, *[1e-3] * 5]


def optimizer(lr: float = 1.0) -> SGD:
    return SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)


def test_the_warm_up_is_the_published_one() -> None:
    warm = warmup_steps(200, 0.05)
    assert [warmup_lr(step, warm, 1e-3) for step in range(15)] == pytest.approx(PUBLISHED, rel=1e-9)


def test_cosine_starts_with_the_warm_up_and_ends_at_zero() -> None:
    rates = [cosine_lr(step, 200, 10, 1e-3) for step in range(201)]
    assert rates[:11] == pytest.approx(PUBLISHED[:11])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[105] == pytest.approx(5e-4) and rates[200] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("warm", [0, 1])
def test_no_warm_up_means_the_full_rate_at_once(warm: int) -> None:
    assert warmup_lr(warm, warm, 0.3) == 0.3


def test_a_stalled_score_cuts_the_rate_to_a_fifth_after_four_patient_validations() -> None:
    opt = optimizer()
    schedule = plateau(opt)
    rates = []
    for _ in range(6):
        schedule.step(0.5)
        rates.append(opt.param_groups[0]["lr"])
    assert rates == pytest.approx([1, 1, 1, 1, 1, 0.2])


def test_a_rising_score_keeps_the_rate() -> None:
    opt = optimizer()
    schedule = plateau(opt)
    for k in range(12):
        schedule.step(0.1 + 0.05 * k)
    assert opt.param_groups[0]["lr"] == 1


def test_the_rate_goes_to_every_group() -> None:
    opt = optimizer()
    opt.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 5.0})
    set_lr(opt, 0.25)
    assert [g["lr"] for g in opt.param_groups] == [0.25, 0.25]
