"""A segmentation is a pure function of place: whatever the chunk, the workers, or the shape of the raster."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pytest
import rasterio
import scipy.ndimage
import torch
from affine import Affine
from rasterio.transform import from_origin

import uhrseg.engine.predict as predict_module
from tests.engine.test_blend import full_buffer
from tests.rasters import (
    RELIEF,
    SMALL_SWIN,
    UTM,
    make_card,
    make_model,
    save_model,
    terrain,
    threshold_card,
    write_raster,
)
from uhrseg.engine.device import Runner
from uhrseg.engine.fit import load_model
from uhrseg.engine.predict import predict, predict_labels
from uhrseg.errors import InputError, RunError
from uhrseg.geo.bands import Derived, fill
from uhrseg.geo.coarse import build_coarse
from uhrseg.geo.scene import Scene
from uhrseg.legend import NODATA
from uhrseg.models import SegOutput

CPU = torch.device("cpu")


def with_holes(height: int, width: int, bands: int = 1) -> np.ndarray:
    ground = terrain(height, width, bands=bands)
    ground[:, height // 4 : height // 3, : width // 2] = -9999
    return ground


def classify(values: np.ndarray, thresholds: tuple[float, ...], valid: np.ndarray) -> np.ndarray:
    return np.where(valid, np.digitize(values, thresholds), NODATA).astype(np.uint8)


RASTERS: dict[str, Callable[[Path], Path]] = {
    "smaller than a window": lambda p: write_raster(p, with_holes(30, 40)),
    "3 x 5000": lambda p: write_raster(p, with_holes(3, 5000)),
    "one pixel wide": lambda p: write_raster(p, with_holes(300, 1)),
    "one pixel": lambda p: write_raster(p, terrain(1, 1)),
    "nodata": lambda p: write_raster(p, with_holes(150, 170), nodata=-9999),
    "nan": lambda p: write_raster(p, np.where(with_holes(150, 170) < 0, np.nan, with_holes(150, 170)), nodata=np.nan),
    "int16": lambda p: write_raster(p, np.where(with_holes(90, 99) < 0, 32767, 300).astype(np.int16), nodata=32767),
    "no crs": lambda p: write_raster(p, with_holes(100, 90), crs=None),
    "south-up": lambda p: write_raster(p, with_holes(100, 90), transform=Affine(1, 0, 5e5, 0, 1, 5e6)),
    "rotated": lambda p: write_raster(
        p, with_holes(100, 90), transform=Affine.translation(5e5, 5e6) @ Affine.rotation(30) @ Affine.scale(1, -1)
    ),
    "degrees": lambda p: write_raster(
        p, with_holes(100, 90), crs="EPSG:4326", transform=from_origin(14, 46, 1e-5, 1e-5)
    ),
    "all nodata": lambda p: write_raster(p, np.full((80, 80), -9999, np.float32), nodata=-9999),
    "striped": lambda p: write_raster(p, with_holes(200, 150), nodata=-9999, blockysize=1),
}


@pytest.mark.parametrize("kind", RASTERS)
def test_a_classifier_is_exact_on_every_kind_of_raster(tmp_path: Path, kind: str) -> None:
    source = RASTERS[kind](tmp_path / "source.tif")
    card = threshold_card((298.0, 303.0))
    labels = predict_labels(source, make_model(card), card, chunk=100)
    with rasterio.open(source) as dataset:
        values, valid = dataset.read(1), dataset.read_masks(1) > 0
    np.testing.assert_array_equal(labels, classify(values, (298.0, 303.0), valid & np.isfinite(values)))
    if kind == "all nodata":
        assert (labels == NODATA).all()


def test_the_context_window_shows_the_coarse_mean_at_the_right_place(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "a.tif", with_holes(200, 170), nodata=-9999)
    card = threshold_card((300.0,), scale="context", overlap=0.5)
    labels = predict_labels(source, make_model(card), card)
    scene = Scene.open(source)
    with build_coarse(Derived(scene, card.input.band), 4) as grid:
        cells, valid = grid.read(grid.geobox)
    values = np.kron(fill(cells, valid, grid.padding)[0], np.ones((4, 4)))[:200, :170]
    np.testing.assert_array_equal(labels, classify(values, (300.0,), scene.read(scene.geobox)[1]))


@pytest.fixture(scope="module")
def networks(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, Any]:
    ground = with_holes(230, 260)
    source = write_raster(tmp_path_factory.mktemp("net") / "dtm.tif", ground, nodata=-9999)
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    return source, make_model(card), card


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_network_gives_the_same_labels_whatever_the_chunk_and_workers(networks: Any, precision: str) -> None:
    source, module, card = networks
    whole = predict_labels(source, module, card, precision=precision, batch_size=3)
    assert len(np.unique(whole)) > 3, "the comparison needs several classes"
    for chunk, workers in ((64, 1), (100, 2), (128, 2), (1000, 2)):
        again = predict_labels(source, module, card, precision=precision, batch_size=3, chunk=chunk, workers=workers)
        np.testing.assert_array_equal(again, whole)


def test_threads_that_read_ahead_do_not_show(networks: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    source, module, card = networks
    alone = predict_labels(source, module, card, precision="fp32")
    monkeypatch.setattr(predict_module, "default_readers", lambda device: 4)
    prediction = predict(source, (module, card), precision="fp32")
    assert prediction._readers == 4
    np.testing.assert_array_equal(prediction.labels.values, alone)


def test_a_style_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "source.tif", terrain(40, 40))
    card = threshold_card((300.0,))
    (tmp_path / "map.qml").write_text("mine")
    with pytest.raises(InputError, match="map.qml exists already"):
        predict(source, (make_model(card), card)).write(tmp_path / "map.tif")
    assert (tmp_path / "map.qml").read_text() == "mine" and not (tmp_path / "map.tif").exists()
    predict(source, (make_model(card), card)).write(tmp_path / "map.tif", overwrite=True)
    assert (tmp_path / "map.qml").read_text() != "mine"


def test_a_network_equals_a_naive_full_buffer(networks: Any) -> None:
    source, module, card = networks
    prediction = predict(source, (module, card), precision="fp32")
    plan, scene = prediction.plan, prediction.scene
    derived = Derived(scene, card.input.band)
    run = Runner(module, card, CPU, "fp32", 1)
    logits = {}
    with build_coarse(derived, 4) as grid:
        for row in range(plan.rows):
            for col in range(plan.cols):
                pair = plan.pair(row, col)
                local = fill(*derived.read(pair.local), grid.padding)
                context = fill(*grid.read(pair.context), grid.padding)
                logits[row, col] = run(local[None], context[None])[0]
    _, valid = scene.read(scene.geobox)
    # Windows without a valid pixel are not run: they only cover nodata.
    expected = full_buffer_of(plan, logits, prediction._ramp).argmax(0).numpy()
    np.testing.assert_array_equal(prediction.labels.values, np.where(valid, expected, NODATA))


class _Echo(torch.nn.Module):
    strategy = "single"

    def forward(
        self, local: torch.Tensor, context: torch.Tensor | None = None, with_context_logits: bool | None = None
    ) -> SegOutput:
        """Its own input as logits."""
        return SegOutput(local)


def test_logits_are_the_callers_own() -> None:
    """The next call writes to the memory of its inputs again, which the simplest model gives back."""
    card = threshold_card((300.0,))
    run = Runner(_Echo(), card, CPU, "fp32", 1)
    first = run([np.ones((1, 8, 8), dtype=np.uint8)], None)
    before = first.clone()
    run([np.zeros((1, 8, 8), dtype=np.float32)], None)
    assert torch.equal(first, before)


def full_buffer_of(plan: Any, logits: dict, ramp: np.ndarray) -> torch.Tensor:
    classes = next(iter(logits.values())).shape[0]
    parts = [full_buffer(plan, {k: v[i : i + 3] for k, v in logits.items()}, ramp) for i in range(0, classes - 2)]
    return torch.cat([parts[0], *(p[2:] for p in parts[1:])])


def test_batch_size_changes_at_most_last_bits(networks: Any) -> None:
    source, module, card = networks
    one = predict_labels(source, module, card, precision="fp32", batch_size=1)
    many = predict_labels(source, module, card, precision="fp32", batch_size=5)
    assert (one == many).mean() >= 0.9999


def test_labels_is_a_lazy_array_that_knows_its_crs(networks: Any) -> None:
    source, module, card = networks
    labels = predict(source, (module, card), chunk=100).labels
    assert labels.chunks is not None and labels.dtype == np.uint8
    assert labels.rio.crs == rasterio.CRS.from_string(UTM) and labels.rio.nodata == NODATA
    with rasterio.open(source) as dataset:
        assert labels.rio.transform() == dataset.transform and labels.shape == dataset.shape


def test_outputs_reopen_with_other_tools(tmp_path: Path) -> None:
    ground = with_holes(210, 190)
    source = write_raster(tmp_path / "dtm.tif", ground, nodata=-9999)
    card = threshold_card((296.0, 301.0, 305.0))
    prediction = predict(source, (make_model(card), card), chunk=100, workers=2)
    names = ["classes.tif", "all.gpkg", "all.fgb", "all.geojson", "all.parquet"]
    ticks: list[tuple[int, int]] = []
    report = prediction.write(
        *(tmp_path / n for n in names), probabilities=tmp_path / "p.tif", progress=lambda d, t: ticks.append((d, t))
    )
    valid = ground[0] > 0
    expected = classify(ground[0], (296.0, 301.0, 305.0), valid)
    with rasterio.open(tmp_path / "classes.tif") as classes:
        np.testing.assert_array_equal(classes.read(1), expected)
        assert classes.crs == rasterio.CRS.from_string(UTM) and classes.nodata == NODATA
        assert classes.tags()["UHRSEG_MODEL"] == "test 1" and classes.colormap(1)[1] == (228, 26, 28, 255)
    with rasterio.open(tmp_path / "p.tif") as planes:
        shares = planes.read().astype(float)
        assert planes.count == 4 and (shares[:, ~valid] == 255).all()
        np.testing.assert_allclose(shares[:, valid].sum(axis=0), 254, atol=2)
    counts = {k: scipy.ndimage.label(expected == k)[1] for k in (1, 2, 3)}
    table = pyogrio.read_dataframe(tmp_path / "all.gpkg")
    assert table["class_id"].value_counts().to_dict() == counts
    assert table.geometry.is_valid.all() and table.crs.to_epsg() == 32633
    assert table["area_m2"].sum() == pytest.approx(np.isin(expected, (1, 2, 3)).sum())
    assert table["confidence"].between(0, 1).all()
    assert report.class_area_m2 is not None and report.polygons == sum(counts.values())
    assert report.class_area_m2["class2"] == pytest.approx((expected == 2).sum())
    assert report.as_dict()["outputs"] == [str(tmp_path / n) for n in ("classes.tif", *names[1:], "p.tif")]
    assert ticks[-1] == (report.windows, report.windows)
    left = {p.name for p in tmp_path.iterdir()} - {"dtm.tif", "p.tif", *names}
    assert all(name.startswith("classes.") for name in left), "only sidecars of the class map"


def test_min_area_and_classes_choose_polygons(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(120, 120))
    card = threshold_card((296.0, 301.0, 305.0))
    prediction = predict(source, (make_model(card), card))
    prediction.write(tmp_path / "a.gpkg", min_area_m2=20, classes=["class2"])
    table = pyogrio.read_dataframe(tmp_path / "a.gpkg")
    assert set(table["class"]) == {"class2"} and table["area_m2"].min() >= 20


@pytest.mark.parametrize(
    ("outputs", "options", "message"),
    [
        ((), {}, "no output was named"),
        (("a.shp",), {}, "outputs end in one of"),
        (("there.gpkg",), {}, "--overwrite"),
        (("dtm.tif",), {"overwrite": True}, "the source itself"),
        (("no/such/a.gpkg",), {}, "is no folder"),
        (("a.gpkg", "a.gpkg"), {}, "named twice"),
        (("a.geojson",), {}, "no CRS"),
        (("a.gpkg",), {"min_area_m2": 5}, "no CRS"),
        (("a.gpkg",), {"classes": ["mound"]}, "class0, class1"),
    ],
)
def test_outputs_that_cannot_be_made_are_refused_before_any_work(
    tmp_path: Path, outputs: tuple[str, ...], options: dict[str, Any], message: str
) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(20, 20), crs=None)
    (tmp_path / "there.gpkg").write_text("mine")
    card = threshold_card((300.0,))
    before = {p.name: p.stat().st_mtime for p in tmp_path.iterdir()}
    with pytest.raises(InputError, match=message):
        predict(source, (make_model(card), card)).write(*(tmp_path / o for o in outputs), **options)
    assert {p.name: p.stat().st_mtime for p in tmp_path.iterdir()} == before


def test_a_read_error_half_way_leaves_no_output(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(600, 300), compress="deflate", tiled=True)
    source.write_bytes(source.read_bytes()[: source.stat().st_size * 2 // 3])
    card = threshold_card((300.0,), context_factor=None)
    with pytest.raises(RunError, match=r"dtm.tif cannot be read"):
        predict(source, (make_model(card), card)).write(tmp_path / "a.gpkg", tmp_path / "a.tif")
    assert [p.name for p in tmp_path.iterdir()] == ["dtm.tif"]


def test_an_interruption_stops_all_threads_and_leaves_no_output(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(400, 400))
    card = threshold_card((300.0,))

    def interrupt(done: int, total: int) -> None:
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        predict(source, (make_model(card), card), chunk=100, workers=2).write(tmp_path / "a.gpkg", progress=interrupt)
    assert sorted(p.name for p in tmp_path.iterdir()) == [".a.gpkg.uhrseg", "dtm.tif"], "nothing but what resumes it"
    assert not [t for t in threading.enumerate() if t.name.startswith("uhrseg-")]


def test_a_model_that_gives_nonsense_is_an_error(tmp_path: Path) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(100, 100))
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    module = make_model(card)
    with torch.no_grad():
        next(module.parameters()).fill_(float("nan"))
    with pytest.raises(RunError, match="not finite"):
        predict_labels(source, module, card)


@pytest.mark.parametrize(
    ("bands", "gsd", "crs", "message"),
    [
        (3, None, UTM, r"expects 1 band\(s\) band1; dtm.tif has 3 band\(s\).*--bidx"),
        (
            1,
            0.5,
            UTM,
            r"at 0.5 m; dtm.tif has pixels of 1 x 1 m: read it at the model's with --res card, "
            "or resample it with gdalwarp -tr 0.5 0.5",
        ),
        (1, 1.0, None, "dtm.tif has no CRS"),
        (1, 1.0, "EPSG:3857", r"gdalwarp -t_srs EPSG:... \(one in metres\) -tr 1 1"),
    ],
)
def test_a_scene_that_does_not_fit_is_refused(
    tmp_path: Path, bands: int, gsd: float | None, crs: str | None, message: str
) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(20, 20, bands=bands), crs=crs)
    card = threshold_card((300.0,), gsd_m=gsd)
    with pytest.raises(InputError, match=message):
        predict(source, (make_model(card), card))


@pytest.mark.parametrize(("strategy", "factor"), [("relays", None), ("single", 4)])
def test_a_card_that_contradicts_its_network_is_refused(tmp_path: Path, strategy: str, factor: int | None) -> None:
    source = write_raster(tmp_path / "dtm.tif", terrain(20, 20))
    card = make_card(SMALL_SWIN | {"strategy": strategy}, RELIEF, classes=4, context_factor=factor)
    with pytest.raises(InputError, match="correct its card"):
        predict(source, (make_model(card), card))


def test_a_compiled_model_gives_the_same_labels(tmp_path: Path) -> None:
    """Compiled for real it takes a minute and passes; here the graph runs eagerly."""
    source = write_raster(tmp_path / "dtm.tif", terrain(90, 100), crs=None)
    card = threshold_card((298.0, 303.0))
    plain = predict_labels(source, make_model(card), card)
    with torch.compiler.set_stance("force_eager"):
        compiled = predict_labels(source, make_model(card), card, compiled=True)
    np.testing.assert_array_equal(compiled, plain)


def test_forecast_counts_windows_and_times_the_model(networks: Any) -> None:
    source, module, card = networks
    prediction = predict(source, (module, card), chunk=128)
    forecast = prediction.forecast()
    assert forecast.windows == prediction.windows > prediction.plan.windows
    assert forecast.chunks == len(prediction.chunks) == 6 and forecast.seconds > 0
    assert any("windows" in line for line in forecast.lines())


def test_model_folders_are_checked(tmp_path: Path) -> None:
    card = make_card(SMALL_SWIN, RELIEF, classes=4)
    folder = save_model(card, make_model(card), tmp_path / "model")
    module, read = load_model(folder)
    assert not module.training and read.legend == card.legend
    with open(folder / "model.safetensors", "ab") as file:
        file.write(b"\0")
    with pytest.raises(InputError, match="sha256 differs"):
        load_model(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="weights: model.safetensors is missing"):
        load_model(folder)
    with pytest.raises(InputError, match="architecture without weights"):
        load_model("swinv2_t")
    with pytest.raises(InputError, match="no model is called"):
        load_model("no-such-model")
