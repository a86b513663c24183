"""QGIS styles: files open coloured, with class names.

QML is the XML that QGIS itself saves: https://docs.qgis.org/latest/en/docs/user_manual/appendices/qgis_file_formats.html.
A raster takes its style from ``NAME.qml`` beside it, a GeoPackage layer from a row of the table ``layer_styles``.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from xml.etree.ElementTree import Element, SubElement, tostring

from uhrseg.legend import Legend, LegendClass

__all__ = [
    "legend_from_tags",
    "legend_tags",
    "polygon_qml",
    "raster_qml",
    "write_layer_style",
    "write_raster_style",
]

_TAG = "LEGEND"

_VERSION = "3.28.0"
"""Oldest QGIS these styles are written for (it reads symbol properties from ``Option`` elements)."""

_LAYER_STYLES = """
CREATE TABLE IF NOT EXISTS layer_styles (
    id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL,
    f_table_catalog TEXT(256), f_table_schema TEXT(256), f_table_name TEXT(256), f_geometry_column TEXT(256),
    styleName TEXT(30), styleQML TEXT, styleSLD TEXT, useAsDefault BOOLEAN, description TEXT, owner TEXT(30),
    ui TEXT(30), update_time DATETIME DEFAULT (strftime('%Y-%m-%dT%H:%M:%fZ', 'now'))
)
"""
"""The columns QGIS creates when it saves a style to a GeoPackage."""


def legend_tags(legend: Legend) -> dict[str, str]:
    """The legend as a dataset tag, which stays in the file when the sidecars are lost."""
    return {_TAG: json.dumps(asdict(legend), ensure_ascii=False)}


def legend_from_tags(tags: Mapping[str, str]) -> Legend | None:
    """The legend a raster's tags hold; None when they hold none."""
    if _TAG not in tags:
        return None
    data = json.loads(tags[_TAG])
    return Legend(tuple(LegendClass(**c) for c in data["classes"]), data["background"], data["ignore"])


def raster_qml(legend: Legend) -> str:
    """Style of a class map: one palette entry per class of the legend, none for values it does not use."""
    root = Element("qgis", version=_VERSION, styleCategories="Symbology")
    renderer = SubElement(
        SubElement(root, "pipe"), "rasterrenderer", type="paletted", band="1", opacity="1", alphaBand="-1"
    )
    palette = SubElement(renderer, "colorPalette")
    for c in legend.classes:
        SubElement(palette, "paletteEntry", value=str(c.id), color=c.color, alpha="255", label=c.name)
    return _document(root)


def polygon_qml(legend: Legend) -> str:
    """Style of polygons: categories of the attribute ``class``, half-transparent fills with a solid outline."""
    root = Element("qgis", version=_VERSION, styleCategories="Symbology")
    renderer = SubElement(
        root, "renderer-v2", type="categorizedSymbol", attr="class", symbollevels="0", enableorderby="0"
    )
    categories, symbols = SubElement(renderer, "categories"), SubElement(renderer, "symbols")
    for c in legend.classes:
        SubElement(categories, "category", value=c.name, label=c.name, symbol=str(c.id), render="true", type="string")
        _fill(symbols, c)
    SubElement(root, "layerGeometryType").text = "2"  # polygons
    return _document(root)


def write_raster_style(path: Path, legend: Legend) -> Path:
    """Write ``NAME.qml`` beside the class map `path`, replacing an older one; returns its path."""
    qml = path.with_suffix(".qml")
    qml.write_text(raster_qml(legend), encoding="utf-8")
    return qml


def write_layer_style(gpkg: Path, layer: str, legend: Legend, geometry_column: str = "geom") -> None:
    """Make `polygon_qml` the default style of a layer of a GeoPackage (``layer_styles``, ``useAsDefault = 1``).

    The table is registered as attributes, as the standard asks of user tables (OGC 12-128r19, 2.4). A default
    style that the layer had is replaced.
    """
    with closing(sqlite3.connect(gpkg)) as database, database:
        database.execute(_LAYER_STYLES)
        database.execute(
            "INSERT OR IGNORE INTO gpkg_contents (table_name, data_type, identifier) "
            "VALUES ('layer_styles', 'attributes', 'layer_styles')"
        )
        database.execute("DELETE FROM layer_styles WHERE f_table_name = ? AND useAsDefault", (layer,))
        database.execute(
            "INSERT INTO layer_styles (f_table_catalog, f_table_schema, f_table_name, f_geometry_column, styleName, "
            "styleQML, styleSLD, useAsDefault, description, owner) VALUES ('', '', ?, ?, ?, ?, '', 1, ?, '')",
            (layer, geometry_column, layer[:30], polygon_qml(legend), "Classes by uhrseg"),
        )


def _fill(symbols: Element, c: LegendClass) -> None:
    """One fill symbol in the colour of a class."""
    symbol = SubElement(symbols, "symbol", name=str(c.id), type="fill", alpha="1", clip_to_extent="1", force_rhr="0")
    layer = SubElement(symbol, "layer", {"class": "SimpleFill", "enabled": "1", "locked": "0", "pass": "0"})
    options = SubElement(layer, "Option", type="Map")
    color = ",".join(map(str, c.rgb))
    for name, value in {
        "color": f"{color},110",
        "style": "solid",
        "outline_color": f"{color},255",
        "outline_style": "solid",
        "outline_width": "0.4",
        "outline_width_unit": "MM",
    }.items():
        SubElement(options, "Option", name=name, type="QString", value=value)


def _document(root: Element) -> str:
    """XML with the document type QGIS writes."""
    return "<!DOCTYPE qgis PUBLIC 'http://mrcc.com/qgis.dtd' 'SYSTEM'>\n" + tostring(root, encoding="unicode") + "\n"
