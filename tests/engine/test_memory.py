"""Memory that is foreseen is memory that is measured."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rasters import terrain, threshold_card, write_raster
from uhrseg.engine.memory import SteadyMemory, Watch, keep_free_memory, peak_rss_mb, resident_mb, return_free_memory
from uhrseg.engine.predict import predict
from uhrseg.models import SegOutput


def test_a_rise_of_memory_is_seen_though_it_was_given_back() -> None:
    keep_free_memory()
    return_free_memory()
    with Watch() as memory:
        held = np.ones(10_000_000)  # 80 MB
        held += 1
        del held
    assert 75 < memory.rise_mb < 130
    assert peak_rss_mb() > memory.rise_mb


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only glibc keeps freed memory")
def test_holes_are_given_back_once_they_have_grown() -> None:
    keep_free_memory()
    memory = SteadyMemory(60, seconds=0)
    memory.settle()
    level = resident_mb()
    few = [np.ones(125_000) for _ in range(40)][::8]  # blocks of 1 MB: 35 MB of holes are left
    memory.settle()
    assert resident_mb() - level > 25
    many = [np.ones(125_000) for _ in range(120)][::8]
    assert resident_mb() - level > 60
    memory.settle()
    assert resident_mb() - level < 40, "20 MB are in use"
    assert len(few) + len(many) == 20


class _Hungry(torch.nn.Module):
    strategy = "relays"

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        self.megabytes = megabytes

    def forward(
        self, local: torch.Tensor, context: torch.Tensor | None = None, with_context_logits: bool | None = None
    ) -> SegOutput:
        """Logits of three classes, after taking memory for nothing."""
        torch.ones(self.megabytes * 250_000).mul_(2)
        return SegOutput(local[:, :1].expand(-1, 3, -1, -1).clone())


def test_the_forecast_counts_what_a_call_of_the_model_takes(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(90, 100))
    card = threshold_card((298.0, 303.0))
    modest, hungry = (predict(source, (_Hungry(mb), card)).forecast() for mb in (1, 100))
    assert 90 < (hungry.memory_mb - modest.memory_mb) / 1.25 < 120
    assert "for a call of the model" in hungry.memory_formula
