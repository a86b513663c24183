"""`uhrseg predict` from the shell's side; what it wrote is opened again with rasterio and pyogrio."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pyogrio
import pytest
import rasterio
from numpy.typing import NDArray

from tests.cli.conftest import GSD, Uhrseg, write_raster

PIXEL_M2 = GSD**2
FLAT = ("--precision", "fp32", "--device", "cpu")


def test_a_parcel_becomes_a_class_map_and_polygons(
    uhrseg: Uhrseg, model: Path, raster: Path, classes: NDArray[np.uint8]
) -> None:
    result = uhrseg("predict", raster, "--model", model, "-o", "classes.tif", "-o", "mounds.gpkg", *FLAT)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == ""
    assert "wrote classes.tif" in result.stderr and "wrote mounds.gpkg" in result.stderr
    with rasterio.open("classes.tif") as made, rasterio.open(raster) as source:
        np.testing.assert_array_equal(made.read(1), classes)
        assert (made.crs, made.transform, made.nodata) == (source.crs, source.transform, 255)
        assert made.colormap(1)[2][:3] == (0xE4, 0x1A, 0x1C)
    polygons = pyogrio.read_dataframe("mounds.gpkg")
    assert polygons.crs == "EPSG:32631"
    assert polygons.geometry.is_valid.all()
    found = sorted(zip(polygons["class"], polygons["class_id"], polygons["area_m2"], strict=True))
    assert found == [("bank", 1, 4 * 124 * PIXEL_M2), ("mound", 2, 6 * PIXEL_M2), ("mound", 2, 150 * PIXEL_M2)]


def test_json_is_the_object_of_the_contract(
    uhrseg: Uhrseg, model: Path, raster: Path, classes: NDArray[np.uint8]
) -> None:
    result = uhrseg("predict", raster, "--model", model, "-o", "mounds.fgb", "--json", *FLAT)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert set(report) >= {"outputs", "pixels", "windows", "seconds", "peak_rss_mb", "device", "precision"}
    assert set(report["seconds"]) == {"total", "read", "model", "write", "vector"}
    assert report["outputs"] == ["mounds.fgb"]
    assert report["pixels"] == classes.size
    assert (report["device"], report["precision"]) == ("cpu", "fp32")
    assert report["class_area_m2"] == pytest.approx(
        {name: float((classes == k).sum()) * PIXEL_M2 for k, name in enumerate(("ground", "bank", "mound"))}
    )
    assert report["model"]["name"] == "steps" and len(report["model"]["sha256"]) == 64
    assert report["version"]


def test_a_dash_prints_geojson(uhrseg: Uhrseg, model: Path, raster: Path) -> None:
    result = uhrseg("predict", raster, "--model", model, "-o", "-", *FLAT)
    assert result.exit_code == 0, result.stderr
    features = json.loads(result.stdout)["features"]
    assert sorted(f["properties"]["class"] for f in features) == ["bank", "mound", "mound"]
    assert "wrote" not in result.stderr
    both = uhrseg("predict", raster, "--model", model, "-o", "-", "--json", *FLAT)
    assert both.exit_code == 2 and "stdout" in both.stderr and both.stdout == ""


def test_polygons_can_be_chosen_by_class_and_area(uhrseg: Uhrseg, model: Path, raster: Path) -> None:
    chosen = ("--classes", "mound", "--min-area", 25)
    result = uhrseg("predict", raster, "--model", model, "-o", "large.geojson", *chosen, *FLAT)
    assert result.exit_code == 0, result.stderr
    polygons = pyogrio.read_dataframe("large.geojson")
    assert polygons.crs == "EPSG:4326"
    assert list(polygons["area_m2"]) == [150 * PIXEL_M2]


def test_probabilities_are_one_band_per_class(
    uhrseg: Uhrseg, model: Path, raster: Path, classes: NDArray[np.uint8]
) -> None:
    result = uhrseg("predict", raster, "--model", model, "--probabilities", "p.tif", *FLAT)
    assert result.exit_code == 0, result.stderr
    with rasterio.open("p.tif") as made:
        planes = made.read()
        assert made.descriptions == ("ground", "bank", "mound")
        assert made.nodata == 255 and made.scales == pytest.approx((1 / 254,) * 3)
    valid = classes != 255
    np.testing.assert_array_equal(planes.argmax(axis=0)[valid], classes[valid])
    assert (planes[:, ~valid] == 255).all()


def test_the_class_map_does_not_depend_on_chunk_or_workers(uhrseg: Uhrseg, model: Path, raster: Path) -> None:
    for name, extra in {"a": (), "b": ("--chunk", 40), "c": ("--chunk", 37, "--workers", 2)}.items():
        result = uhrseg("predict", raster, "--model", model, "-o", f"{name}.tif", "--taper", "linear", *extra, *FLAT)
        assert result.exit_code == 0, result.stderr
    maps = []
    for name in "abc":
        with rasterio.open(f"{name}.tif") as made:
            maps.append(made.read(1))
    np.testing.assert_array_equal(maps[0], maps[1])
    np.testing.assert_array_equal(maps[0], maps[2])


def test_a_dry_run_prints_the_plan_and_writes_nothing(uhrseg: Uhrseg, model: Path, raster: Path) -> None:
    before = sorted(Path().rglob("*"))
    plain = uhrseg("predict", raster, "--model", model, "--dry-run", *FLAT)
    told = uhrseg("predict", raster, "--model", model, "--dry-run", "--json", *FLAT)
    assert (plain.exit_code, told.exit_code) == (0, 0), plain.stderr + told.stderr
    assert "windows" in plain.stdout
    assert json.loads(told.stdout)["windows"] == 4 * 6  # stride 24: ceil((90 - 8) / 24) x ceil((130 - 8) / 24)
    assert sorted(Path().rglob("*")) == before


def test_an_output_that_exists_needs_overwrite(uhrseg: Uhrseg, model: Path, raster: Path) -> None:
    Path("mounds.gpkg").write_bytes(b"precious")
    refused = uhrseg("predict", raster, "--model", model, "-o", "mounds.gpkg", *FLAT)
    assert refused.exit_code == 2
    assert "mounds.gpkg" in refused.stderr and "--overwrite" in refused.stderr
    assert Path("mounds.gpkg").read_bytes() == b"precious"
    replaced = uhrseg("predict", raster, "--model", model, "-o", "mounds.gpkg", "--overwrite", *FLAT)
    assert replaced.exit_code == 0, replaced.stderr
    assert len(pyogrio.read_dataframe("mounds.gpkg")) == 3


def test_bands_are_chosen_in_order_and_nodata_overridden(
    uhrseg: Uhrseg, model: Path, classes: NDArray[np.uint8]
) -> None:
    values = np.where(classes == 255, np.float32(77), classes)
    write_raster(Path("two.tif"), np.stack([np.full_like(values, 5), values]), nodata=None)
    result = uhrseg("predict", "two.tif", "--model", model, "-o", "out.tif", "-b", 2, "--nodata", 77, *FLAT)
    assert result.exit_code == 0, result.stderr
    with rasterio.open("out.tif") as made:
        np.testing.assert_array_equal(made.read(1), classes)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), ("no output", "-o")),
        (("-o", "out.docx"), (".docx", ".gpkg")),
        (("-o", "nowhere/out.gpkg"), ("nowhere",)),
        (("-o", "out.gpkg", "-b", "red"), ("'red'", "band")),
        (("-o", "out.gpkg", "-b", "2"), ("--bidx",)),
        (("-o", "out.gpkg", "--classes", "tower"), ("'tower'", "ground, bank, mound")),
        (("-o", "out.gpkg", "--device", "abacus"), ("abacus", "cpu")),
        (("-o", "out.gpkg", "--overlap", "0.9"), ("--overlap",)),
        (("-o", "out.gpkg", "--taper", "kaiser"), ("--taper", "hann")),
        (("-o", "out.gpkg", "--chunk", "0"), ("--chunk",)),
        (("-o", "parcel.tif", "--overwrite"), ("source",)),
    ],
)
def test_wrong_usage_is_refused_by_name(
    uhrseg: Uhrseg, model: Path, raster: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    before = sorted(Path().rglob("*"))
    result = uhrseg("predict", "parcel.tif", "--model", model, *arguments)
    assert result.exit_code == 2
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    assert not [word for word in words if word not in result.stderr], result.stderr
    assert sorted(Path().rglob("*")) == before


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("swinv2_t", ("architecture", "weights")),
        ("no-such-model", ("no-such-model", "model folder")),
        (".", ("card.toml",)),
    ],
)
def test_what_is_no_model_is_refused(uhrseg: Uhrseg, raster: Path, name: str, words: tuple[str, ...]) -> None:
    result = uhrseg("predict", raster, "--model", name, "-o", "out.gpkg")
    assert result.exit_code == 2
    assert not [word for word in words if word not in result.stderr], result.stderr


def test_a_missing_source_and_a_misfit_are_refused(uhrseg: Uhrseg, model: Path) -> None:
    missing = uhrseg("predict", "gone.tif", "--model", model, "-o", "out.gpkg")
    assert missing.exit_code == 2 and "gone.tif" in missing.stderr
    write_raster(Path("three.tif"), np.zeros((3, 40, 40), dtype=np.float32))
    misfit = uhrseg("predict", "three.tif", "--model", model, "-o", "out.gpkg")
    assert misfit.exit_code == 2
    assert "steps" in misfit.stderr and "3 band" in misfit.stderr and "--bidx" in misfit.stderr


def test_ctrl_c_ends_with_130_and_prints_the_command_that_resumes(model: Path, tmp_path: Path) -> None:
    write_raster(tmp_path / "large.tif", np.random.default_rng(0).uniform(0, 3, (1500, 1500)).astype(np.float32))
    before = sorted(tmp_path.iterdir())
    words = ("predict", "large.tif", "--model", "model", "-o", "out.tif", "--chunk", "256", *FLAT)
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TMPDIR": str(tmp_path)}
    process = subprocess.Popen(
        [sys.executable, "-m", "uhrseg", *words],
        cwd=tmp_path,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=listen_to_ctrl_c,
    )
    wait_for_work(process, tmp_path / ".out.tif.uhrseg")
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert "Traceback" not in stderr and not (tmp_path / "out.tif").exists()
    command = shlex.split(stderr.partition("To go on: ")[2])
    assert command == ["uhrseg", *words, "--resume"]
    resumed = subprocess.run([sys.executable, "-m", *command], cwd=tmp_path, env=environment, capture_output=True)
    assert resumed.returncode == 0, resumed.stderr
    with rasterio.open(tmp_path / "out.tif") as made, rasterio.open(tmp_path / "large.tif") as source:
        np.testing.assert_array_equal(made.read(1), np.digitize(source.read(1), [1, 2]))
    extra = {p.name for p in tmp_path.iterdir()} - {p.name for p in before}
    assert extra == {"out.tif", "out.tif.aux.xml", "out.qml"}


def listen_to_ctrl_c() -> None:
    """A shell starts background jobs with SIGINT ignored, and children inherit that: undo it."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def wait_for_work(process: subprocess.Popen[str], folder: Path) -> None:
    """Until a chunk is finished; fails when the program ends before."""
    for _ in range(6000):
        assert process.poll() is None, "the program ended before it could be interrupted"
        if any(folder.glob("chunk-*.json")):
            return
        time.sleep(0.02)
    pytest.fail("nothing was finished in time")
