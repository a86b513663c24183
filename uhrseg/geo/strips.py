"""Connected components of a class map, strip by strip, never cut at a strip line.

GDAL polygonises each strip. A component that touches a strip's last row waits and takes up the pieces that
continue it in the next strip; when no piece does, it is complete. All of it happens in pixel coordinates, which
are integers, so unions and areas are exact.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.windows import Window

from uhrseg.errors import RunError
from uhrseg.geo.rings import Geometries, Ints, edges

__all__ = ["Component", "components", "open_map"]

_STRIP_PIXELS = 1 << 20
"""Pixels read at a time."""

_BATCH = 4096
"""Polygons taken from GDAL at a time: as Python numbers their corners need ten times the memory."""


@dataclass(slots=True)
class Component:
    """Pieces of one component so far, in pixel coordinates of the raster, and the sum of their confidences."""

    class_id: int
    pieces: list[shapely.Polygon]
    confidence: int

    def take(self, other: Component) -> None:
        """Become the union with another part of the same component."""
        self.pieces += other.pieces
        self.confidence += other.confidence


@dataclass(frozen=True, slots=True)
class _Strip:
    """The pieces (P,) of one strip, and which of them cover its first and last row (W,), -1 where none does."""

    pieces: Geometries
    class_ids: Ints
    confidences: Ints
    first: Ints
    last: Ints

    def component(self, index: int) -> Component:
        return Component(int(self.class_ids[index]), [self.pieces[index]], int(self.confidences[index]))


def components(
    labels_path: str | Path, confidence_path: str | Path | None, classes: Sequence[int], strip_rows: int | None = None
) -> Iterator[list[Component]]:
    """The 4-connected components of `classes` in a class map, in batches as they are completed.

    Memory is that of one strip and of the components that cross its last row. `RunError` for unreadable files.
    """
    waiting: list[Component] = []
    row: Ints | None = None  # (W,) which waiting component covers the last row read
    for strip in _strips(labels_path, confidence_path, classes, strip_rows):
        row = np.full_like(strip.first, -1) if row is None else row
        done, waiting, row = _join(waiting, row, strip)
        yield done
    yield waiting


def open_map(path: str | Path) -> rasterio.DatasetReader:
    """Open a raster for reading; `RunError` when GDAL cannot."""
    try:
        return rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise RunError(f"cannot read {path} to make polygons of it: {error}") from error


def _read(source: rasterio.DatasetReader, window: Window) -> NDArray[np.uint8]:
    try:
        return source.read(1, window=window)
    except rasterio.errors.RasterioIOError as error:
        raise RunError(f"cannot read {source.name} to make polygons of it: {error}") from error


def _strips(
    labels_path: str | Path, confidence_path: str | Path | None, classes: Sequence[int], strip_rows: int | None
) -> Iterator[_Strip]:
    """Read the class map from top to bottom and polygonise each strip."""
    wanted = np.isin(np.arange(256), classes)
    with open_map(labels_path) as labels, open_map(confidence_path or labels_path) as confidence:
        if confidence.shape != labels.shape:
            raise ValueError(f"{confidence_path} is {confidence.shape}, but {labels_path} is {labels.shape}")
        rows = strip_rows or max(1, _STRIP_PIXELS // labels.width)
        for top in range(0, labels.height, rows):
            window = Window(0, top, labels.width, min(rows, labels.height - top))
            image = _read(labels, window)
            plane = None if confidence_path is None else _read(confidence, window)
            yield _strip(image, wanted[image], plane, top)


def _strip(image: NDArray[np.uint8], mask: NDArray[np.bool_], confidence: NDArray[np.uint8] | None, top: int) -> _Strip:
    """Polygonise the masked pixels of one strip (Y, X) that starts at row `top` of the raster."""
    height, width = image.shape
    pieces, class_ids = _trace(image, mask)
    start, end, owner = edges(pieces)
    return _Strip(
        pieces=shapely.transform(pieces, lambda xy: xy + (0, top)),
        class_ids=class_ids,
        confidences=_sums(confidence, start, end, owner, len(pieces)),
        first=_cover(start, end, owner, 0, width),
        last=_cover(start, end, owner, height, width),
    )


def _trace(image: NDArray[np.uint8], mask: NDArray[np.bool_]) -> tuple[Geometries, Ints]:
    """The components (P,) of the masked pixels in (column, row), and their classes."""
    found = shapes(image, mask=mask, connectivity=4) if mask.any() else iter(())
    pieces, class_ids = [np.empty(0, object)], []
    while batch := list(islice(found, _BATCH)):
        pieces.append(_polygons([geometry["coordinates"] for geometry, _ in batch]))
        class_ids += [int(value) for _, value in batch]
    return np.concatenate(pieces), np.array(class_ids, np.int64)


def _polygons(coordinates: list[list[list[tuple[float, float]]]]) -> Geometries:
    """GeoJSON polygons as shapely ones, shells counter-clockwise in (column, row)."""
    rings = list(chain.from_iterable(coordinates))
    sizes = np.array([len(ring) for ring in rings], np.int64)
    owner = np.repeat(np.arange(len(coordinates)), [len(polygon) for polygon in coordinates])
    points = np.fromiter(chain.from_iterable(chain.from_iterable(rings)), float, 2 * int(sizes.sum()))
    linear = shapely.linearrings(points.reshape(-1, 2), indices=np.repeat(np.arange(len(rings)), sizes))
    return shapely.orient_polygons(shapely.polygons(linear, indices=owner))


def _sums(plane: NDArray[np.uint8] | None, start: Ints, end: Ints, owner: Ints, count: int) -> Ints:
    """Sum of the plane (Y, X) over each polygon (P,).

    By Green's theorem on the summed-area table (Crow 1984): going round a polygon, each vertical edge adds the
    sum of all pixels to its left, with the sign of its direction.
    """
    if plane is None:
        return np.zeros(count, np.int64)
    kind = np.uint32 if plane.size <= 1 << 24 else np.uint64  # 2^24 values of 8 bits sum to less than 2^32
    table = np.zeros((plane.shape[0] + 1, plane.shape[1] + 1), kind)
    np.cumsum(plane, axis=1, dtype=kind, out=table[1:, 1:])
    np.cumsum(table, axis=0, out=table)
    below, above = (table[p[:, 1], p[:, 0]].astype(np.int64) for p in (end, start))
    left_of_edge = np.where(start[:, 0] == end[:, 0], below - above, 0)
    return np.bincount(owner, left_of_edge, count).astype(np.int64)  # float64 inside: exact below 2^53


def _cover(start: Ints, end: Ints, owner: Ints, line: int, width: int) -> Ints:
    """The polygon (W,) behind each pixel of a strip's first or last row, whose edges lie on `line`; -1: none."""
    on_line = (start[:, 1] == line) & (end[:, 1] == line)
    left = np.minimum(start[on_line, 0], end[on_line, 0])
    right = np.maximum(start[on_line, 0], end[on_line, 0])
    steps = np.zeros(width + 1, np.int64)
    np.add.at(steps, left, owner[on_line] + 1)
    np.add.at(steps, right, -owner[on_line] - 1)
    return steps[:-1].cumsum() - 1


def _join(waiting: list[Component], row: Ints, strip: _Strip) -> tuple[list[Component], list[Component], Ints]:
    """Continue the waiting components with a strip: those complete, those waiting now, and the new last row."""
    pairs = _neighbours(waiting, row, strip)
    covered = strip.last >= 0
    on_edge = np.union1d(pairs[:, 1], strip.last[covered])
    inside = np.setdiff1d(np.arange(len(strip.pieces)), on_edge, assume_unique=True)
    nodes = waiting + [strip.component(i) for i in on_edge]
    root = _roots(len(nodes), pairs[:, 0], len(waiting) + np.searchsorted(on_edge, pairs[:, 1]))
    for node, target in enumerate(root):
        if node != target:
            nodes[target].take(nodes[node])
    still, position = np.unique(root[len(waiting) + np.searchsorted(on_edge, strip.last[covered])], return_inverse=True)
    done = [strip.component(i) for i in inside] + [nodes[i] for i in np.setdiff1d(root, still)]
    new_row = np.full_like(row, -1)
    new_row[covered] = position
    return done, [nodes[i] for i in still], new_row


def _neighbours(waiting: list[Component], row: Ints, strip: _Strip) -> Ints:
    """Pairs (N, 2) of a waiting component and a piece of its class right below it."""
    both = (row >= 0) & (strip.first >= 0)
    pairs = np.unique(np.stack([row[both], strip.first[both]], axis=1), axis=0)
    above = np.array([component.class_id for component in waiting], np.int64)
    return pairs[above[pairs[:, 0]] == strip.class_ids[pairs[:, 1]]]


def _roots(count: int, left: Ints, right: Ints) -> Ints:
    """For each of `count` nodes the smallest node connected with it by the pairs (union-find)."""
    parent = list(range(count))

    def find(node: int) -> int:
        while parent[node] != node:
            parent[node] = parent[parent[node]]
            node = parent[node]
        return node

    for a, b in zip(left.tolist(), right.tolist(), strict=True):
        low, high = sorted((find(a), find(b)))
        parent[high] = low
    return np.array([find(node) for node in range(count)], np.int64)
