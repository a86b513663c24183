"""Connected components of a class map, strip by strip, never cut at a strip line.

Each strip is traced together with the row above it, so that edges on the line between the two are whole. All that is
kept of a component are its horizontal edges (`uhrseg.geo.rings`); those of components that have pixels in the last row
read wait for the rest. Everything happens in pixel coordinates, which are integers, and is exact.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.windows import Window

from uhrseg.errors import RunError
from uhrseg.geo.rings import Edges, Ints, order_of
from uhrseg.geo.trace import Plane, Strip, roots, trace
from uhrseg.legend import NODATA

__all__ = ["Components", "components", "open_map"]

_STRIP_PIXELS = 1 << 20
"""Pixels traced at a time."""

_READ_PIXELS = 1 << 26
"""Rows of blocks with more pixels than this are not read as a whole."""

_BATCH = 1 << 18
"""Edges after which complete components are looked for; they are handed out by about as many."""


@dataclass(frozen=True, slots=True)
class Components:
    """Complete components 0..P-1, by their last row, then by their first pixel, whatever the strips.

    `edges` in the order that `outlines` asks for; `confidences` (P,) are sums over the pixels.
    """

    edges: Edges
    class_ids: Ints
    confidences: Ints

    def parts(self) -> Iterator[Components]:
        """The same a few at a time: at most `_BATCH` edges, or one component. Once only: `edges` are numbered anew."""
        ends = np.searchsorted(self.edges[:, 0], np.arange(len(self.class_ids) + 1))
        first = 0
        while first < len(self.class_ids):
            last = max(first + 1, int(np.searchsorted(ends, ends[first] + _BATCH, side="right")) - 1)
            edges = self.edges[ends[first] : ends[last]]
            edges[:, 0] -= first  # in place, since there is one polygon for which a copy is large
            yield Components(edges, self.class_ids[first:last], self.confidences[first:last])
            first = last


def components(
    labels_path: str | Path, confidence_path: str | Path | None, classes: Sequence[int], strip_rows: int | None = None
) -> Iterator[Components]:
    """The 4-connected components of `classes` in a class map, in batches as they are completed.

    Memory is that of a row of the file's blocks, of a batch, and of the edges of the components that have pixels in
    the last row read. `RunError` for unreadable files.
    """
    wanted = np.isin(np.arange(256), classes)
    with ExitStack() as files:
        source = files.enter_context(open_map(labels_path))
        strip, block = _heights(source, strip_rows)
        labels, confidence = _Reader(source, block), None
        if confidence_path is not None:
            plane = files.enter_context(open_map(confidence_path))
            if plane.shape != source.shape:
                raise ValueError(f"{confidence_path} is {plane.shape}, but {labels_path} is {source.shape}")
            confidence = _Reader(plane, block)
        blank = np.full((1, source.width), NODATA, np.uint8)
        above, row, pool = blank[0], np.empty(0, np.int64), _Pool()
        for top, bottom in _strips(source.height, strip, block):
            image = labels.rows(top, bottom)
            read = None if confidence is None else partial(confidence.rows, top, bottom)
            found = trace(above, image, top, wanted, read)
            above, row = image[-1].copy(), pool.add(found, row)
            if pool.is_full:
                done, row = pool.settle(row)
                yield from done.parts()
        pool.add(trace(above, blank, source.height, wanted, None), row)  # the edges below the last row
        yield from pool.settle(row[:0])[0].parts()


def open_map(path: str | Path) -> rasterio.DatasetReader:
    """Open a raster of bytes for reading; `RunError` when GDAL cannot."""
    try:
        source = rasterio.open(path)
    except rasterio.errors.RasterioIOError as error:
        raise RunError(f"cannot read {path} to make polygons of it: {error}") from error
    if source.dtypes[0] != "uint8":
        raise ValueError(f"{path} holds {source.dtypes[0]}, not bytes")
    return source


class _Pool:
    """Pieces of components as they were traced, numbered one after the other, until the last row has come."""

    def __init__(self) -> None:
        self._edges: deque[Edges] = deque()  # of the pieces, line by line
        self._waiting = 0  # edges looked at before
        self._start(np.empty(0, np.int64), np.empty(0, np.int64))

    def _start(self, class_ids: Ints, confidences: Ints) -> None:
        """Begin with pieces 0..P-1, none of which touches another."""
        self._count, self._fresh = len(class_ids), 0
        self._class_ids, self._confidences = [class_ids], [confidences]
        self._contacts = [(class_ids[:0], class_ids[:0])]  # pairs of pieces of one component

    @property
    def is_full(self) -> bool:
        """Whether to `settle`: not after each strip, since that goes through all edges, of waiting components too."""
        return self._fresh >= max(_BATCH, self._waiting // 2)

    def add(self, strip: Strip | None, row: Ints) -> Ints:
        """Take a strip below a row whose runs (R,) belong to the pieces `row`; returns the same of its own last row."""
        if strip is None:
            return row[:0]
        edges = strip.edges
        edges[:, 0] += self._count
        self._edges.append(edges)
        self._class_ids.append(strip.class_ids)
        self._confidences.append(strip.confidences)
        self._contacts.append((row, strip.first + self._count))
        last = strip.last + self._count
        self._count += len(strip.class_ids)
        self._fresh += len(edges)
        return last

    def settle(self, row: Ints) -> tuple[Components, Ints]:
        """Unite pieces and take out the complete components, all but those in `row` (R,); `row` with new numbers."""
        root = roots(self._count, *map(np.concatenate, zip(*self._contacts, strict=True)))
        is_root = root == np.arange(self._count)
        component = (is_root.cumsum() - 1)[root]  # (pieces,) 0..P-1, by the first pixel
        class_ids = np.concatenate(self._class_ids)[is_root]
        confidences = np.bincount(component, np.concatenate(self._confidences)).astype(np.int64)
        waits = np.zeros(len(class_ids), bool)
        waits[component[row]] = True
        edges = self._split(component, waits)
        last_line = np.zeros(len(class_ids), np.int32)
        last_line[edges[:, 0]] = edges[:, 1]  # the last one stays
        done = np.flatnonzero(~waits)
        done = done[np.argsort(last_line[done], kind="stable")]
        self._start(class_ids[waits], confidences[waits])
        numbers = np.empty(len(class_ids), np.int64)
        numbers[done] = np.arange(len(done))
        edges[:, 0] = numbers[edges[:, 0]]
        edges = edges.take(order_of(edges[:, 0]), axis=0)
        return Components(edges, class_ids[done], confidences[done]), (waits.cumsum() - 1)[component[row]]

    def _split(self, component: Ints, waits: NDArray[np.bool_]) -> Edges:
        """The edges of the components that do not wait; those that wait are kept and numbered anew."""
        done = [np.empty((0, 4), np.int32)]
        numbers, self._waiting = waits.cumsum() - 1, 0
        for _ in range(len(self._edges)):
            edges = self._edges.popleft()  # one by one, so that there are never two copies of all
            edges[:, 0] = component[edges[:, 0]]
            stays = waits[edges[:, 0]]
            done.append(edges.compress(~stays, axis=0))
            if stays.any():
                edges = edges.compress(stays, axis=0)
                edges[:, 0] = numbers[edges[:, 0]]
                self._edges.append(edges)
                self._waiting += len(edges)
        return np.concatenate(done)


def _heights(source: rasterio.DatasetReader, strip_rows: int | None) -> tuple[int, int]:
    """Rows traced and rows read at a time: whole rows of blocks, since GDAL's cache may be too small to keep these."""
    strip = strip_rows or max(1, _STRIP_PIXELS // source.width)
    rows = source.block_shapes[0][0]
    block = -(-strip // rows) * rows
    return strip, min(block if block * source.width <= _READ_PIXELS else strip, source.height)


def _strips(height: int, strip: int, block: int) -> Iterator[tuple[int, int]]:
    """The rows of each strip; none passes the end of a block."""
    for first in range(0, height, block):
        end = min(first + block, height)
        yield from ((top, min(top + strip, end)) for top in range(first, end, strip))


class _Reader:
    """Rows of a raster, read so many at a time."""

    def __init__(self, source: rasterio.DatasetReader, block: int) -> None:
        self._source = source
        self._first = -1
        self._pixels = np.empty((block, source.width), np.uint8)

    def rows(self, top: int, bottom: int) -> Plane:
        """Pixels (Y, X) of rows of one block, valid until others are asked for; `RunError` if they cannot be read."""
        block = len(self._pixels)
        first = top // block * block
        if first != self._first:
            window = Window(0, first, self._source.width, min(block, self._source.height - first))
            try:
                self._source.read(1, window=window, out=self._pixels[: window.height])
            except rasterio.errors.RasterioIOError as error:
                raise RunError(f"cannot read {self._source.name} to make polygons of it: {error}") from error
            self._first = first
        return self._pixels[top - first : bottom - first]
