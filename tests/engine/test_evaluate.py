"""Scores of finished predictions: the same whatever file, grid or CRS the two sides come in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely
import torch
from numpy.typing import NDArray
from rasterio.transform import from_origin
from rasterio.warp import calculate_default_transform, reproject
from torchmetrics.classification import MulticlassConfusionMatrix, MulticlassF1Score, MulticlassJaccardIndex
from typer.testing import CliRunner

from tests.rasters import COLOURS, UTM, write_raster
from uhrseg.card import read_legend
from uhrseg.cli.main import app
from uhrseg.engine import evaluate as module
from uhrseg.engine.evaluate import evaluate, legend_named
from uhrseg.engine.fit import find_model
from uhrseg.errors import InputError
from uhrseg.geo.labels import geometry_layers
from uhrseg.legend import Legend, LegendClass

LEGEND = Legend(tuple(LegendClass(i, f"class{i}", COLOURS[i]) for i in range(4)), background=0)


def maps(seed: int, shape: tuple[int, int] = (90, 130), classes: int = 4) -> tuple[NDArray[Any], NDArray[Any]]:
    """Labels with ignored pixels and a prediction that is right in about half of the others."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, classes, shape).astype(np.uint8)
    prediction = np.where(rng.random(shape) < 0.5, labels, rng.integers(0, classes, shape)).astype(np.uint8)
    labels[rng.random(shape) < 0.2] = 255
    return labels, prediction


@pytest.mark.parametrize("classes", [4, 2])  # with 2, classes 2 and 3 of the legend are absent from both sides
def test_agrees_with_torchmetrics_to_the_last_digit(tmp_path: Path, classes: int) -> None:
    labels, prediction = maps(classes, classes=classes)
    found = evaluate(
        write_raster(tmp_path / "p.tif", prediction, nodata=255), write_raster(tmp_path / "l.tif", labels), LEGEND
    ).scores
    sides = torch.from_numpy(prediction).long(), torch.from_numpy(labels).long()
    judge = MulticlassConfusionMatrix(4, ignore_index=255)
    assert found["confusion"] == judge(*sides).tolist()
    for key, metric in (("iou", MulticlassJaccardIndex), ("f1", MulticlassF1Score)):
        expected = metric(4, average="none", ignore_index=255).set_dtype(torch.float64)(*sides)
        for i in range(classes):
            assert found["classes"][f"class{i}"][key] == pytest.approx(float(expected[i]), abs=1e-7)
    present = [found["classes"][f"class{i}"]["iou"] for i in range(1, classes)]
    assert found["miou"] == pytest.approx(np.mean(present), abs=1e-15)
    assert all(found["classes"][f"class{i}"]["iou"] is None for i in range(classes, 4))


def test_tiles_add_up_to_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    labels, prediction = maps(1)
    files = write_raster(tmp_path / "p.tif", prediction, nodata=255), write_raster(tmp_path / "l.tif", labels)
    whole = evaluate(*files, LEGEND).scores
    monkeypatch.setattr(module, "_TILE", 37)
    assert evaluate(*files, LEGEND).scores == whole


def test_a_map_of_a_larger_place_is_cut_and_missing_pixels_are_counted(tmp_path: Path) -> None:
    labels, prediction = maps(2)
    shifted = from_origin(500_030, 4_999_980, 1, 1)  # 30 px to the right, 20 px down
    p = write_raster(tmp_path / "p.tif", prediction[20:, 30:], nodata=255, transform=shifted)
    found = evaluate(p, write_raster(tmp_path / "l.tif", labels), LEGEND).scores
    inside = labels[20:, 30:] != 255
    assert np.sum(found["confusion"]) == inside.sum()
    missing = (labels != 255).sum() - inside.sum()
    assert f"{missing} labelled pixels without a prediction left out" in found["miou_rule"]


def test_polygons_score_like_the_raster_they_were_traced_from(tmp_path: Path) -> None:
    labels = np.zeros((80, 100), np.uint8)
    labels[10:30, 20:50], labels[50:70, 60:90] = 1, 2
    prediction = np.zeros_like(labels)
    prediction[12:30, 20:55], prediction[50:70, 60:80] = 1, 2
    as_raster = [write_raster(tmp_path / f"{n}.tif", a, nodata=255) for n, a in (("p", prediction), ("l", labels))]
    boxes = {"p": [(12, 30, 20, 55), (50, 70, 60, 80)], "l": [(10, 30, 20, 50), (50, 70, 60, 90)]}
    as_vector = [polygons(tmp_path / f"{n}.gpkg", boxes[n]) for n in "pl"]
    expected = evaluate(*as_raster, LEGEND).scores
    assert expected["classes"]["class1"]["iou"] == 540 / (600 + 630 - 540)
    assert evaluate(as_vector[0], as_raster[1], LEGEND).scores == expected
    assert evaluate(as_raster[0], as_vector[1], LEGEND).scores == expected
    both = evaluate(*as_vector, LEGEND, res=1).scores  # their extent is smaller: less background, the same features
    for name in ("class1", "class2"):
        assert both["classes"][name] == expected["classes"][name]
    with pytest.raises(InputError, match="--res"):
        evaluate(*as_vector, LEGEND)


def test_labels_in_degrees_score_alike(tmp_path: Path) -> None:
    boxes = [(12, 30, 20, 55), (50, 70, 60, 80)]
    prediction = np.zeros((80, 100), np.uint8)
    prediction[12:30, 20:55], prediction[50:70, 60:80] = 1, 2
    p = write_raster(tmp_path / "p.tif", prediction, nodata=255)
    degrees = geopandas.read_file(polygons(tmp_path / "l.gpkg", boxes)).to_crs("EPSG:4326")
    degrees.to_file(tmp_path / "degrees.gpkg")
    assert evaluate(p, tmp_path / "degrees.gpkg", LEGEND).scores["miou"] == 1


def test_a_map_in_another_crs_is_warped_and_said_so(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    labels = np.kron(rng.integers(0, 4, (8, 10)), np.ones((20, 20))).astype(np.uint8)  # blocks of 20 m
    reference = write_raster(tmp_path / "l.tif", labels)
    grid = from_origin(500_000, 5_000_000, 1, 1)
    bounds = rasterio.transform.array_bounds(*labels.shape, grid)
    other, width, height = calculate_default_transform(UTM, "EPSG:3035", *labels.shape[::-1], *bounds)
    warped = np.full((height, width), 255, np.uint8)
    reproject(labels, warped, src_transform=grid, src_crs=UTM, dst_transform=other, dst_crs="EPSG:3035",
              src_nodata=255, dst_nodata=255)  # fmt: skip
    p = write_raster(tmp_path / "p.tif", warped, crs="EPSG:3035", transform=other, nodata=255)
    result = evaluate(p, reference, LEGEND)
    assert result.notes == ("prediction: warped to the labels' grid (nearest neighbour)",)
    assert result.scores["accuracy"] > 0.93  # edges of the blocks move by half a pixel
    lost = np.sum(result.scores["confusion"]) / labels.size
    assert lost > 0.98


def test_what_cannot_be_compared_is_refused(tmp_path: Path) -> None:
    labels, prediction = maps(3)
    p, reference = write_raster(tmp_path / "p.tif", prediction, nodata=255), write_raster(tmp_path / "l.tif", labels)
    with pytest.raises(InputError, match="--legend"):
        evaluate(p, reference)
    far = write_raster(tmp_path / "far.tif", labels, transform=from_origin(700_000, 5_000_000, 1, 1))
    with pytest.raises(InputError, match="no labelled pixel in common"):
        evaluate(p, far, LEGEND)
    bare = write_raster(tmp_path / "bare.tif", labels, crs=None)
    with pytest.raises(InputError, match="CRS"):
        evaluate(p, bare, LEGEND)
    small = Legend(LEGEND.classes[:2], 0)
    with pytest.raises(InputError, match="no class of the legend"):
        evaluate(p, reference, small)
    (tmp_path / "empty.toml").write_text("name = 'x'\n")
    with pytest.raises(InputError, match="holds no legend"):
        read_legend(tmp_path / "empty.toml")


def test_the_command_prints_the_contract(tmp_path: Path) -> None:
    labels, prediction = maps(4)
    p, reference = write_raster(tmp_path / "p.tif", prediction, nodata=255), write_raster(tmp_path / "l.tif", labels)
    legend = tmp_path / "legend.toml"
    classes = [f'[[class]]\nid = {c.id}\nname = "{c.name}"\ncolor = "{c.color}"\n' for c in LEGEND.classes]
    legend.write_text("background = 0\n" + "\n".join(classes))
    assert read_legend(legend) == LEGEND
    run = CliRunner().invoke(app, ["evaluate", str(p), str(reference), "--legend", str(legend), "--json"])
    assert run.exit_code == 0, run.stderr
    printed = json.loads(run.stdout)
    assert list(printed) == ["classes", "miou", "miou_rule", "accuracy", "confusion"]
    assert set(printed["classes"]["class1"]) == {"iou", "f1", "precision", "recall", "pixels"}
    table = CliRunner().invoke(app, ["evaluate", str(p), str(reference), "--legend", str(legend)]).stdout
    assert f"mean IoU {printed['miou']:.4f}" in table
    assert "background 'class0' left out" in table


def polygons(path: Path, boxes: list[tuple[int, int, int, int]]) -> Path:
    """Polygons of classes 1, 2, ... from pixel boxes (top, bottom, left, right)."""
    shapes = [shapely.box(500_000 + x0, 5_000_000 - y1, 500_000 + x1, 5_000_000 - y0) for y0, y1, x0, x1 in boxes]
    ids = range(1, len(shapes) + 1)
    geopandas.GeoDataFrame({"class_id": ids, "geometry": shapes}, crs=UTM).to_file(path)
    return path


def test_a_legend_is_named_in_many_ways(tmp_path: Path) -> None:
    shipped = legend_named("swinv2-relay")
    assert "mound" in shipped.names and legend_named(find_model("swinv2-relay")) == shipped
    with pytest.raises(InputError, match="carries no legend"):
        legend_named(write_raster(tmp_path / "plain.tif", np.zeros((4, 4), np.uint8)))
    with pytest.raises(InputError, match="GeoParquet is not read here"):
        geometry_layers(tmp_path / "a.parquet")
