"""The shipped model on the example parcel: what the README shows, held to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
import scipy.ndimage
from affine import Affine
from numpy.typing import NDArray

from tests.rasters import write_raster
from uhrseg.card import ModelCard
from uhrseg.engine.fit import shipped_models
from uhrseg.engine.predict import predict
from uhrseg.legend import NODATA

MODEL = "swinv2-relay"


@pytest.fixture(scope="module")
def ground(parcel: Path) -> NDArray[np.float32]:
    with rasterio.open(parcel) as dataset:
        return dataset.read(1)


@pytest.fixture(scope="module")
def whole(parcel: Path) -> NDArray[np.uint8]:
    return predict(parcel, MODEL).labels.values


def test_the_card_says_what_it_is() -> None:
    card = ModelCard.read(shipped_models()[MODEL])
    assert "ARTIFICIAL" in card.description and card.input.gsd_m == 1.0
    assert card.training["samples"] == 8000 and "to be confirmed" in card.citation


@pytest.mark.parametrize(("chunk", "workers"), [(512, 1), (1000, 2), (300, 2)])
def test_labels_do_not_depend_on_chunk_or_workers(
    parcel: Path, whole: NDArray[np.uint8], chunk: int, workers: int
) -> None:
    again = predict(parcel, MODEL, chunk=chunk, workers=workers).labels.values
    np.testing.assert_array_equal(again, whole)


def test_bf16_and_fp32_agree(parcel: Path) -> None:
    maps = [predict(parcel, MODEL, precision=p).labels.values for p in ("fp32", "bf16")]
    assert (maps[0] == maps[1]).mean() >= 0.998


def test_polygons_are_valid_in_the_parcels_crs_and_one_per_component(
    parcel: Path, whole: NDArray[np.uint8], tmp_path: Path
) -> None:
    predict(parcel, MODEL).write(tmp_path / "mounds.gpkg")
    table = pyogrio.read_dataframe(tmp_path / "mounds.gpkg", layer="mounds")
    with rasterio.open(parcel) as dataset:
        assert table.crs.to_epsg() == dataset.crs.to_epsg() == 3794
        assert all(dataset.bounds.left <= x <= dataset.bounds.right for x in table.total_bounds[[0, 2]])
    assert table.geometry.is_valid.all()
    counts = {k: scipy.ndimage.label(whole == k)[1] for k in range(1, 5)}
    assert table["class_id"].value_counts().to_dict() == {k: n for k, n in counts.items() if n}


@pytest.mark.parametrize("cut", [np.s_[:40, :30], np.s_[200:203, :], np.s_[:, 7:8], np.s_[:1, :1]])
def test_small_and_thin_cuts_give_a_label_everywhere(
    tmp_path: Path, ground: NDArray[np.float32], cut: tuple[slice, slice]
) -> None:
    source = write_raster(tmp_path / "cut.tif", ground[cut], crs="EPSG:3794", nodata=-9999)
    labels = predict(source, MODEL).labels.values
    assert labels.shape == ground[cut].shape
    np.testing.assert_array_equal(labels == NODATA, ground[cut] == -9999)


def test_position_and_height_do_not_matter(
    tmp_path: Path, ground: NDArray[np.float32], whole: NDArray[np.uint8]
) -> None:
    """The same ground 1024 m higher, elsewhere, turned by 30 degrees on the map: the same labels."""
    there = Affine.translation(4e5, 1e5) @ Affine.rotation(30) @ Affine.scale(1, -1)
    source = write_raster(tmp_path / "high.tif", ground + 1024, crs="EPSG:3794", transform=there)
    assert (predict(source, MODEL, precision="fp32").labels.values == whole).mean() > 0.998
