"""Polygons with fewer corners, and still without gaps between them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import geopandas
import pandas as pd
import shapely

from uhrseg.errors import InputError

__all__ = ["check_simplify", "simplified"]


def check_simplify(metres: float | None, crs: Any | None) -> None:
    """Raise `InputError` for a tolerance in metres where the CRS has none."""
    if metres is None:
        return
    if metres <= 0:
        raise InputError(f"--simplify is {metres:g}, but must be a length in metres above 0")
    if crs is None or not crs.proj.is_projected:
        raise InputError("--simplify is in metres, but the scene has no CRS in metres: warp it to one with gdalwarp")


def simplified(tables: Iterable[geopandas.GeoDataFrame], metres: float, crs: Any) -> Iterator[geopandas.GeoDataFrame]:
    """The same polygons with corners taken out whose triangle is smaller than `metres` squared.

    Visvalingam and Whyatt (1993) on the whole coverage: a line between two polygons stays one line
    (`shapely.coverage_simplify`), so all polygons are held in memory. The measures stay those of the pixels.
    """
    kept = list(tables)
    if not kept:
        return
    whole = pd.concat(kept, ignore_index=True)
    tolerance = metres / crs.proj.axis_info[0].unit_conversion_factor
    yield whole.set_geometry(shapely.coverage_simplify(whole.geometry.array, tolerance), crs=whole.crs)
