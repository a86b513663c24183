"""Real rasters of many kinds: a correct map, or a refusal by name. Skipped where the shared data is not at hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import rasterio

from tests.conftest import ROOT
from tests.rasters import make_model, threshold_card
from uhrseg.engine.fit import check_fit, shipped_models
from uhrseg.engine.predict import predict
from uhrseg.errors import InputError
from uhrseg.geo.scene import Scene
from uhrseg.legend import NODATA

DATA = ROOT.parent / "shared" / "data"
pytestmark = pytest.mark.skipif(not DATA.is_dir(), reason="shared data is not at hand")

CASES = {
    "dubai_landcover/scenes/tile3.vrt": (3, (80.0, 140.0)),
    "unlabelled_rasters/dem_bigtujunga_int16_nd32767_utm11n.tif": (1, (900.0, 1500.0)),
    "unlabelled_rasters/DERIVED_southup.tif": (3, (60.0, 110.0)),
    "unlabelled_rasters/DERIVED_rotated30.tif": (3, (60.0, 110.0)),
    "unlabelled_rasters/drone_rgba_2cm_utm33n.tif": (3, (90.0,)),
    "unlabelled_rasters/dem_swiss_f32_epsg2056_nd-9999.tif": (1, (500.0, 1000.0)),
    "unlabelled_rasters/landsat8_stack_rgb.vrt": (3, (8000.0, 9000.0)),
    "unlabelled_rasters/naip_rgbn_2017_utm14n.tif": (4, (90.0,)),
    "lidar_dtm_slovenia/TM1_564_146_nan_nodata.tif": (1, (270.0, 290.0)),
}


@pytest.mark.parametrize("name", CASES)
def test_a_threshold_map_is_exact(tmp_path: Path, name: str) -> None:
    bands, thresholds = CASES[name]
    card = threshold_card(thresholds, bands, size=256)
    prediction = predict(DATA / name, (make_model(card), card), chunk=700, workers=2)
    prediction.write(tmp_path / "classes.tif")
    with rasterio.open(DATA / name) as source, rasterio.open(tmp_path / "classes.tif") as result:
        picked = list(range(1, bands + 1))
        valid = source.read_masks(picked).all(axis=0)
        values = source.read(1)
        if values.dtype.kind == "f":
            valid &= np.isfinite(source.read(picked)).all(axis=0)
        expected = np.where(valid, np.digitize(values.astype(np.float32), thresholds), NODATA)
        np.testing.assert_array_equal(result.read(1), expected)
        assert result.crs == source.crs and result.transform.almost_equals(source.transform)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("unlabelled_rasters/gcps_only.tif", "ground control points but no geotransform"),
        ("dubai_landcover/scenes/tile3.vrt", r"expects 1 band\(s\) dtm at 1 m; tile3.vrt has 3 band"),
        ("unlabelled_rasters/dem_bigtujunga_int16_nd32767_utm11n.tif", "resample it with gdalwarp"),
    ],
)
def test_the_shipped_model_refuses_what_does_not_fit(name: str, message: str) -> None:
    assert "swinv2-relay" in shipped_models()
    with pytest.raises(InputError, match=message):
        predict(DATA / name, "swinv2-relay")


def test_every_nasty_raster_gives_a_scene_or_one_sentence() -> None:
    """No crash and no traceback: 900 odd, hostile and broken files of other projects."""
    opened, refused = 0, 0
    card = threshold_card((100.0,), size=256)
    for path in sorted((DATA / "nasty").rglob("*")):
        if not path.is_file() or path.suffix.lower() not in (".tif", ".tiff", ".vrt", ".img", ".png", ".jp2"):
            continue
        try:
            scene = Scene.open(path, bidx=[1])
            check_fit(scene, card)
            opened += 1
        except InputError as error:
            assert "\n" not in str(error).strip(), path
            refused += 1
    assert opened > 100 and refused > 10, (opened, refused)
