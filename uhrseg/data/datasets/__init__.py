"""Where each kind of data set keeps its rasters and labels. Adding one: a file here and a line in `DATASETS`."""

from __future__ import annotations

from collections.abc import Callable

from uhrseg.data.datasets import folder
from uhrseg.data.datasets.folder import LabelledRaster, Split
from uhrseg.recipe import DataTable

__all__ = ["DATASETS", "LabelledRaster", "Split", "find_rasters"]

DATASETS: dict[str, Callable[[DataTable, Split], list[LabelledRaster]]] = {
    "folder": folder.find,
}


def find_rasters(data: DataTable, split: Split) -> list[LabelledRaster]:
    """The rasters of a split and their labels, in name order; raises `InputError` for what is missing."""
    return DATASETS[data.dataset](data, split)
