"""The same labels on a GPU; these tests need one and skip without, saying so."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.rasters import RELIEF, SMALL_SWIN, make_card, make_model, terrain, write_raster
from tests.synthetic import recipe_for, write_discs
from uhrseg.engine.fit import load_model
from uhrseg.engine.graph import Recorded
from uhrseg.engine.predict import predict_labels
from uhrseg.engine.train import train

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_gives_the_labels_of_the_cpu(tmp_path: Path, compiled: bool) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(230, 260), nodata=-9999)
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    module = make_model(card)
    expected = predict_labels(source, module, card, device="cpu", precision="fp32")
    found = predict_labels(source, module, card, device="cuda", precision="fp32", batch_size=2, compiled=compiled)
    assert (found == expected).mean() >= 0.999


def test_chunks_and_workers_do_not_show_on_a_gpu(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(230, 260), nodata=-9999)
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    module = make_model(card)
    whole = predict_labels(source, module, card, device="cuda", batch_size=3)
    for chunk, workers in ((64, 1), (100, 2)):
        again = predict_labels(source, module, card, device="cuda", batch_size=3, chunk=chunk, workers=workers)
        np.testing.assert_array_equal(again, whole)


def test_a_recorded_network_gives_what_it_gave_before() -> None:
    layer = torch.nn.Linear(8, 3).cuda()
    recorded = Recorded(lambda local, context: layer(local + context))
    with torch.inference_mode():
        for seed in range(8):
            torch.manual_seed(seed)
            local, context = torch.randn(2, 5, 8, device="cuda")
            torch.testing.assert_close(recorded(local, context), layer(local + context))


def test_training_runs_on_a_gpu_and_its_model_predicts(tmp_path: Path) -> None:
    write_discs(tmp_path)
    recipe = recipe_for(tmp_path, "train.device=cuda", "train.precision=bf16", "train.workers=1")
    model = train(recipe, tmp_path / "run", quiet=True)
    source, (module, card) = tmp_path / "a_dtm.tif", load_model(model)
    expected = predict_labels(source, module, card, device="cpu", precision="fp32")
    found = predict_labels(source, module, card, device="cuda", precision="fp32")
    assert (found == expected).mean() >= 0.999

