"""Quicklooks: things are drawn where they are, in their colours, whatever the raster."""

from __future__ import annotations

from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import rasterio
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from tests.rasters import write_class_map
from uhrseg.errors import InputError, RunError
from uhrseg.geo.vector import polygonise, write_polygons
from uhrseg.legend import Legend, LegendClass
from uhrseg.report.quicklook import hillshade, quicklook, scale_bar_length

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LEGEND = Legend(
    (LegendClass(0, "background", "#202020"), LegendClass(1, "mound", "#ff0000"), LegendClass(2, "pit", "#0000ff")),
    background=0,
)
NORTH_UP = Affine(2, 0, 500000, 0, -2, 5000000)
SOUTH_UP = Affine(2, 0, 500000, 0, 2, 5000000)


def write_raster(
    path: Path, values: NDArray[np.generic], transform: Affine = NORTH_UP, crs: str | None = "EPSG:32633",
    nodata: float | None = None,
) -> Path:  # fmt: skip
    bands = values[np.newaxis] if values.ndim == 2 else values
    with rasterio.open(
        path, "w", driver="GTiff", count=len(bands), height=bands.shape[1], width=bands.shape[2],
        dtype=bands.dtype.name, crs=crs, transform=transform, nodata=nodata,
    ) as target:  # fmt: skip
        target.write(bands)
    return path


def write_map(path: Path, classes: NDArray[np.uint8], transform: Affine = NORTH_UP) -> Path:
    return write_class_map(path, classes, GeoBox(classes.shape, transform, "EPSG:32633"), LEGEND)


def picture(png: Path, shape: tuple[int, int], max_side: int) -> NDArray[np.float32]:
    """The raster's part of the PNG (Y, X, 3): below the title, right of the margin."""
    image = matplotlib.image.imread(png)[..., :3]
    height, width = (round(n * max_side / max(shape)) for n in shape)
    return image[35 : 35 + height, 10 : 10 + width]


def surface(height: int, width: int) -> NDArray[np.float32]:
    y, x = np.mgrid[:height, :width]
    return (100 + 3 * np.sin(x / 9) + 2 * np.cos(y / 7)).astype(np.float32)


@pytest.mark.parametrize("transform", [NORTH_UP, SOUTH_UP], ids=["north_up", "south_up"])
@pytest.mark.parametrize("max_side", [300, 800])
def test_classes_and_outlines_lie_where_they_are(tmp_path: Path, transform: Affine, max_side: int) -> None:
    classes = np.zeros((200, 400), np.uint8)
    classes[20:60, 300:380] = 1
    classes[120:180, 40:100] = 2
    raster, labels = write_raster(tmp_path / "d.tif", surface(200, 400), transform), tmp_path / "c.tif"
    write_map(labels, classes, transform)
    polygons = tmp_path / "p.gpkg"
    write_polygons(polygonise(labels, None, LEGEND, [1, 2]), polygons, "EPSG:32633", LEGEND)
    png = quicklook(raster, labels, None, tmp_path / "q.png", polygons, max_side)
    drawn = picture(png, classes.shape, max_side)
    if transform == SOUTH_UP:
        drawn = drawn[::-1]
    scale = max_side / 400

    def colour(rows: slice, cols: slice) -> NDArray[np.float32]:
        inner = drawn[
            int(rows.start * scale) : int(rows.stop * scale), int(cols.start * scale) : int(cols.stop * scale)
        ]
        return inner.mean(axis=(0, 1))

    red, green, blue = colour(slice(30, 50), slice(320, 360))
    assert red > green + 0.3 and red > blue + 0.3
    red, green, blue = colour(slice(130, 170), slice(50, 90))
    assert blue > green + 0.3 and blue > red + 0.3
    plain = colour(slice(80, 110), slice(150, 350))
    assert np.ptp(plain) < 0.02  # no class, grey
    outline = drawn[round(40 * scale), round(300 * scale) - 2 : round(300 * scale) + 3]
    assert (outline[:, 0] - outline[:, 1]).max() > 0.5  # stronger than the transparent fill
    assert sorted(p.name for p in tmp_path.glob("*q.png*")) == ["q.png"]


def test_polygons_alone(tmp_path: Path) -> None:
    classes = np.zeros((200, 400), np.uint8)
    classes[20:60, 300:380] = 1
    labels = write_map(tmp_path / "c.tif", classes)
    write_polygons(polygonise(labels, None, LEGEND, [1]), tmp_path / "p.geojson", "EPSG:32633", LEGEND)
    raster = write_raster(tmp_path / "d.tif", surface(200, 400))
    png = quicklook(raster, None, LEGEND, tmp_path / "q.png", tmp_path / "p.geojson", 800)
    drawn = picture(png, classes.shape, 800)
    redness = drawn[..., 0] - drawn[..., 1]
    rows, cols = np.nonzero(redness > 0.5)
    assert rows.min() == pytest.approx(40, abs=3) and rows.max() == pytest.approx(120, abs=3)
    assert cols.min() == pytest.approx(600, abs=3) and cols.max() == pytest.approx(760, abs=3)
    assert redness[50:110, 610:750].max() < 0.1  # hollow


@pytest.mark.parametrize("nodata", [-9999, np.nan])
def test_nodata_is_light_grey(tmp_path: Path, nodata: float) -> None:
    values = surface(200, 200)
    values[:, 100:] = nodata
    raster = write_raster(tmp_path / "d.tif", values, nodata=nodata)
    drawn = picture(quicklook(raster, None, None, tmp_path / "q.png", max_side=400), (200, 200), 400)
    np.testing.assert_allclose(drawn[:300, 210:390], 0.87, atol=0.01)
    assert drawn[20:300, 20:180].std() > 0.1


def test_an_rgb_image_keeps_its_colours(tmp_path: Path) -> None:
    image = np.random.default_rng(0).integers(0, 40, (3, 100, 100), dtype=np.uint8)
    image[1, :50] += 200
    image[2, 50:] += 200
    raster = write_raster(tmp_path / "i.tif", image)
    drawn = picture(quicklook(raster, None, None, tmp_path / "q.png", max_side=200), (100, 100), 200)
    assert drawn[20:80, 20:180].mean(axis=(0, 1)).argmax() == 1
    assert drawn[110:160, 20:180].mean(axis=(0, 1)).argmax() == 2


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (1, 1), (30, 40)])
def test_thin_and_small_rasters(tmp_path: Path, shape: tuple[int, int]) -> None:
    raster = write_raster(tmp_path / "d.tif", surface(*shape), crs=None)
    png = quicklook(raster, None, None, tmp_path / "q.png", max_side=200)
    assert matplotlib.image.imread(png).shape[2] == 4


def test_an_empty_raster(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "d.tif", np.full((50, 60), -9999, np.float32), nodata=-9999)
    drawn = picture(quicklook(raster, None, None, tmp_path / "q.png", max_side=240), (50, 60), 240)
    np.testing.assert_allclose(drawn[:100], 0.87, atol=0.01)


def test_picture_size_does_not_grow_with_the_raster(tmp_path: Path) -> None:
    sizes = []
    for name, height in (("small.tif", 100), ("large.tif", 1000)):
        raster = write_raster(tmp_path / name, surface(height, 2 * height))
        sizes.append(matplotlib.image.imread(quicklook(raster, None, None, tmp_path / "q.png", max_side=300)).shape)
    assert sizes[0] == sizes[1] == (200, 400, 4)


def test_a_map_without_legend_takes_its_colour_table(tmp_path: Path) -> None:
    classes = np.zeros((100, 100), np.uint8)
    classes[:, 50:] = 1
    labels = write_raster(tmp_path / "c.tif", classes)
    raster = write_raster(tmp_path / "d.tif", np.zeros((100, 100), np.float32))
    with rasterio.open(labels, "r+") as target:
        target.write_colormap(1, {0: (0, 0, 0, 255), 1: (0, 255, 0, 255)})
    drawn = picture(quicklook(raster, labels, None, tmp_path / "q.png", max_side=200), (100, 100), 200)
    assert drawn[20:150, 120:180].mean(axis=(0, 1)).argmax() == 1
    assert np.ptp(drawn[20:150, 20:80].mean(axis=(0, 1))) < 0.01


def test_a_map_on_another_grid_is_refused(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "d.tif", surface(50, 60))
    for name, classes, transform in (
        ("size.tif", np.zeros((50, 61), np.uint8), NORTH_UP),
        ("shift.tif", np.zeros((50, 60), np.uint8), NORTH_UP @ Affine.translation(1, 0)),
    ):
        labels = write_map(tmp_path / name, classes, transform)
        with pytest.raises(InputError, match=name):
            quicklook(raster, labels, None, tmp_path / "q.png")
    assert not (tmp_path / "q.png").exists()


def test_files_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    raster = write_raster(tmp_path / "d.tif", surface(50, 60))
    with pytest.raises(InputError, match="none.tif cannot be opened"):
        quicklook(tmp_path / "none.tif", None, None, tmp_path / "q.png")
    with pytest.raises(InputError, match="none.gpkg cannot be opened"):
        quicklook(raster, None, LEGEND, tmp_path / "q.png", tmp_path / "none.gpkg")
    with pytest.raises(RunError, match="cannot write"):
        quicklook(raster, None, None, tmp_path / "nowhere" / "q.png", max_side=100)


def test_hillshade_of_planes() -> None:
    """A plane's light is the cosine between its normal and the direction to the light."""
    y, x = np.mgrid[:20, :30].astype(np.float32)
    to_light = np.array([-np.cos(np.pi / 4), -np.cos(np.pi / 4)]) * np.cos(np.radians(35))  # right, down
    for right, down in ((0, 0), (0.3, 0), (0, 0.3), (-0.2, 0.4)):
        light = hillshade(right * x * 2 + down * y * 3, (3, 2))
        normal = np.array([-right, -down, 1]) / np.sqrt(1 + right**2 + down**2)
        expected = normal @ [*to_light, np.sin(np.radians(35))]
        np.testing.assert_allclose(light, max(expected, 0), atol=1e-5)


def test_a_mound_is_lit_from_the_upper_left() -> None:
    y, x = np.mgrid[-20:21, -20:21]
    light = hillshade(np.exp(-(x**2 + y**2) / 60.0).astype(np.float32) * 5, (1, 1))
    assert light[15, 15] > light[20, 0] > light[25, 25]
    holed = np.ones((5, 5), np.float32)
    holed[2, 2] = np.nan
    assert np.isnan(hillshade(holed, (1, 1))[2, 2])


@pytest.mark.parametrize(
    ("width", "length"), [(1000, 200), (399, 50), (400, 100), (4.1, 1), (0.5, 0.1), (80000, 20000)]
)
def test_scale_bars_are_round_and_at_most_a_quarter(width: float, length: float) -> None:
    assert scale_bar_length(width) == pytest.approx(length)
