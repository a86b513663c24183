"""Image, labels and prediction side by side, from arrays."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from matplotlib import image
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from numpy.typing import NDArray

from uhrseg.legend import NODATA, Legend
from uhrseg.report.quicklook import View, background

__all__ = ["draw_panels", "save_classes", "save_image"]

_UNKNOWN = (0.93, 0.93, 0.93)
"""Colour of pixels without a label or prediction."""


def draw_panels(
    view: View, labels: NDArray[np.uint8], prediction: NDArray[np.uint8], legend: Legend, title: str, output: Path
) -> Path:
    """Draw an image and its two class maps (Y, X) into the PNG `output`."""
    height, width = labels.shape
    side = 4.2
    figure = Figure(figsize=(3 * side, side * height / width + 0.9), layout="constrained")
    pictures = (background(view), _colored(labels, legend, legend.ignore), _colored(prediction, legend, NODATA))
    for axes, picture, name in zip(figure.subplots(1, 3), pictures, ("image", "labels", "prediction"), strict=True):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title(name, fontsize=10)
        axes.set_axis_off()
    figure.suptitle(title, fontsize=11)
    entries = [Patch(facecolor=c.color, edgecolor="0.5", label=c.name) for c in legend.classes]
    unknown = Patch(facecolor=_UNKNOWN, edgecolor="0.5", label="unknown")
    figure.legend(handles=[*entries, unknown], loc="outside lower center", ncols=7, fontsize=8, frameon=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output, dpi=110)
    return output


def save_image(view: View, output: Path) -> Path:
    """A view, pixel for pixel, as the PNG `output`."""
    image.imsave(output, np.clip(background(view), 0, 1))
    return output


def save_classes(classes: NDArray[np.uint8], legend: Legend, unknown: int | None, output: Path) -> Path:
    """A class map (Y, X) in the legend's colours, pixel for pixel, as the PNG `output`; unknown None: of a model."""
    image.imsave(output, _colored(classes, legend, NODATA if unknown is None else unknown))
    return output


def _colored(classes: NDArray[np.uint8], legend: Legend, unknown: int) -> NDArray[np.float32]:
    """A class map (Y, X) in the legend's colours (Y, X, 3)."""
    table = np.full((256, 3), _UNKNOWN, np.float32)
    for c in legend.classes:
        table[c.id] = np.array(c.rgb) / 255
    table[unknown] = _UNKNOWN
    return table[classes]
