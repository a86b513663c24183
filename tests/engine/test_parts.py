"""A part of a scene has the labels of the whole; a scene read at another pixel size has those of its means."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas
import numpy as np
import pytest
import rasterio
import shapely

from tests.rasters import RELIEF, SMALL_SWIN, UTM, make_card, make_model, terrain, threshold_card, write_raster
from uhrseg.engine.predict import predict
from uhrseg.errors import InputError


def test_bounds_and_aoi_are_cut_out_of_the_full_result(tmp_path: Path) -> None:
    ground = terrain(170, 210)
    ground[:, 60:80, :100] = -9999
    source = write_raster(tmp_path / "dtm.tif", ground, nodata=-9999)
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    model, options = (make_model(card), card), {"precision": "fp32", "batch_size": 3}
    full = predict(source, model, **options).labels.values
    part = predict(source, model, chunk=50, bounds=(500_033, 4_999_850, 500_150, 4_999_961.5), **options).labels
    np.testing.assert_array_equal(part.values, full[38:150, 33:150])
    disc = shapely.Point(500_100, 4_999_920).buffer(45)
    geopandas.GeoDataFrame(geometry=[disc], crs=UTM).to_crs(4326).to_file(tmp_path / "aoi.gpkg")
    predict(source, model, chunk=50, aoi=tmp_path / "aoi.gpkg", **options).write(tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as made:
        labels = made.read(1)
        row, col = round(5_000_000 - made.transform.f), round(made.transform.c - 500_000)
    y, x = np.mgrid[: labels.shape[0], : labels.shape[1]]
    inside = shapely.contains_xy(disc, 500_000 + col + x + 0.5, 5_000_000 - row - y - 0.5)
    expected = np.where(inside, full[row : row + labels.shape[0], col : col + labels.shape[1]], 255)
    assert (labels != expected).mean() < 1e-3, "only pixels whose centre lies on the line, to rounding of degrees"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"bounds": (0, 0, 1, 1)}, "outside the scene"),
        ({"bounds": (5, 0, 1, 1)}, "no rectangle"),
        ({"aoi": "gone.gpkg"}, "does not exist"),
        ({"res": -1}, "--res is -1"),
        ({"res": "card"}, "does not say its ground sampling distance"),
    ],
)
def test_parts_that_are_none_are_refused(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(30, 30))
    card = threshold_card((300.0,))
    with pytest.raises(InputError, match=message):
        predict(source, (make_model(card), card), **options)


def test_res_takes_means_going_down_and_bounds_stay_in_map_units(tmp_path: Path) -> None:
    ground = terrain(160, 200)
    source = write_raster(tmp_path / "dtm.tif", ground)
    card = threshold_card((300.0,)).model_copy(deep=True)
    labels = predict(source, (make_model(card), card), res=2.0, chunk=37).labels
    means = ground[0].astype(np.float64).reshape(80, 2, 100, 2).mean(axis=(1, 3))
    np.testing.assert_array_equal(labels.values, np.digitize(means.astype(np.float32), [300.0]))
    assert labels.rio.resolution() == (2.0, -2.0)
