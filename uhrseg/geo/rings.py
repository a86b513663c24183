"""Polygons on the integer pixel lattice: their edges, and the union of pieces that share parts of their edges.

Lattice polygons have horizontal and vertical edges only. With every shell counter-clockwise and every hole
clockwise, the edge that two pieces share runs once each way, so a union is: cancel, then follow the edges left.
An overlay of general geometries gives the same, but took 14 s and 1.3 GB for a component of two million corners;
this takes a tenth of either.
"""

from __future__ import annotations

import numpy as np
import shapely
from numpy.typing import NDArray

__all__ = ["Geometries", "Ints", "edges", "unite"]

Geometries = NDArray[np.object_]
Ints = NDArray[np.int64]


def edges(polygons: Geometries) -> tuple[Ints, Ints, Ints]:
    """All edges of all rings: starts and ends (E, 2) as (column, row), and the polygon (E,) each belongs to."""
    rings, polygon_of_ring = shapely.get_rings(polygons, return_index=True)
    points, ring = shapely.get_coordinates(rings, return_index=True)
    corners = points.astype(np.int64)
    same = ring[1:] == ring[:-1]
    return corners[:-1][same], corners[1:][same], polygon_of_ring[ring[1:][same]]


def unite(pieces: Geometries, group: Ints) -> Geometries:
    """The unions (G,) of the pieces (P,) of each group 0..G-1, corners only, oriented like the pieces.

    Each union must be 4-connected in pixels. Then right turns where four edges meet at a corner give simple
    rings: the two pixels there are joined elsewhere, and that path with the corner parts what lies between.
    """
    if not len(pieces):
        return np.empty(0, object)
    start, end, piece = edges(pieces)
    size = int(max(start.max(), end.max())) + 1
    owner, flat = group[piece], start[:, 1] == end[:, 1]
    h_line, h_start, h_end = _cancel(owner[flat] * size + start[flat, 1], start[flat, 0], end[flat, 0], size)
    v_line, v_start, v_end = _cancel(owner[~flat] * size + start[~flat, 0], start[~flat, 1], end[~flat, 1], size)
    v_group, column = np.divmod(v_line, size)
    v_from, v_to = ((v_group * size + row) * size + column for row in (v_start, v_end))
    h_from, h_to = h_line * size + h_start, h_line * size + h_end
    right, down = h_end > h_start, v_end > v_start
    after_h = _match(h_to, right, v_from, ~down)
    after_v = _match(v_to, down, h_from, right)
    order, ends = _cycles(after_v[after_h])
    return _assemble(h_line[order], h_start[order], h_end[order], ends, size)


def _cancel(line: Ints, start: Ints, end: Ints, size: int) -> tuple[Ints, Ints, Ints]:
    """Directed intervals on lines: opposite parts cancel, parts that continue each other merge."""
    position, where = np.unique(np.concatenate([line, line]) * size + np.concatenate([start, end]), return_inverse=True)
    step = np.bincount(where, np.repeat([1.0, -1.0], len(line)))
    changes = step != 0
    position, coverage = position[changes], step[changes].cumsum()  # coverage: the sign of the direction, or 0
    run = np.flatnonzero(coverage)
    low, high, forward = position[run], position[run + 1], coverage[run] > 0
    return low // size, np.where(forward, low, high) % size, np.where(forward, high, low) % size


def _match(arriving: Ints, arriving_side: NDArray[np.bool_], leaving: Ints, leaving_side: NDArray[np.bool_]) -> Ints:
    """For each edge that arrives at a point, the one that leaves it; of two, the one on the same side."""
    following = np.empty(len(arriving), np.int64)
    following[np.argsort(arriving * 2 + arriving_side)] = np.argsort(leaving * 2 + leaving_side)
    return following


def _cycles(successor: Ints) -> tuple[Ints, Ints]:
    """The cycles of a permutation: its elements cycle by cycle, and where each cycle ends (first: 0)."""
    follow = successor.tolist()
    seen = bytearray(len(follow))
    order: list[int] = []
    ends: list[int] = []
    for first in range(len(follow)):
        if seen[first]:
            continue
        node = first
        while not seen[node]:
            seen[node] = 1
            order.append(node)
            node = follow[node]
        ends.append(len(order))
    return np.array(order, np.int64), np.array([0, *ends], np.int64)


def _assemble(line: Ints, start: Ints, end: Ints, ends: Ints, size: int) -> Geometries:
    """Polygons from horizontal edges in the order of their rings, which end at `ends`."""
    group, row = np.divmod(line, size)
    points = np.stack([start, row, end, row], axis=1).reshape(-1, 2).astype(float)  # both corners of each edge
    ring = np.repeat(np.arange(len(ends) - 1), ends[1:] - ends[:-1])
    rings = shapely.linearrings(points, indices=np.repeat(ring, 2))
    area = np.bincount(ring, row * (start - end))  # the integral of -y dx; negative for holes
    ring_group = group[ends[1:] - 1]
    shell_first = np.lexsort((area < 0, ring_group))
    return shapely.polygons(rings[shell_first], indices=ring_group[shell_first])
