"""Suite ``simulated``: the shipped models on parcels with artificial archaeology, made on the spot from a seed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from uhrseg.benchmark.provenance import fingerprint, provenance
from uhrseg.benchmark.rows import Row
from uhrseg.card import ModelCard
from uhrseg.data.parcels import parcel, write_layer
from uhrseg.engine.device import resolve_device, resolve_precision
from uhrseg.engine.fit import load_model, shipped_models
from uhrseg.engine.predict import predict_labels
from uhrseg.engine.score import Confusion
from uhrseg.geo.labels import read_labels
from uhrseg.geo.scene import Scene

__all__ = ["FEATURES", "simulated"]

FEATURES = ("background", "mound", "kiln_platform", "enclosure", "trapping_pit")
"""What the parcels hold; models with other classes are left out."""

SIZE, PARCELS, SEED = 1024, 3, 2026


def simulated(size: int = SIZE, parcels: int = PARCELS, seed: int = SEED, device: str = "auto") -> Iterator[Row]:
    """One row per shipped model that finds these features: IoU per class over all parcels, mIoU per parcel."""
    with tempfile.TemporaryDirectory(prefix="uhrseg-simulated-") as folder:
        files = [_write(Path(folder), size, seed + i) for i in range(parcels)]
        data = fingerprint(path for pair in files for path in pair)
        for name, path in shipped_models().items():
            if tuple(ModelCard.read(path).legend.names) == FEATURES:
                yield _row(name, files, seed, data, device)


def _write(folder: Path, size: int, seed: int) -> tuple[Path, Path]:
    heights, labels = parcel(size, seed)
    dtm = write_layer(folder / f"parcel{seed}_dtm.tif", heights, "dtm")
    return dtm, write_layer(folder / f"parcel{seed}_mask.tif", labels, "class")


def _row(name: str, files: list[tuple[Path, Path]], seed: int, data: str, device: str) -> Row:
    module, card = load_model(name)
    where = resolve_device(device)
    precision = resolve_precision("auto", where)
    total, scenes, started = Confusion(len(card.legend)), {}, time.perf_counter()
    for dtm, mask in files:
        one = Confusion(len(card.legend))
        prediction = predict_labels(dtm, module, card, device=str(where), precision=precision)
        one.update(read_labels(mask, Scene.open(dtm).geobox, card.legend), prediction, card.ignore)
        scenes[dtm.stem] = one.scores(card.legend)["miou"]
        total.matrix += one.matrix
    seconds = time.perf_counter() - started
    scores = total.scores(card.legend)
    metrics = {"mIoU": scores["miou"], "accuracy": scores["accuracy"]}
    metrics |= {f"IoU {c}": values["iou"] for c, values in scores["classes"].items()}
    metrics["Mpx/s"] = total.matrix.sum() / 1e6 / seconds
    origin = provenance(str(where), precision=precision, model_sha256=card.weights.sha256, data=data)
    return Row(
        suite="simulated",
        name=name,
        seed=seed,
        metrics=metrics,
        scenes=scenes,
        rule=scores["miou_rule"],
        note="simulated hills, artificial features: a test of the software, no archaeological accuracy",
        provenance=origin,
    )
