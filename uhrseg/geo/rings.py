"""Polygons on the integer pixel lattice, made of their horizontal edges.

An edge runs along a line between two rows of pixels, from one corner of its component to the next. It runs to larger
columns where the component lies below the line (on larger rows), to smaller ones where it lies above. So shells are
counter-clockwise in (column, row) and holes clockwise. The vertical edges need not be stored: they join the corners of
a component in each column by twos, from the first line to the last.
"""

from __future__ import annotations

import numpy as np
import shapely
from affine import Affine
from numpy.typing import NDArray

from uhrseg.geo.measure import to_map

__all__ = ["Edges", "Geometries", "Ints", "order_of", "outlines", "pixel_counts"]

Geometries = NDArray[np.object_]
Ints = NDArray[np.int64]

Edges = NDArray[np.int32]
"""Horizontal edges (E, 4): component, line, column where the edge begins, column where it ends."""


def outlines(edges: Edges, transform: Affine) -> Geometries:
    """One polygon (P,) for each component 0..P-1, corners only, its (column, row) put through `transform`.

    `edges`: component by component, line by line, on a line those that run to larger columns first. A component must
    be 4-connected in pixels. Then right turns where four edges meet at a corner give simple rings: the two pixels
    there are joined elsewhere, and that path with the corner parts what lies between.
    """
    corners, offsets = _rings(edges)
    return shapely.from_ragged_array(shapely.GeometryType.POLYGON, to_map(corners, transform), offsets)


def _rings(edges: Edges) -> tuple[NDArray[np.int32], tuple[Ints, Ints]]:
    """Corners (N, 2) of all rings, first ones again at the end, where rings begin, and at which ring polygons do."""
    order, ends = _cycles(_successors(edges))
    ring = np.arange(len(ends))  # and one more
    corners = edges.take(order, axis=0)[:, [2, 1, 3, 1]].reshape(-1, 2)  # both of each edge, (column, line)
    closed = np.insert(np.arange(len(corners)), 2 * ends[1:], 2 * ends[:-1])
    # A ring begins at its first edge and rings come in the order of these: the shell is a polygon's first ring.
    component = edges[order[ends[:-1]], 0]
    polygons = np.searchsorted(component, np.arange(component.max(initial=-1) + 2))
    return corners.take(closed, axis=0), (2 * ends + ring, polygons)


def pixel_counts(edges: Edges) -> Ints:
    """Pixels (P,) of each component 0..P-1: the integral of -y dx around it."""
    component, line, begin, end = edges.T
    return np.bincount(component, line * (begin - end).astype(np.int64)).astype(np.int64)  # exact below 2^53


def order_of(keys: Ints | NDArray[np.int32]) -> Ints:
    """The stable order (N,) of integers from 0, by 16 bits at a time: those NumPy counts, others it compares."""
    assert keys.min(initial=0) >= 0, "keys overflowed"
    order = np.argsort(keys.astype(np.uint16), kind="stable")
    while (keys := keys >> 16).any():
        order = order[np.argsort(keys.astype(np.uint16)[order], kind="stable")]
    return order


def _successors(edges: Edges) -> Ints:
    """For each edge the one that follows it around its component, a vertical edge between them.

    Corner 2e is where edge e begins, 2e + 1 where it ends. By component, column and number, the corners that vertical
    edges join are neighbours, since numbers rise with the line. Where four edges of a component meet, the one that
    runs to larger columns has the lesser number and is joined with the edge above, the other with the edge below:
    these are right turns.
    """
    columns = edges[:, 2:].astype(np.int64)
    width = int(columns.max(initial=0)) + 1
    component = edges[:, :1].astype(np.int64)  # times the width it would not fit 32 bits
    corners = order_of((component * width + columns).ravel())
    upper, lower = corners[0::2], corners[1::2]
    ends_above = upper & 1 == 1
    successor = np.empty(len(edges), np.int64)
    successor[np.where(ends_above, upper, lower) >> 1] = np.where(ends_above, lower, upper) >> 1
    return successor


def _cycles(successor: Ints) -> tuple[Ints, Ints]:
    """The cycles of a permutation: its elements cycle by cycle, and where each cycle ends (first: 0).

    Cycles begin with their smallest element and come in the order of these.
    """
    elements = np.arange(len(successor))
    predecessor = np.empty_like(successor)
    predecessor[successor] = elements
    starts = np.flatnonzero((successor >= elements) & (predecessor >= elements))  # one or more in each cycle
    if len(starts) == len(elements):
        return elements, np.arange(len(elements) + 1)
    # Between two starts there is a chain. Chains form cycles again, at most half as many elements.
    chain, step, next_chain, lengths = _chains(successor, starts)
    chains, ends = _cycles(next_chain)
    chain_ends = np.concatenate([[0], lengths[chains].cumsum()])
    chain_begins = np.empty_like(lengths)
    chain_begins[chains] = chain_ends[:-1]
    order = np.empty_like(successor)
    order[chain_begins[chain] + step] = elements
    return order, chain_ends[ends]


def _chains(successor: Ints, starts: Ints) -> tuple[Ints, Ints, Ints, Ints]:
    """The chain (N,) of each element and its place in it, the chain after each chain (C,) and how long each is."""
    number = np.full(len(successor), -1)
    number[starts] = np.arange(len(starts))
    chain, step = np.empty_like(successor), np.empty_like(successor)
    following, lengths = np.empty_like(starts), np.empty_like(starts)
    walking, at = np.arange(len(starts)), starts
    length = 0
    while len(at):
        chain[at], step[at] = walking, length
        length += 1
        at = successor[at]
        arrived = number[at] >= 0
        following[walking[arrived]], lengths[walking[arrived]] = number[at[arrived]], length
        walking, at = walking[~arrived], at[~arrived]
    return chain, step, following, lengths
