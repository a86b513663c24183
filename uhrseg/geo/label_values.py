"""What label values mean: numbers or palette colours of label rasters, by name, in class ids."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import ColorInterp

from uhrseg.errors import InputError
from uhrseg.legend import Legend

__all__ = ["IGNORED", "SKIPPED", "translated", "value_meaning"]

IGNORED = "ignore"
"""Class name that an attribute value is mapped to when its polygons shall be neither trained on nor scored."""

SKIPPED = "skip"
"""Class name that an attribute value is mapped to when its polygons shall be left out, as if they were not drawn."""


def value_meaning(
    path: Path, dataset: rasterio.DatasetReader, legend: Legend, values: Mapping[str, str]
) -> dict[int, int]:
    """Class id (or ignore) of each value that `values` names, by number or by its colour in the file's palette.

    A palette entry that repeats an earlier colour is a filler (palettes are padded with black): it is ignored.
    """
    ids = {IGNORED: legend.ignore, SKIPPED: legend.ignore} | {c.name: c.id for c in legend.classes}
    if not any(key.startswith("#") for key in values):
        words = [key for key in values if not key.isdecimal()]
        if words:
            raise InputError(f"{path} holds numbers, but data.label_values has {words[0]!r}: give numbers or '#rrggbb'")
        return {legend.ignore: legend.ignore} | {int(key): ids[name] for key, name in values.items()}
    if dataset.colorinterp[0] is not ColorInterp.palette:
        raise InputError(f"{path} has no palette, but its classes are told by colour: give labels with a colour table")
    colours = {index: "#{:02x}{:02x}{:02x}".format(*rgb[:3]) for index, rgb in sorted(dataset.colormap(1).items())}
    first: dict[str, int] = {}
    for index, colour in colours.items():
        first.setdefault(colour, index)
    return {
        index: ids[values[colour]] if first[colour] == index else legend.ignore
        for index, colour in colours.items()
        if colour in values
    }


def translated(path: Path, found: NDArray[np.generic], meaning: Mapping[int, int]) -> NDArray[np.uint8]:
    """`found` in class ids; `InputError` for a value without meaning."""
    present, inverse = np.unique(found, return_inverse=True)
    for value in present.tolist():
        if value not in meaning:
            raise InputError(
                f"{path} holds the value {value:g}, which data.label_values does not name: correct the labels, or map "
                "it to a class or to 'ignore'"
            )
    return np.array([meaning[value] for value in present.tolist()], np.uint8)[inverse]
