"""The sizes that `uhrseg models list` prints are those of the networks."""

from __future__ import annotations

import pytest
import torch

from uhrseg.models import MODELS, build
from uhrseg.models.sizes import SIZES, network_size, parameters

COUNTED = ["vit_s", "swinv2_t", "swin_t", "glam_t", "flatten_swin_t", "pvtv2"]  # the others differ in depth and width


def test_every_network_has_a_size() -> None:
    assert set(SIZES) == set(MODELS) - {"threshold"}


@pytest.mark.parametrize("name", SIZES)
def test_parameters_are_counted(name: str) -> None:
    with torch.device("meta"):
        model = build(name, bands=3, classes=8, strategy="single")
    assert parameters(model) == pytest.approx(SIZES[name][0].parameters_m, abs=0.006)


@pytest.mark.parametrize("name", COUNTED)
def test_sizes_are_counted(name: str) -> None:
    alone, relays = SIZES[name]
    assert network_size(name, "single") == pytest.approx(alone, abs=0.006)
    if relays is not None:
        assert network_size(name, "relays") == pytest.approx(relays, abs=0.006)
