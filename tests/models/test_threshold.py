"""The per-pixel classifier whose answer is known."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from uhrseg.errors import InputError
from uhrseg.models import build, load_weights, save_weights


def test_class_is_the_number_of_thresholds_reached() -> None:
    model = build("threshold", bands=2, classes=3, thresholds=[0.0, 10.0]).eval()
    image = torch.tensor([[-1.0, 0.0, 9.9, 10.0, 11.0, float("inf")]]).expand(1, 2, 3, 6)
    labels = model(image).logits.argmax(1)
    assert labels[0, 0].tolist() == [0, 1, 1, 2, 2, 2]
    assert model(image).logits.shape == (1, 3, 3, 6)


def test_context_scale_reads_the_centre_of_the_context() -> None:
    model = build("threshold", bands=1, classes=2, thresholds=[0.5], scale="context").eval()
    local, context = torch.zeros(1, 1, 8, 8), torch.zeros(1, 1, 8, 8)
    context[0, 0, 3, 4] = 1.0  # upper right pixel of the centre crop (3..4), 4 x 4 pixels of the local window
    labels = model(local, context).logits.argmax(1)[0]
    expected = torch.zeros(8, 8, dtype=torch.int64)
    expected[:4, 4:] = 1
    assert torch.equal(labels, expected)
    with pytest.raises(InputError, match="context window"):
        model(local)


def test_context_logits_on_request() -> None:
    model = build("threshold", bands=1, classes=2, thresholds=[0.5]).eval()
    image = torch.rand(2, 1, 8, 8)
    assert model(image, image).context_logits is None
    assert torch.equal(model(image, image, with_context_logits=True).context_logits, model(image).logits)


def test_its_empty_weights_save_and_load(tmp_path: Path) -> None:
    model = build("threshold", bands=1, classes=2, thresholds=[0.5])
    load_weights(model, save_weights(model, tmp_path / "model.safetensors", half=True))
    assert not model.state_dict()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"thresholds": [1.0]}, "give 2 rising numbers for 3 classes"),
        ({"thresholds": [2.0, 1.0]}, "rising"),
        ({"thresholds": [1.0, 2.0], "scale": "global"}, "'local' or 'context'"),
        ({"threshold": [1.0, 2.0]}, "did you mean 'thresholds'"),
    ],
)
def test_mistakes_are_named(options: dict, words: str) -> None:
    with pytest.raises(InputError, match=words):
        build("threshold", bands=1, classes=3, **options)
