"""The part of a scene that is asked for: a rectangle of its pixels, and polygons that a pixel's centre must lie in."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pyogrio
import shapely
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rasterio.features import geometry_mask

from uhrseg.errors import InputError
from uhrseg.geo.labels import geometry_layer
from uhrseg.geo.plan import Chunk, shifted

__all__ = ["Area"]

_ROUNDING = 1e-6  # pixels: bounds on a pixel's edge do not take the next pixel


@dataclass(frozen=True)
class Area:
    """`rows` and `cols` of the scene `scene`; `shapes`, polygons in its CRS, or None for all of the rectangle.

    The lattice of windows, the coarse grid and the means stay those of the whole scene, so that a part has the labels
    that the whole would have there. Build it with `Area.of`.
    """

    scene: GeoBox
    rows: slice
    cols: slice
    shapes: tuple[Any, ...] | None = None

    @classmethod
    def of(cls, scene: GeoBox, bounds: Sequence[float] | None = None, aoi: str | Path | None = None) -> Area:
        """The pixels of `scene` that touch `bounds` (left, bottom, right, top in its CRS) and lie in polygons of `aoi`.

        Raises `InputError` for bounds that are none, for an area outside the scene, and for an `aoi` that is no file of
        polygons or whose CRS cannot be brought to the scene's.
        """
        height, width = scene.shape
        area = cls(scene, slice(0, height), slice(0, width))
        if bounds is not None:
            area = area._cut(_rectangle(scene, bounds), f"bounds {','.join(f'{b:g}' for b in bounds)}")
        if aoi is None:
            return area
        shapes = _polygons(Path(aoi), scene)
        outline = shapely.union_all([shapely.box(*s.bounds) for s in shapes])
        cut = area._cut(_pixels(scene, shapely.get_coordinates(outline)), str(aoi))
        cut = cls(scene, cut.rows, cut.cols, shapes)
        if not any(cut.touches(chunk) for chunk in cut.pieces(4096)):
            raise InputError(f"{aoi} holds no pixel's centre of the scene: are both of the same place?")
        return cut

    @property
    def geobox(self) -> GeoBox:
        """Grid of the part."""
        return shifted(self.scene, self.rows.start, self.cols.start, self.shape)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.rows.stop - self.rows.start, self.cols.stop - self.cols.start

    @property
    def is_whole(self) -> bool:
        """Whether it is all of the scene."""
        return self.shapes is None and self.shape == self.scene.shape

    @property
    def key(self) -> str:
        """What tells this part from another one."""
        shapes = b"".join(shapely.to_wkb(s) for s in self.shapes or ())
        name = f"rows {self.rows.start} to {self.rows.stop}, columns {self.cols.start} to {self.cols.stop}"
        return name if self.shapes is None else f"{name}, polygons {hashlib.sha256(shapes).hexdigest()[:12]}"

    def pieces(self, side: int) -> list[Chunk]:
        """The rectangle cut into squares of `side` pixels, row by row; the last ones may be smaller."""
        return [
            Chunk(slice(y, min(y + side, self.rows.stop)), slice(x, min(x + side, self.cols.stop)))
            for y in range(self.rows.start, self.rows.stop, side)
            for x in range(self.cols.start, self.cols.stop, side)
        ]

    def touches(self, chunk: Chunk) -> bool:
        """Whether any pixel of a chunk is asked for."""
        return self.shapes is None or bool(self.mask(chunk.rows.start, chunk.cols.start, chunk.shape).any())

    def mask(self, row: int, col: int, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Which pixels (Y, X) of a box at `row`, `col` of the scene are asked for; outside the rectangle, none."""
        inside = np.zeros(shape, dtype=np.bool_)
        rows = slice(max(self.rows.start - row, 0), max(self.rows.stop - row, 0))
        cols = slice(max(self.cols.start - col, 0), max(self.cols.stop - col, 0))
        inside[rows, cols] = True
        if self.shapes is None or not inside.any():
            return inside
        box = shifted(self.scene, row, col, shape)
        outline = shapely.Polygon(
            [box.affine * p for p in ((0, 0), (shape[1], 0), (shape[1], shape[0]), (0, shape[0]))]
        )
        near = [s for s in self.shapes if s.intersects(outline)]
        if not near:
            return np.zeros(shape, dtype=np.bool_)
        return inside & geometry_mask(near, shape, box.affine, invert=True)

    def _cut(self, box: tuple[int, int, int, int], what: str) -> Area:
        top, bottom, left, right = box
        rows = slice(max(top, self.rows.start), min(bottom, self.rows.stop))
        cols = slice(max(left, self.cols.start), min(right, self.cols.stop))
        if rows.start >= rows.stop or cols.start >= cols.stop:
            west, south, east, north = self.geobox.boundingbox
            raise InputError(
                f"{what} lies outside the scene, which covers {west:.8g},{south:.8g},{east:.8g},{north:.8g} "
                "(left,bottom,right,top in its CRS)"
            )
        return Area(self.scene, rows, cols)


def _rectangle(scene: GeoBox, bounds: Sequence[float]) -> tuple[int, int, int, int]:
    if len(bounds) != 4 or not all(map(math.isfinite, bounds)) or bounds[0] >= bounds[2] or bounds[1] >= bounds[3]:
        raise InputError(
            f"bounds {','.join(f'{b:g}' for b in bounds)} are no rectangle: give left,bottom,right,top in the "
            "scene's CRS"
        )
    if scene.affine.b or scene.affine.d:
        raise InputError("bounds are for grids whose rows run east, and the scene is rotated: give its part with --aoi")
    left, bottom, right, top = bounds
    return _pixels(scene, np.array([(left, bottom), (right, top)]))


def _pixels(scene: GeoBox, points: NDArray[np.float64]) -> tuple[int, int, int, int]:
    """Rows and columns (top, bottom, left, right) of the pixels around map coordinates (N, 2)."""
    cols, rows = zip(*(~scene.affine * tuple(point) for point in points), strict=True)
    low, high = math.floor, math.ceil
    return (
        low(min(rows) + _ROUNDING), high(max(rows) - _ROUNDING), low(min(cols) + _ROUNDING), high(max(cols) - _ROUNDING)
    )  # fmt: skip


def _polygons(path: Path, scene: GeoBox) -> tuple[Any, ...]:
    """Valid polygons of a vector file, in the scene's CRS."""
    if not path.exists():
        raise InputError(f"{path} does not exist: name a file of polygons, such as a GeoPackage")
    frame: geopandas.GeoDataFrame = pyogrio.read_dataframe(path, layer=geometry_layer(path), columns=[])
    if (frame.crs is None) != (scene.crs is None):
        which = path if frame.crs is None else "the scene"
        raise InputError(f"{which} has no CRS, so that {path} cannot be laid over the scene: give it one")
    if scene.crs is not None:
        frame = frame.to_crs(scene.crs.to_wkt())
    parts = shapely.get_parts(shapely.make_valid(frame.geometry.dropna().to_numpy()))
    shapes = tuple(p for p in shapely.get_parts(parts) if shapely.get_dimensions(p) == 2 and not p.is_empty)
    if not shapes:
        raise InputError(f"{path} holds no polygon: an area of interest is made of polygons")
    return shapes
