"""The components of one strip of a class map, and the edges around them.

Pixels lie in one long row, each row of the strip followed by one pixel without data, so that no neighbour is missing.
Vertex u is the corner where pixel u begins: four pixels meet there. What is rare is found in the whole strip by
comparing it with itself, shifted; all else is done for what was found.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uhrseg.geo.rings import Edges, Ints
from uhrseg.legend import NODATA

__all__ = ["Plane", "Strip", "roots", "trace"]

Plane = NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Strip:
    """Components 0..P-1 of a strip and the row above it, by their first pixel.

    `edges` on all lines between two of these rows, line by line, on a line those that run to larger columns first;
    `class_ids` (P,); `confidences` (P,): sums over the strip, without the row above; the component of each run of
    equal pixels of the row above (`first`) and of the last row (`last`), from left to right.
    """

    edges: Edges
    class_ids: Ints
    confidences: Ints
    first: Ints
    last: Ints


@dataclass(frozen=True, slots=True)
class _Pixels:
    """Pixels (N,) in one row, those left of them (N,), where the two differ, and how far away the next row is."""

    here: Plane
    left: Plane
    beside: NDArray[np.bool_]
    stride: int


@dataclass(frozen=True, slots=True)
class _Runs:
    """Runs (R,) of pixels of one wanted class next to each other in a row: where they begin and end."""

    begin: Ints
    end: Ints

    def at(self, pixels: Ints) -> Ints:
        """The run of each pixel that lies in one."""
        return np.searchsorted(self.begin, pixels, side="right") - 1


def trace(
    above: Plane, image: Plane, line: int, wanted: NDArray[np.bool_], confidence: Callable[[], Plane] | None
) -> Strip | None:
    """The wanted components of a strip (Y, X) below a row (X,), whose upper line is `line`; None when there are none.

    `wanted` (256,): the classes asked for. `confidence` reads the plane (Y, X) to sum.
    """
    pixels = _pixels(above, image)
    changes = np.flatnonzero(pixels.beside)
    runs = _Runs(changes[wanted[pixels.here[changes]]], changes[wanted[pixels.left[changes]]])
    if not len(runs.begin):
        return None
    root = roots(len(runs.begin), *_contacts(pixels, runs))
    is_root = root == np.arange(len(root))
    component = (is_root.cumsum() - 1)[root]
    first, last = np.searchsorted(runs.begin, [pixels.stride, len(pixels.here) - pixels.stride])
    sums = np.zeros(len(root), np.int64)
    if confidence is not None and first < len(root):
        sums[first:] = _sums(confidence(), runs.begin[first:], runs.end[first:])
    return Strip(
        edges=_edges(pixels, runs, component, line, wanted),
        class_ids=pixels.here[runs.begin[is_root]].astype(np.int64),
        confidences=np.bincount(component, sums).astype(np.int64),  # float64 inside: exact below 2^53
        first=component[:first],
        last=component[last:],
    )


def roots(count: int, left: Ints, right: Ints) -> Ints:
    """For each of `count` nodes the smallest node connected with it by the pairs `left`, `right` (N,)."""
    root = np.arange(count)
    while len(left):
        np.minimum.at(root, np.maximum(left, right), np.minimum(left, right))
        while not np.array_equal(root, further := root[root]):
            root = further
        left, right = root[left], root[right]
        apart = left != right
        left, right = left[apart], right[apart]
    return root


def _pixels(above: Plane, image: Plane) -> _Pixels:
    rows, columns = image.shape
    pixels = np.full((rows + 1) * (columns + 1) + 1, NODATA, np.uint8)
    grid = pixels[1:].reshape(rows + 1, columns + 1)
    grid[0, :-1], grid[1:, :-1] = above, image
    here, left = pixels[1:], pixels[:-1]
    return _Pixels(here, left, here != left, columns + 1)


def _contacts(pixels: _Pixels, runs: _Runs) -> tuple[Ints, Ints]:
    """The runs of one class above and below each other: where they overlap, one of them begins."""
    here, stride = pixels.here, pixels.stride
    second, last = np.searchsorted(runs.begin, [stride, len(here) - stride])  # first run of these rows
    lower = runs.begin[second:]
    goes_up = here[lower] == here[lower - stride]
    under = runs.begin[:last] + stride
    goes_down = (here[under] == here[under - stride]) & ~pixels.beside[under]  # else it was found going up
    above = np.concatenate([runs.at(lower[goes_up] - stride), np.flatnonzero(goes_down)])
    below = np.concatenate([np.flatnonzero(goes_up) + second, runs.at(under[goes_down])])
    return above, below


def _edges(pixels: _Pixels, runs: _Runs, component: Ints, line: int, wanted: NDArray[np.bool_]) -> Edges:
    """Edges (E, 4) between the rows of a strip, as in `Strip`."""
    stride = pixels.stride
    corner = _corners(pixels)
    nw, n = pixels.left[corner - stride], pixels.here[corner - stride]
    w, here = pixels.left[corner], pixels.here[corner]
    # An edge goes on past a corner when the pixels on its own side are equal there, and those beyond it are others.
    lower_begin = corner[wanted[here] & (here != n) & ((here != w) | (w == nw))]
    lower_end = corner[wanted[w] & (w != nw) & ((here != w) | (here == n))]
    upper_end = corner[wanted[n] & (n != here) & ((n != nw) | (nw == w))]
    upper_begin = corner[wanted[nw] & (nw != w) & ((n != nw) | (n == here))]
    begin, end = np.concatenate([lower_begin, upper_begin]), np.concatenate([lower_end, upper_end])
    run = runs.at(np.concatenate([lower_begin, upper_end - stride]))
    row = begin // stride
    place = begin + row * stride  # of a vertex among those of its line, twice
    place[len(lower_begin) :] += stride
    order = np.argsort(place, kind="stable")  # merges two sorted parts
    edges = np.empty((len(order), 4), np.int32)
    edges[:, 0] = component[run]
    edges[:, 1] = row + (line - 1)
    edges[:, 2] = begin - row * stride
    edges[:, 3] = end - row * stride
    return edges.take(order, axis=0)  # rows are taken many times faster than indexed


def _corners(pixels: _Pixels) -> Ints:
    """Vertices below the first row where a vertical and a horizontal boundary between unequal pixels may meet."""
    here, beside, stride = pixels.here, pixels.beside, pixels.stride
    across = here[stride:] != here[:-stride]
    meeting = across.copy()
    meeting[1:] |= across[:-1]
    meeting &= beside[stride:] | beside[:-stride]
    return np.flatnonzero(meeting) + stride


def _sums(plane: Plane, begin: Ints, end: Ints) -> Ints:
    """Sums of the plane (Y, X) over runs of pixels, which are counted with the row above the strip."""
    columns = plane.shape[1]
    table = np.zeros(plane.size + 1, np.uint32)
    np.cumsum(plane, dtype=np.uint32, out=table[1:])  # overflows, and so does the difference: exact below 2^24 columns
    row = begin // (columns + 1)
    shift = row + columns  # pixels without data before the run, and the row above
    return (table[end - shift] - table[begin - shift]).astype(np.int64)
