"""Unions on the pixel lattice are those of a general overlay, with corners only and simple rings."""

from __future__ import annotations

import numpy as np
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from rasterio.features import shapes
from scipy import ndimage

from uhrseg.geo.rings import edges, unite

masks = st.tuples(st.integers(2, 14), st.integers(2, 14)).flatmap(lambda shape: arrays(np.bool_, shape))


@settings(max_examples=150, deadline=None)
@given(mask=masks, seed=st.integers(0, 99))
def test_any_dissection_of_a_component_is_united(mask: NDArray[np.bool_], seed: int) -> None:
    """Components cut into random pieces, holes and corner contacts included, come back whole."""
    component = ndimage.label(mask)[0]
    count = int(component.max())
    piece = component * 4 + np.random.default_rng(seed).integers(0, 4, mask.shape) * mask
    found = list(shapes(piece.astype(np.int32), mask=mask, connectivity=4))
    pieces = shapely.orient_polygons(np.array([shapely.geometry.shape(g) for g, _ in found], object))
    group = np.array([int(v) // 4 - 1 for _, v in found], np.int64)
    united = unite(pieces, group)
    assert len(united) == count
    assert shapely.is_valid(united).all()
    for i, polygon in enumerate(united):
        expected = shapely.simplify(shapely.union_all(pieces[group == i]), 0)
        assert polygon.equals(expected) and polygon.area == (component == i + 1).sum()
        assert polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors)
        start, end, _ = edges(np.array([polygon], object))
        turns = (start == end).argmax(axis=1)  # which coordinate stays: 1 for horizontal edges
        assert np.bincount(turns, minlength=2).tolist() == [len(turns) // 2] * 2  # they alternate: corners only


def test_nothing_to_unite() -> None:
    assert len(unite(np.empty(0, object), np.empty(0, np.int64))) == 0


def test_edges_run_round_every_ring() -> None:
    square = shapely.Polygon([(0, 0), (4, 0), (4, 3), (0, 3)], [[(1, 1), (1, 2), (2, 2), (2, 1)]])
    start, end, owner = edges(np.array([shapely.box(7, 7, 8, 9), square], object))
    assert np.bincount(owner).tolist() == [4, 8]
    assert (np.abs(end - start).sum(axis=1)).tolist() == [2, 1, 2, 1, 4, 3, 4, 3, 1, 1, 1, 1]
