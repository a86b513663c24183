"""Pictures of a row: a part of a scene, its labels, what was found there, and where the relays look."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.benchmark.rows import slug
from uhrseg.card import ModelCard
from uhrseg.data.datasets import LabelledRaster
from uhrseg.engine.attention import draw_relays
from uhrseg.engine.validate import feature_part, view_of
from uhrseg.errors import InputError
from uhrseg.report.panels import save_classes, save_image

__all__ = ["draw_attention", "draw_scene"]

_SIDE = 384
"""Side of what is drawn, in pixels of the scene."""


def draw_scene(
    source: LabelledRaster,
    labels: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    box: GeoBox,
    card: ModelCard,
    folder: Path,
    name: str,
) -> dict[str, str]:
    """PNGs around a feature, pixel for pixel: {'image' | 'labels' | 'prediction': file name in `folder`}."""
    rows, cols = feature_part(labels, card.legend, _SIDE)
    folder.mkdir(parents=True, exist_ok=True)
    files = {kind: f"{slug(name)}-{kind}.png" for kind in ("image", "labels", "prediction")}
    save_image(view_of(source, box, rows, cols), folder / files["image"])
    save_classes(labels[rows, cols], card.legend, card.legend.ignore, folder / files["labels"])
    save_classes(prediction[rows, cols], card.legend, None, folder / files["prediction"])
    return files


def draw_attention(
    model: str | Path, source: LabelledRaster, labels: NDArray[np.uint8], box: GeoBox, card: ModelCard, folder: Path,
    name: str,
) -> dict[str, str]:  # fmt: skip
    """A PNG of where each relay looks from the same place: {'attention': file name}; {} for a model that has none."""
    if len(source.rasters) > 1 or card.architecture.get("strategy") not in ("relays", "registers"):
        return {}
    rows, cols = feature_part(labels, card.legend, _SIDE)
    y, x = (rows.start + rows.stop) / 2, (cols.start + cols.stop) / 2
    (left, top), (right, bottom) = box.transform * (x - 1, y - 1), box.transform * (x + 1, y + 1)
    bounds = (min(left, right), min(top, bottom), max(left, right), max(top, bottom))
    png = f"{slug(name)}-attention.png"
    try:
        draw_relays(model, source.raster, folder / png, bounds=bounds)
    except InputError as error:
        warnings.warn(f"{name}: no attention is drawn: {error}", stacklevel=2)
        return {}
    return {"attention": png}
