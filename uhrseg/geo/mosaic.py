"""Tiles on one grid seen as one raster, without copying: a VRT (https://gdal.org/en/stable/drivers/raster/vrt.html)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from odc.geo.geobox import GeoBox

from uhrseg.geo.sink import PROBABILITY_SCALE
from uhrseg.geo.style import legend_tags
from uhrseg.legend import NODATA, Legend

__all__ = ["Tile", "write_mosaic"]

_BLOCK = "512"


@dataclass(frozen=True)
class Tile:
    """A file, and where (row, col) it lies on the mosaic's grid."""

    path: Path
    row: int
    col: int
    shape: tuple[int, int]


def write_mosaic(
    path: Path, geobox: GeoBox, tiles: Sequence[Tile], tags: dict[str, str], bands: Sequence[str] | Legend,
    levels: Sequence[Path] = (),
) -> None:  # fmt: skip
    """Write a VRT of uint8 tiles, nodata 255 elsewhere. `bands`: the legend of a class map, or the planes' names.

    `levels`: files that are its overviews, finest first.
    """
    root = Element("VRTDataset", rasterXSize=str(geobox.width), rasterYSize=str(geobox.height))
    if geobox.crs is not None:
        SubElement(root, "SRS").text = geobox.crs.to_wkt()
    a, b, c, d, e, f = tuple(geobox.affine)[:6]
    SubElement(root, "GeoTransform").text = ", ".join(repr(float(v)) for v in (c, a, b, f, d, e))
    metadata = SubElement(root, "Metadata")
    for key, value in {**tags, **(legend_tags(bands) if isinstance(bands, Legend) else {})}.items():
        SubElement(metadata, "MDI", key=key).text = value
    for number, name in enumerate([None] if isinstance(bands, Legend) else bands, start=1):
        band = SubElement(
            root, "VRTRasterBand", dataType="Byte", band=str(number), blockXSize=_BLOCK, blockYSize=_BLOCK
        )
        _describe(band, bands if isinstance(bands, Legend) else str(name))
        for level in levels:
            overview = SubElement(band, "Overview")
            SubElement(overview, "SourceFilename", relativeToVRT="1").text = os.path.relpath(level, path.parent)
            SubElement(overview, "SourceBand").text = str(number)
        for tile in tiles:
            _source(band, tile, number, path.parent)
    ElementTree.ElementTree(root).write(path, encoding="utf-8")


def _describe(band: Element, what: Legend | str) -> None:
    if isinstance(what, str):
        SubElement(band, "Description").text = what
    SubElement(band, "NoDataValue").text = str(NODATA)
    if isinstance(what, str):
        SubElement(band, "Offset").text = "0"
        SubElement(band, "Scale").text = repr(PROBABILITY_SCALE)
        return
    SubElement(band, "ColorInterp").text = "Palette"
    names, colours = SubElement(band, "CategoryNames"), SubElement(band, "ColorTable")
    for one in what.classes:
        SubElement(names, "Category").text = one.name
        entry = dict(zip(("c1", "c2", "c3", "c4"), (*map(str, one.rgb), "255"), strict=True))
        SubElement(colours, "Entry", entry)


def _source(band: Element, tile: Tile, number: int, folder: Path) -> None:
    source = SubElement(band, "SimpleSource")
    SubElement(source, "SourceFilename", relativeToVRT="1").text = os.path.relpath(tile.path, folder)
    SubElement(source, "SourceBand").text = str(number)
    width, height = str(tile.shape[1]), str(tile.shape[0])
    SubElement(  # with this GDAL need not open the tiles to open the mosaic
        source, "SourceProperties", RasterXSize=width, RasterYSize=height, DataType="Byte",
        BlockXSize=_BLOCK, BlockYSize=_BLOCK,
    )  # fmt: skip
    SubElement(source, "SrcRect", xOff="0", yOff="0", xSize=width, ySize=height)
    SubElement(source, "DstRect", xOff=str(tile.col), yOff=str(tile.row), xSize=width, ySize=height)
