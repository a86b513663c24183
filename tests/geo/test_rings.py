"""Rings made of horizontal edges are those of a general overlay, with corners only, and simple."""

from __future__ import annotations

import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy import ndimage

from uhrseg.geo.rings import Edges, Ints, _cycles, order_of, outlines, pixel_counts
from uhrseg.geo.trace import roots

masks = st.tuples(st.integers(1, 14), st.integers(1, 14)).flatmap(lambda shape: arrays(np.bool_, shape))


def edges_of(component: NDArray[np.int64]) -> Edges:
    """Edges of the components 1.. of a label image (Y, X), pixel by pixel, in the order that `outlines` asks for."""
    padded = np.pad(component, 1)
    found = []
    for label in range(1, int(component.max(initial=0)) + 1):
        inside = (padded == label).astype(np.int8)
        for line in range(component.shape[0] + 1):
            for side in (1, -1):  # below the line, above it
                differs = (inside[line + 1] - inside[line])[1:] == side
                steps = np.diff(differs.astype(np.int8), prepend=0)
                ends = zip(np.flatnonzero(steps == 1), np.flatnonzero(steps == -1), strict=True)
                found += [(label - 1, line, *(pair[::side])) for pair in ends]
    return np.array(found, np.int32).reshape(-1, 4)


@settings(max_examples=200, deadline=None)
@given(mask=masks)
def test_components_become_valid_polygons(mask: NDArray[np.bool_]) -> None:
    """Holes and places where corners touch included."""
    component, count = ndimage.label(mask)
    edges = edges_of(component)
    polygons = outlines(edges, Affine.identity())
    assert len(polygons) == count
    assert shapely.is_valid(polygons).all()
    assert pixel_counts(edges).tolist() == np.bincount(component.ravel())[1:].tolist()
    for number, polygon in enumerate(polygons, start=1):
        row, column = np.nonzero(component == number)
        pixels = shapely.union_all(shapely.box(column, row, column + 1, row + 1))
        assert polygon.equals(pixels) and polygon.area == len(row)
        assert polygon.exterior.is_ccw and not any(hole.is_ccw for hole in polygon.interiors)
        for ring in (polygon.exterior, *polygon.interiors):
            sides = np.diff(shapely.get_coordinates(ring), axis=0) != 0
            assert (sides.sum(axis=1) == 1).all() and (sides[1:] != sides[:-1]).all()  # they alternate: corners only


def test_no_edges_no_polygons() -> None:
    assert len(outlines(np.empty((0, 4), np.int32), Affine.identity())) == 0


def test_corners_go_through_the_transform() -> None:
    square = np.array([[0, 1, 2, 5], [0, 4, 5, 2]], np.int32)
    (polygon,) = outlines(square, Affine(2, 1, 100, 0, -2, 50))
    assert polygon.equals(shapely.Polygon([(105, 48), (111, 48), (114, 42), (108, 42)]))


@given(order=st.integers(0, 60).flatmap(lambda n: st.permutations(range(n))))
def test_cycles_of_a_permutation(order: list[int]) -> None:
    successor = np.array(order, np.int64)
    elements, ends = _cycles(successor)
    cycles = [elements[a:b].tolist() for a, b in zip(ends, ends[1:], strict=False)]
    assert sorted(elements.tolist()) == list(range(len(order)))
    assert all(c[(i + 1) % len(c)] == order[e] for c in cycles for i, e in enumerate(c))
    assert [c[0] for c in cycles] == sorted(min(c) for c in cycles)


@pytest.mark.parametrize("high", [1, 10, 1 << 16, 1 << 17, 1 << 50])
def test_order_is_stable(high: int) -> None:
    keys = np.random.default_rng(0).integers(0, high, 500)
    assert order_of(keys).tolist() == np.argsort(keys, kind="stable").tolist()


@given(pairs=st.lists(st.tuples(st.integers(0, 30), st.integers(0, 30))))
def test_roots_are_the_smallest_nodes(pairs: list[tuple[int, int]]) -> None:
    left, right = np.array(pairs, np.int64).reshape(-1, 2).T
    expected: Ints = np.arange(31)
    for _ in range(31):
        for a, b in pairs:
            expected[a] = expected[b] = min(expected[a], expected[b])
    assert roots(31, left, right).tolist() == expected.tolist()


def test_components_times_columns_beyond_32_bits() -> None:
    """Squares of one pixel, 300 000 of them, the last ones some 20 000 columns to the right."""
    count, first = 300_000, 0
    component = np.arange(count, dtype=np.int32)
    left = np.where(component < count // 2, first, 20_000).astype(np.int32)
    edges = np.empty((2 * count, 4), np.int32)  # the upper edge of each runs to larger columns, the lower one back
    edges[0::2] = np.stack([component, component, left, left + 1], axis=1)
    edges[1::2] = np.stack([component, component + 1, left + 1, left], axis=1)
    found = outlines(edges, Affine.identity())
    assert len(found) == count and (shapely.area(found) == 1).all()
    assert (shapely.bounds(found)[:, 0] == left).all()
