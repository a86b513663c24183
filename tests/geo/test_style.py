"""Styles: XML that names every class with its colour, and a GeoPackage that carries it."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from xml.etree import ElementTree

import geopandas
import pyogrio
import pytest
import shapely

from uhrseg.geo.style import (
    legend_from_tags,
    legend_tags,
    polygon_qml,
    raster_qml,
    write_layer_style,
    write_raster_style,
)
from uhrseg.legend import Legend, LegendClass

LEGEND = Legend(
    (LegendClass(0, "background", "#202020"), LegendClass(1, 'pit & "bank" <été>', "#e41a1c")), background=0
)


def parse(qml: str) -> ElementTree.Element:
    assert qml.startswith("<!DOCTYPE qgis")
    return ElementTree.fromstring(qml)


def test_polygon_style_has_a_category_and_a_symbol_for_each_class() -> None:
    root = parse(polygon_qml(LEGEND))
    renderer = root.find("renderer-v2")
    assert renderer is not None and (renderer.get("type"), renderer.get("attr")) == ("categorizedSymbol", "class")
    for category, c in zip(renderer.findall("categories/category"), LEGEND.classes, strict=True):
        assert (category.get("value"), category.get("label")) == (c.name, c.name)
        symbol = renderer.find(f"symbols/symbol[@name='{category.get('symbol')}']")
        assert symbol is not None and symbol.get("type") == "fill"
        options = {o.get("name"): o.get("value") for o in symbol.iter("Option") if o.get("name")}
        assert options["outline_color"] == ",".join(map(str, (*c.rgb, 255)))


def test_raster_style_lists_the_legend_only(tmp_path: Path) -> None:
    qml = write_raster_style(tmp_path / "map.tif", LEGEND)
    assert qml == tmp_path / "map.qml"
    entries = parse(qml.read_text(encoding="utf-8")).findall("pipe/rasterrenderer/colorPalette/paletteEntry")
    assert [(e.get("value"), e.get("color"), e.get("label")) for e in entries] == [
        (str(c.id), c.color, c.name) for c in LEGEND.classes
    ]
    assert raster_qml(LEGEND) == qml.read_text(encoding="utf-8")


@pytest.mark.parametrize("legend", [LEGEND, Legend((LegendClass(0, "a", "#000000"),), None, 7)])
def test_a_legend_survives_as_tags(legend: Legend) -> None:
    assert legend_from_tags(legend_tags(legend)) == legend
    assert legend_from_tags({"AREA_OR_POINT": "Area"}) is None


def test_layer_style_is_the_only_default_and_other_styles_stay(tmp_path: Path) -> None:
    path = tmp_path / "two.gpkg"
    table = geopandas.GeoDataFrame({"class": ["a"]}, geometry=[shapely.box(0, 0, 1, 1)], crs="EPSG:32633")
    for layer in ("one", "two"):
        table.to_file(path, layer=layer)
        write_layer_style(path, layer, LEGEND)
    write_layer_style(path, "one", LEGEND)
    with sqlite3.connect(path) as database:
        styles = database.execute("SELECT f_table_name, useAsDefault FROM layer_styles ORDER BY 1").fetchall()
        listed = database.execute("SELECT count(*) FROM gpkg_contents WHERE table_name = 'layer_styles'").fetchone()
    assert styles == [("one", 1), ("two", 1)] and listed == (1,)
    stored = pyogrio.read_dataframe(path, layer="layer_styles")  # GDAL sees the table too
    assert stored["styleQML"].tolist() == [polygon_qml(LEGEND)] * 2
    assert len(pyogrio.read_dataframe(path, layer="two")) == 1
