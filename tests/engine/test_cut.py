"""A file cut beforehand gets the labels of the whole, away from the cut."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.ndimage
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin

from tests.rasters import RELIEF, SMALL_SWIN, make_card, make_model, write_raster
from uhrseg.card import BandSpec
from uhrseg.engine.predict import predict_labels

RAW = (BandSpec(name="height", mean=300, std=5),)
REACH = 160  # 2.5 windows of 64 px: what 640 px are to windows of 256
RADIUS = 7  # of the wider relief: so much further does a pixel of the file matter
TOP, LEFT = 96, 144  # two and three strides of 48 px


def ground(height: int, width: int) -> NDArray[np.float32]:
    """Smooth random hills (Y, X) whose mean is about the same everywhere."""
    rng = np.random.default_rng(3)
    hills = scipy.ndimage.gaussian_filter(rng.normal(size=(height, width)), 5)
    return (300 + 5 * hills / hills.std() + rng.normal(0, 0.03, (height, width))).astype(np.float32)


def responsive(module: Any, bands: int) -> Any:
    """The network, blind to where in its token a pixel lies and fair to all classes: labels follow the ground."""
    noise = torch.from_numpy(np.random.default_rng(4).normal(size=(8, bands, 64, 64)).astype(np.float32))
    smooth = torch.nn.functional.avg_pool2d(noise, 9, 1, 4) * 5
    with torch.no_grad():
        kernel = module.head.classify.weight  # (features, classes, stride, stride)
        kernel.copy_(kernel.mean(dim=(2, 3), keepdim=True).expand_as(kernel))
        module.head.classify.bias.sub_(module(smooth, smooth).logits.mean(dim=(0, 2, 3)))
    return module


@pytest.mark.parametrize("bands", [RELIEF, RAW], ids=["relief", "raw"])
def test_a_file_cut_at_a_multiple_of_the_stride_has_the_same_labels_beyond_the_reach(
    tmp_path: Path, bands: Sequence[BandSpec]
) -> None:
    values, card = ground(400, 448), make_card(SMALL_SWIN, bands, classes=4)
    module = responsive(make_model(card), len(bands))

    def labels(top: int, left: int) -> NDArray[np.uint8]:
        transform = from_origin(5e5 + left, 5e6 - top, 1, 1)
        source = write_raster(tmp_path / f"{top}-{left}.tif", values[top:, left:], transform=transform)
        return predict_labels(source, module, card, precision="fp32", batch_size=3)

    whole = labels(0, 0)
    assert np.bincount(whole.ravel(), minlength=4).min() > 0.01 * whole.size, "the comparison needs every class"
    equal = labels(TOP, LEFT) == whole[TOP:, LEFT:]
    assert equal[REACH:, REACH:].mean() >= 0.999
    assert equal[:16].mean() < 0.99, "near the cut the network sees that something is missing"
    if bands is RELIEF:  # nothing of the scene as a whole enters: no doubt is left
        assert equal[REACH + RADIUS :, REACH + RADIUS :].all()
    assert (labels(TOP + 2, LEFT + 2) == whole[TOP + 2 :, LEFT + 2 :]).mean() < 0.99, "off the lattice all windows move"
