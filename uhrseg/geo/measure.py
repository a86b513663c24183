"""Areas in square metres and perimeters in metres, whatever the CRS."""

from __future__ import annotations

from collections.abc import Callable
from math import degrees

import numpy as np
import pyproj
import shapely
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

__all__ = ["Measure", "measure", "pixel_areas", "planar", "to_map"]

Measure = Callable[[NDArray[np.object_]], tuple[NDArray[np.float64], NDArray[np.float64]]]
"""Polygons (P,), shells and holes turning opposite ways, to their areas (P,) and the lengths (P,) of all rings."""


def pixel_areas(geobox: GeoBox) -> NDArray[np.float64] | None:
    """Square metres of one pixel in each row (Y,), None without a CRS.

    Geodesic on the CRS's ellipsoid (Karney 2013, by PROJ) for geographic CRS and for pseudo-Mercator, taken at
    the middle column; else planar: the pixel's area times the square of the CRS's unit in metres.
    """
    if geobox.crs is None:
        return None
    column, rows = geobox.width // 2, np.arange(geobox.height)
    pixels = shapely.box(column, rows, column + 1, rows + 1)
    on_map = shapely.transform(pixels, lambda corners: to_map(corners, geobox.transform))
    return measure(geobox.crs.proj)(on_map)[0]


def to_map(corners: NDArray[np.int32] | NDArray[np.float64], transform: Affine) -> NDArray[np.float64]:
    """Pixel corners (N, 2) as (column, row) to map coordinates.

    Not by a product of matrices, which may round a corner otherwise in one polygon than in its neighbour.
    """
    column, row = corners.T
    mapped = np.empty(corners.shape)
    mapped[:, 0] = transform.a * column + transform.b * row + transform.c
    mapped[:, 1] = transform.d * column + transform.e * row + transform.f
    return mapped


def measure(crs: pyproj.CRS) -> Measure:
    """How to measure in a CRS: on the ellipsoid if it is geographic or pseudo-Mercator, else on its plane."""
    operation = crs.coordinate_operation
    if crs.is_geographic or (operation is not None and "Pseudo Mercator" in operation.method_name):
        return _geodesic(crs)
    return planar(crs.axis_info[0].unit_conversion_factor)


def planar(metres: float) -> Measure:
    """On the plane of a CRS whose unit is so many metres."""
    return lambda polygons: (shapely.area(polygons) * metres**2, shapely.length(polygons) * metres)


def _geodesic(crs: pyproj.CRS) -> Measure:
    """On the ellipsoid of a CRS."""
    geographic, ellipsoid = crs.geodetic_crs, crs.get_geod()
    assert geographic is not None and ellipsoid is not None  # `measure` asks for CRS of the Earth only
    to_lonlat = pyproj.Transformer.from_crs(crs, geographic, always_xy=True)
    unit = degrees(geographic.axis_info[0].unit_conversion_factor)  # radians per unit of angle

    def geodesic(polygons: NDArray[np.object_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        sums = np.zeros((2, len(polygons)))
        rings, owner = shapely.get_rings(polygons, return_index=True)
        ends = np.cumsum(shapely.get_num_coordinates(rings))[:-1]
        lon, lat = (np.split(part * unit, ends) for part in to_lonlat.transform(*shapely.get_coordinates(rings).T))
        for polygon, ring_lon, ring_lat in zip(owner, lon, lat, strict=True):
            sums[:, polygon] += ellipsoid.polygon_area_perimeter(ring_lon, ring_lat)
        return np.abs(sums[0]), sums[1]  # a hole turns the other way than its shell: its area is subtracted

    return geodesic
