"""Where data sets keep their rasters and labels; the published ones are `uhrseg.presets` in the words of a recipe."""

from __future__ import annotations

from uhrseg.data.datasets.folder import LabelledRaster, Split
from uhrseg.data.datasets.folder import find as find_rasters

__all__ = ["LabelledRaster", "Split", "find_rasters"]
