"""Scenes: validity by GDAL's rules, mosaics, and refusals by name."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import from_origin

from tests.rasters import UTM, terrain, write_raster
from uhrseg.errors import InputError, RunError
from uhrseg.geo.plan import shifted
from uhrseg.geo.scene import Scene

VALUES = np.arange(24, dtype=np.float32).reshape(4, 6)


def read_all(scene: Scene) -> tuple[np.ndarray, np.ndarray]:
    return scene.read(scene.geobox)


def test_reads_any_box_of_the_grid(tmp_path: Path) -> None:
    scene = Scene.open(write_raster(tmp_path / "a.tif", VALUES))
    array, valid = scene.read(shifted(scene.geobox, -1, 4, (4, 5)))
    assert array.dtype == np.float32 and array.shape == (1, 4, 5)
    np.testing.assert_array_equal(valid, [[0] * 5, [1, 1, 0, 0, 0], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]])
    np.testing.assert_array_equal(array[0, 1:, :2], VALUES[:3, 4:])
    assert not array[0][~valid].any()


@pytest.mark.parametrize(("nodata", "dtype"), [(7, "float32"), (7, "uint8"), (7, "int16"), (float("nan"), "float32")])
def test_nodata_is_invalid(tmp_path: Path, nodata: float, dtype: str) -> None:
    values = VALUES.astype(dtype)
    if np.isnan(nodata):
        values[1, 1] = np.nan
    _, valid = read_all(Scene.open(write_raster(tmp_path / "a.tif", values, nodata=nodata)))
    assert (~valid).sum() == 1 and not valid[1, 1]


def test_values_that_are_not_finite_are_invalid_without_a_nodata_tag(tmp_path: Path) -> None:
    values = VALUES.copy()
    values[0, 0], values[1, 1] = np.nan, np.inf
    array, valid = read_all(Scene.open(write_raster(tmp_path / "a.tif", values)))
    assert (~valid).sum() == 2 and np.isfinite(array).all()


def test_given_nodata_wins_over_the_file(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", VALUES, nodata=7)
    _, valid = read_all(Scene.open(path, nodata=3))
    assert not valid[0, 3] and valid[1, 1]


def test_mask_bands_inside_and_beside_the_file(tmp_path: Path) -> None:
    mask = (VALUES > 5).astype(np.uint8) * 255
    for internal in (True, False):
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=internal):
            path = write_raster(tmp_path / f"{internal}.tif", VALUES.astype(np.uint8))
            with rasterio.open(path, "r+") as dataset:
                dataset.write_mask(mask)
        _, valid = read_all(Scene.open(path))
        np.testing.assert_array_equal(valid, mask > 0)


def test_alpha_is_a_mask_and_no_band(tmp_path: Path) -> None:
    rgba = np.stack([VALUES, VALUES, VALUES, (VALUES > 5) * 255]).astype(np.uint8)
    path = write_raster(tmp_path / "a.tif", rgba, photometric="RGB", alpha="YES")
    scene = Scene.open(path)
    array, valid = read_all(scene)
    assert scene.bands == ("red", "green", "blue") and array.shape[0] == 3
    np.testing.assert_array_equal(valid, VALUES > 5)


def test_a_pixel_is_valid_when_all_bands_are(tmp_path: Path) -> None:
    both = np.stack([VALUES, VALUES[::-1]])
    _, valid = read_all(Scene.open(write_raster(tmp_path / "a.tif", both, nodata=0)))
    np.testing.assert_array_equal(valid, (both != 0).all(axis=0))


def test_scale_and_offset_of_the_file_are_applied(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", VALUES.astype(np.int16))
    with rasterio.open(path, "r+") as dataset:
        dataset.scales, dataset.offsets = (0.01,), (100.0,)
    array, _ = read_all(Scene.open(path))
    np.testing.assert_allclose(array[0], VALUES * 0.01 + 100, rtol=1e-6)


def test_bidx_picks_and_orders_bands(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", np.stack([VALUES, VALUES + 100, VALUES + 200]))
    array, _ = read_all(Scene.open(path, bidx=[3, 1]))
    np.testing.assert_array_equal(array[:, 0, 0], [200, 0])
    with pytest.raises(InputError, match="bands 1 to 3, not 4"):
        Scene.open(path, bidx=[4])


def test_a_folder_of_tiles_with_a_gap_is_one_scene(tmp_path: Path) -> None:
    whole = terrain(40, 60)
    for name, row, col in (("a", 0, 0), ("b", 0, 30), ("c", 20, 30)):
        grid = from_origin(500_000 + col, 5_000_000 - row, 1, 1)
        write_raster(tmp_path / f"{name}.tif", whole[:, row : row + 20, col : col + 30], transform=grid)
    scene = Scene.open(tmp_path)
    array, valid = read_all(scene)
    assert scene.geobox.shape == (40, 60) and not valid[20:, :30].any() and valid.sum() == 3 * 600
    np.testing.assert_array_equal(array[:, valid], whole[:, valid])


def test_where_files_overlap_the_first_valid_pixel_wins(tmp_path: Path) -> None:
    first = np.full((4, 6), 1, dtype=np.float32)
    first[0] = -9999
    write_raster(tmp_path / "a.tif", first, nodata=-9999)
    write_raster(tmp_path / "b.tif", np.full((4, 6), 2, dtype=np.float32))
    array, valid = read_all(Scene.open(str(tmp_path / "*.tif")))
    assert valid.all() and (array[0, 0] == 2).all() and (array[0, 1:] == 1).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"crs": "EPSG:32634"}, "differ in CRS"),
        ({"transform": from_origin(500_000.5, 5_000_000, 1, 1)}, "out of phase"),
        ({"transform": from_origin(500_000, 5_000_000, 2, 2)}, "pixel size"),
        ({"array": VALUES.astype(np.int16)}, "differ in data type"),
        ({"array": np.stack([VALUES, VALUES])}, "differ in number of bands"),
    ],
)
def test_files_that_disagree_are_refused_naming_both(tmp_path: Path, change: dict, message: str) -> None:
    write_raster(tmp_path / "a.tif", VALUES)
    write_raster(tmp_path / "b.tif", **({"array": VALUES} | change))
    with pytest.raises(InputError, match=message) as caught:
        Scene.open(tmp_path)
    assert "a.tif" in str(caught.value) and "b.tif" in str(caught.value) and "gdalwarp" in str(caught.value)


def test_ground_control_points_without_a_geotransform_are_refused(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", VALUES, crs=None, transform=Affine.identity())
    points = [GroundControlPoint(r, c, 14 + c * 1e-4, 46 - r * 1e-4) for r, c in ((0, 0), (0, 6), (4, 0), (4, 6))]
    with rasterio.open(path, "r+") as dataset:
        dataset.gcps = points, rasterio.CRS.from_epsg(4326)
    with pytest.raises(InputError, match="ground control points but no geotransform"):
        Scene.open(path)


def test_complex_and_palette_values_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="complex"):
        Scene.open(write_raster(tmp_path / "c.tif", VALUES.astype(np.complex64)))
    path = write_raster(tmp_path / "p.tif", VALUES.astype(np.uint8))
    with rasterio.open(path, "r+") as dataset:
        dataset.write_colormap(1, {0: (255, 0, 0, 255)})
        assert dataset.colorinterp[0] is ColorInterp.palette
    with pytest.raises(InputError, match="palette image"):
        Scene.open(path)


def test_sources_that_are_not_there_or_no_rasters(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no raster")
    with pytest.raises(InputError, match="does not exist"):
        Scene.open(tmp_path / "missing.tif")
    with pytest.raises(InputError, match="cannot be opened as a raster"):
        Scene.open(tmp_path / "notes.txt")
    with pytest.raises(InputError, match="holds no raster"):
        Scene.open(tmp_path)


def test_a_damaged_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    path = write_raster(tmp_path / "a.tif", terrain(300, 300), compress="deflate", tiled=True)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(RunError, match="a.tif cannot be read"):
        read_all(Scene.open(path))


@pytest.mark.parametrize("where", ["http://example.org/a.tif", "/vsicurl/http://example.org/a.tif", "/vsis3/b/a.tif"])
def test_a_local_file_that_refers_to_the_network_is_refused(tmp_path: Path, where: str) -> None:
    inner = tmp_path / "inner.vrt"
    inner.write_text(
        '<VRTDataset rasterXSize="6" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1"><SimpleSource>'
        f"<SourceFilename>{where}</SourceFilename><SourceBand>1</SourceBand></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    outer = tmp_path / "outer.vrt"
    outer.write_text(
        inner.read_text().replace(where, "inner.vrt").replace("<SourceFilename>", '<SourceFilename relativeToVRT="1">')
    )
    for path in (inner, outer):
        with pytest.raises(InputError, match="--allow-network"):
            Scene.open(path)


def test_scenes_travel_to_other_processes(tmp_path: Path) -> None:
    scene = Scene.open(write_raster(tmp_path / "a.tif", VALUES))
    read_all(scene)
    array, _ = read_all(pickle.loads(pickle.dumps(scene)))
    np.testing.assert_array_equal(array[0], VALUES)


@pytest.mark.parametrize(
    ("crs", "transform", "expected"),
    [
        (UTM, from_origin(5e5, 5e6, 0.5, 0.25), (0.25, 0.5)),
        ("EPSG:2225", from_origin(6e6, 2e6, 3, 3), (3 * 1200 / 3937, 3 * 1200 / 3937)),  # US survey feet
        ("EPSG:3857", from_origin(0, 8399737.889818, 10, 10), (5.0, 5.0)),  # 60 degrees north: half of Mercator's metre
        ("EPSG:4326", from_origin(14, 1e-9, 1e-5, 1e-5), (1.10574, 1.11319)),  # on the equator
        (None, from_origin(0, 0, 1, 1), None),
    ],
)
def test_ground_sampling_distance_is_in_metres(
    tmp_path: Path, crs: str | None, transform: Affine, expected: tuple[float, float] | None
) -> None:
    gsd = Scene.open(write_raster(tmp_path / "a.tif", VALUES, crs=crs, transform=transform)).gsd_m
    assert gsd == (expected if expected is None else pytest.approx(expected, rel=5e-3))
