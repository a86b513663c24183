"""Polygons of a class map, measured, and their files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyproj
import shapely
from affine import Affine

from uhrseg.errors import InputError
from uhrseg.geo.measure import Measure, measure, pixel_areas, planar, to_map
from uhrseg.geo.rings import Geometries, unite
from uhrseg.geo.strips import Component, components, open_map
from uhrseg.legend import Legend

__all__ = ["PolygonRecord", "pixel_areas", "polygonise"]


@dataclass(frozen=True, slots=True)
class PolygonRecord:
    """One component in the raster's CRS; ``None`` where the raster has no CRS or no confidence was given.

    ``confidence`` is the mean of the confidence plane over the component's pixels, 0 to 1;
    ``compactness`` is 4 pi area / perimeter^2 (Polsby and Popper 1991): 1 for a disc, 0.785 for a square.
    """

    geometry: shapely.Polygon
    class_id: int
    class_name: str
    area_m2: float | None
    perimeter_m: float | None
    confidence: float | None
    compactness: float


def polygonise(
    labels_path: str | Path,
    confidence_path: str | Path | None,
    legend: Legend,
    classes: Sequence[int],
    min_area_m2: float | None = None,
    strip_rows: int | None = None,
) -> Iterator[PolygonRecord]:
    """The 4-connected components of `classes` in a class map (uint8, one band), as valid polygons.

    `confidence_path`: a plane on the same grid, uint8, value / 254 = probability (`uhrseg.geo.sink.PlanesSink`).
    Area and perimeter (of all rings) are geodesic for geographic CRS and pseudo-Mercator, else planar, in metres.
    Components under `min_area_m2` are left out. The set of polygons does not depend on `strip_rows` (rows read at
    a time; default: about 4 Mpx); memory is that of one strip and of the components that cross its last row.
    Raises `InputError` for `min_area_m2` without a CRS, `RunError` when a file cannot be read.
    """
    with open_map(labels_path) as source:
        crs = None if source.crs is None else pyproj.CRS.from_wkt(source.crs.to_wkt())
        transform = source.transform
    if min_area_m2 is not None and crs is None:
        raise InputError(
            f"{labels_path} has no CRS, so areas in square metres are unknown: leave out the minimal area, "
            "or give the raster a CRS"
        )
    measured = None if crs is None else measure(crs)
    batches = components(labels_path, confidence_path, classes, strip_rows)
    return _records(batches, legend, transform, measured, min_area_m2 or 0.0, confidence_path is not None)


def _records(
    batches: Iterator[list[Component]],
    legend: Legend,
    transform: Affine,
    in_metres: Measure | None,
    min_area_m2: float,
    with_confidence: bool,
) -> Iterator[PolygonRecord]:
    """Unite and measure complete components, a batch at a time."""
    names = legend.names
    for batch in filter(None, batches):
        polygons = _whole(batch)
        pixels = shapely.area(polygons)
        outlines = to_map(polygons, transform)
        areas, perimeters = (in_metres or planar(1.0))(outlines)
        compactness = 4 * np.pi * areas / perimeters**2
        for i in np.flatnonzero(areas >= min_area_m2):
            yield PolygonRecord(
                geometry=outlines[i],
                class_id=batch[i].class_id,
                class_name=names[batch[i].class_id],
                area_m2=float(areas[i]) if in_metres else None,
                perimeter_m=float(perimeters[i]) if in_metres else None,
                confidence=float(batch[i].confidence / pixels[i] / 254) if with_confidence else None,
                compactness=float(compactness[i]),
            )


def _whole(batch: list[Component]) -> Geometries:
    """One polygon (P,) per component, in pixel coordinates."""
    polygons = np.array([component.pieces[0] for component in batch], object)
    parted = np.array([len(component.pieces) > 1 for component in batch])
    pieces = [component.pieces for component, several in zip(batch, parted, strict=True) if several]
    group = np.repeat(np.arange(len(pieces)), [len(p) for p in pieces])
    polygons[parted] = unite(np.array([piece for p in pieces for piece in p], object), group)
    return polygons
