"""Raster outputs: what is written is what another tool reads, and a failure leaves nothing."""

from __future__ import annotations

import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.shutil
from affine import Affine
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from pyproj import Transformer

from tests.rasters import write_class_map
from uhrseg.errors import InputError, RunError
from uhrseg.geo.sink import PlanesSink, write_cog
from uhrseg.geo.style import legend_from_tags
from uhrseg.legend import Legend, LegendClass

pytestmark = pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")

LEGEND = Legend(
    (
        LegendClass(0, "background", "#202020"),
        LegendClass(1, "mound & ditch", "#e41a1c"),
        LegendClass(2, "été", "#377eb8"),
    ),
    background=0,
)
WKT_ONLY = (
    'PROJCS["Lambert of a county",GEOGCS["WGS 84",DATUM["WGS_1984",SPHEROID["WGS 84",6378137,298.257223563]],'
    'PRIMEM["Greenwich",0],UNIT["degree",0.0174532925199433]],PROJECTION["Lambert_Conformal_Conic_2SP"],'
    'PARAMETER["latitude_of_origin",44.25],PARAMETER["central_meridian",2.6],PARAMETER["standard_parallel_1",43.1],'
    'PARAMETER["standard_parallel_2",45.2],PARAMETER["false_easting",12000],PARAMETER["false_northing",7000],UNIT["metre",1]]'
)
NORTH_UP = Affine(2, 0, 500000, 0, -2, 5000000)
GRIDS = {
    "epsg": (NORTH_UP, "EPSG:32633"),
    "wkt_only": (NORTH_UP, WKT_ONLY),
    "rotated": (Affine(1.75, 1.0, 5e5, 1.0, -1.75, 5e6), "EPSG:32633"),
    "south_up": (Affine(2, 0, 500000, 0, 2, 5000000), "EPSG:32633"),
    "degrees": (Affine(1e-5, 0, 2.5, 0, -1e-5, 48.5), "EPSG:4326"),
    "no_crs": (NORTH_UP, None),
    "no_georeference": (Affine.identity(), None),
}


def grid(height: int, width: int, name: str = "epsg") -> GeoBox:
    transform, crs = GRIDS[name]
    return GeoBox((height, width), transform, crs)


def class_image(height: int, width: int) -> NDArray[np.uint8]:
    image = np.random.default_rng(0).integers(0, 3, (height // 8 + 1, width // 8 + 1), dtype=np.uint8)
    image = np.kron(image, np.ones((8, 8), np.uint8))[:height, :width]
    image[:5] = 255
    return image


def assert_same_crs(result: rasterio.DatasetReader, geobox: GeoBox) -> None:
    """The same EPSG code, and a corner of the raster lies at the same longitude and latitude."""
    if geobox.crs is None:
        assert result.crs is None
        return
    assert result.crs.to_epsg() == geobox.crs.to_epsg()
    corner = result.transform.c, result.transform.f
    found, expected = (
        Transformer.from_crs(crs, 4326, always_xy=True).transform(*corner)
        for crs in (pyproj.CRS.from_wkt(result.crs.to_wkt()), geobox.crs.proj)
    )
    assert found == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("name", GRIDS)
def test_class_map_keeps_pixels_grid_and_crs(tmp_path: Path, name: str) -> None:
    path, image, geobox = tmp_path / "map.tif", class_image(700, 600), grid(700, 600, name)
    write_class_map(path, image, geobox, LEGEND, {"MODEL": "test"}, side=300)
    with rasterio.open(path) as result:
        np.testing.assert_array_equal(result.read(1), image)
        assert result.transform.almost_equals(geobox.transform)
        assert_same_crs(result, geobox)
        assert result.nodata == 255 and result.dtypes == ("uint8",)
        assert result.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert result.tags()["MODEL"] == "test"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["map.qml", "map.tif", "map.tif.aux.xml"]


def test_class_map_carries_colours_names_and_legend(tmp_path: Path) -> None:
    path = tmp_path / "map.tif"
    write_class_map(path, class_image(600, 600), grid(600, 600), LEGEND)
    with rasterio.open(path) as result:
        assert {i: result.colormap(1)[i][:3] for i in range(3)} == {c.id: c.rgb for c in LEGEND.classes}
        assert legend_from_tags(result.tags()) == LEGEND
    rasterio.shutil.copy(path, tmp_path / "map.vrt", driver="VRT")  # GDAL's own view of the band, as text
    names = ElementTree.parse(tmp_path / "map.vrt").findall(".//CategoryNames/Category")
    assert [n.text for n in names] == LEGEND.names
    entries = ElementTree.parse(tmp_path / "map.qml").findall(".//rasterrenderer[@type='paletted']//paletteEntry")
    labels = [(e.get("value"), e.get("label")) for e in entries]
    assert labels == [("0", "background"), ("1", "mound & ditch"), ("2", "été")]


def test_class_overviews_hold_the_most_frequent_class(tmp_path: Path) -> None:
    image = np.zeros((1024, 1024), np.uint8)
    image[1::2, 1::2] = 2  # a quarter of every 2 x 2 block
    write_class_map(tmp_path / "map.tif", image, grid(1024, 1024), LEGEND)
    with rasterio.open(tmp_path / "map.tif", overview_level=0) as overview:
        assert overview.shape == (512, 512)
        assert np.unique(overview.read(1)).tolist() == [0]


def test_what_is_never_written_is_nodata(tmp_path: Path) -> None:
    with PlanesSink(tmp_path / "p.tif", grid(1500, 40), ["a"]) as sink:
        sink.write(slice(700, 710), slice(3, 7), np.ones((1, 10, 4), np.uint8))
    with rasterio.open(tmp_path / "p.tif") as result:
        image = result.read(1)
    assert (image[700:710, 3:7] == 1).all() and (image != 255).sum() == 40


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1)])
def test_thin_rasters(tmp_path: Path, shape: tuple[int, int]) -> None:
    write_class_map(tmp_path / "map.tif", np.ones(shape, np.uint8), grid(*shape), LEGEND)
    with rasterio.open(tmp_path / "map.tif") as result:
        assert result.shape == shape and (result.read(1) == 1).all()


@pytest.mark.parametrize("count", [1, 3, 5])
def test_planes_read_as_probabilities(tmp_path: Path, count: int) -> None:
    path, names = tmp_path / "p.tif", [f"class {i}" for i in range(count)]
    planes = np.random.default_rng(1).integers(0, 256, (count, 600, 700), dtype=np.uint8)
    with PlanesSink(path, grid(600, 700), names) as sink:
        sink.write(slice(0, 600), slice(0, 350), planes[:, :, :350])
        sink.write(slice(0, 600), slice(350, 700), planes[:, :, 350:])
        assert not path.exists(), "a file takes its name when it is complete"
    with pytest.raises(ValueError, match="no more pixels"):
        sink.write(slice(0, 1), slice(0, 1), planes[:, :1, :1])
    with rasterio.open(path) as result:
        np.testing.assert_array_equal(result.read(), planes)
        assert result.scales == pytest.approx((1 / 254,) * count) and result.nodata == 255
        assert list(result.descriptions) == names
        assert {c.name for c in result.colorinterp} <= {"gray", "undefined"}
    assert [p.name for p in tmp_path.iterdir()] == ["p.tif"]


def test_writes_from_many_threads(tmp_path: Path) -> None:
    image = class_image(2048, 1024)
    with PlanesSink(tmp_path / "p.tif", grid(2048, 1024), ["a"]) as sink:
        bands = [slice(top, top + 128) for top in range(0, 2048, 128)]
        threads = [threading.Thread(target=sink.write, args=(b, slice(0, 1024), image[None, b])) for b in bands]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with rasterio.open(tmp_path / "p.tif") as result:
        np.testing.assert_array_equal(result.read(1), image)


def test_a_region_written_again_replaces_the_first(tmp_path: Path) -> None:
    with PlanesSink(tmp_path / "p.tif", grid(20, 20), ["a"]) as sink:
        sink.write(slice(0, 20), slice(0, 20), np.zeros((1, 20, 20), np.uint8))
        sink.write(slice(0, 20), slice(0, 20), np.ones((1, 20, 20), np.uint8))
    with rasterio.open(tmp_path / "p.tif") as result:
        assert (result.read(1) == 1).all()


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_an_exception_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "p.tif").write_text("older")
    with pytest.raises(error), PlanesSink(tmp_path / "p.tif", grid(600, 600), ["a"]) as sink:
        sink.write(slice(0, 10), slice(0, 10), np.zeros((1, 10, 10), np.uint8))
        raise error
    assert [p.name for p in tmp_path.iterdir()] == ["p.tif"]
    assert (tmp_path / "p.tif").read_text() == "older"


def test_missing_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        PlanesSink(tmp_path / "nowhere" / "p.tif", grid(2, 2), ["a"])


def test_wrong_shape_and_type_are_our_mistakes(tmp_path: Path) -> None:
    with PlanesSink(tmp_path / "p.tif", grid(9, 9), ["a"]) as sink:
        with pytest.raises(ValueError, match="given for"):
            sink.write(slice(0, 3), slice(0, 3), np.zeros((1, 3, 4), np.uint8))
        with pytest.raises(ValueError, match="given for"):
            sink.write(slice(0, 3), slice(0, 3), np.zeros((1, 3, 3), np.int64))


def test_write_cog_of_a_broken_file(tmp_path: Path) -> None:
    (tmp_path / "broken.tif").write_bytes(b"II*\0 nothing of a TIFF")
    with pytest.raises(RunError, match="cannot write"):
        write_cog(tmp_path / "broken.tif", tmp_path / "out.tif", "mode")
    assert [p.name for p in tmp_path.iterdir()] == ["broken.tif"]


FULL_DISK = textwrap.dedent("""
    import resource, signal, sys
    from pathlib import Path
    import numpy as np
    from odc.geo.geobox import GeoBox
    from affine import Affine
    from uhrseg.errors import RunError
    from uhrseg.geo.sink import PlanesSink, publish
    folder, geobox = Path(sys.argv[1]), GeoBox((1024, 1024), Affine(1, 0, 5e5, 0, -1, 5e6), "EPSG:32633")
    planes = np.random.default_rng(0).integers(0, 255, (1, 1024, 1024), dtype=np.uint8)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    for limit in map(int, sys.argv[2:]):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            with PlanesSink(folder / "p.tif", geobox, ["a"]) as sink:
                for top in range(0, 1024, 100):
                    rows = slice(top, min(top + 100, 1024))
                    sink.write(rows, slice(0, 1024), planes[:, rows])
            publish(folder / "p.tif", folder / "map.tif", sink.checksums, "average")
            result = "written"
        except RunError as error:
            result = "refused" if "make room" in str(error) else str(error)
        (folder / "p.tif").unlink(missing_ok=True)
        print(limit, result, *sorted(p.name for p in folder.iterdir()))
""")


def test_a_full_disk_is_an_error_at_every_point(tmp_path: Path) -> None:
    """GDAL itself stays silent at several of these limits (a file may not grow beyond them)."""
    limits = [0, 100, 5_000, 262_144, 300_000, 800_000, 1_040_000, 1_060_000, 1_200_000, 1_300_000]
    run = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), *map(str, limits), "2000000"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert run.stdout.splitlines() == [f"{limit} refused" for limit in limits] + ["2000000 written map.tif"]
