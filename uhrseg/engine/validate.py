"""Validation while training: whole stitched scenes, or blocks held out of them, scored as `predict` would draw them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning_fabric import Fabric
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox
from rich.table import Table
from torch import nn

from uhrseg.card import ModelCard
from uhrseg.data.datasets import LabelledRaster
from uhrseg.data.scenes import labels_on
from uhrseg.engine.device import resolve_precision
from uhrseg.engine.predict import predict
from uhrseg.engine.score import Confusion
from uhrseg.engine.step import reduced
from uhrseg.errors import InputError, RunError
from uhrseg.geo.plan import shifted
from uhrseg.geo.scene import Scene, gdal_settings
from uhrseg.geo.stack import open_stack
from uhrseg.legend import Legend
from uhrseg.recipe import Recipe
from uhrseg.report.panels import draw_panels
from uhrseg.report.quicklook import View

__all__ = ["feature_part", "labelled_parts", "score_columns", "score_table", "validate", "view_of"]

_QUICKLOOKS = 4
"""Rasters drawn, the first in name order."""

_SIDE = 768
"""Largest side of a quicklook in pixels."""

_SCORES = ("iou", "f1", "precision", "recall")


def validate(
    module: nn.Module,
    card: ModelCard,
    rasters: Sequence[LabelledRaster],
    recipe: Recipe,
    fabric: Fabric,
    run_dir: Path | None = None,
) -> dict[str, Any]:
    """Scores of stitched scenes where they are labelled (`Confusion.scores`); processes share the scenes.

    Leaves `module` in eval. Quicklooks of the first rasters go to ``quicklooks/`` of `run_dir`.
    """
    module.eval()
    confusion = Confusion(len(card.legend))
    precision = resolve_precision(recipe.train.precision, fabric.device)
    for index in range(fabric.global_rank, len(rasters), fabric.world_size):
        source = rasters[index]
        folder = run_dir / "quicklooks" if run_dir and index < _QUICKLOOKS else None
        try:
            for labels, prediction, box in labelled_parts(source, module, card, recipe, str(fabric.device), precision):
                confusion.update(labels, prediction, recipe.data.ignore)
                if folder is not None:
                    _draw_quicklook(source, labels, prediction, box, card, folder)
                folder = None  # one of each raster
        except InputError as error:
            if fabric.is_global_zero:
                raise
            raise RunError(str(error)) from error  # only this process saw it: it must speak
    counts = torch.from_numpy(np.append(confusion.matrix.ravel(), confusion.unpredicted)).to(fabric.device)
    counts = reduced(fabric, counts, "sum").cpu()
    confusion.matrix = counts[:-1].reshape(confusion.matrix.shape).numpy()
    confusion.unpredicted = int(counts[-1])
    return confusion.scores(card.legend)


def labelled_parts(
    source: LabelledRaster, module: nn.Module, card: ModelCard, recipe: Recipe, device: str, precision: str
) -> Iterator[tuple[NDArray[np.uint8], NDArray[np.uint8], GeoBox]]:
    """Labels, prediction and grid of the parts of a raster that hold any label; the others are not predicted."""
    size = None if source.blocks is None else max(source.blocks.size, 4 * card.window.size)
    whole = predict(open_stack(source.rasters), (module, card), device=device, precision=precision, chunk=size)
    lazy, grid = whole.labels, whole.plan.geobox
    for chunk in whole.chunks:
        box = shifted(grid, chunk.rows.start, chunk.cols.start, chunk.shape)
        labels = labels_on(source, box, recipe.data, grid)
        if (labels != recipe.data.ignore).any():
            yield labels, np.asarray(lazy[chunk.rows, chunk.cols].values), box


def _draw_quicklook(
    source: LabelledRaster,
    labels: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    box: GeoBox,
    card: ModelCard,
    folder: Path,
) -> None:
    """Image, labels and prediction side by side, at full resolution, around a feature."""
    rows, cols = feature_part(labels, card.legend, _SIDE)
    title = f"{source.name}, rows {rows.start} to {rows.stop}, columns {cols.start} to {cols.stop}"
    view = view_of(source, box, rows, cols)
    draw_panels(view, labels[rows, cols], prediction[rows, cols], card.legend, title, folder / f"{source.name}.png")


def view_of(source: LabelledRaster, box: GeoBox, rows: slice, cols: slice) -> View:
    """The raster's first three bands (or its first) in rows and columns of `box`."""
    scene = Scene.open(source.raster)
    part = shifted(box, rows.start, cols.start, (rows.stop - rows.start, cols.stop - cols.start))
    with gdal_settings(scene.paths):
        values, valid = scene.read(part)
    values = values[:3] if len(values) >= 3 else values[:1]
    byte = bool(valid.any()) and len(values) == 3 and values[:, valid].min() >= 0 and values[:, valid].max() <= 255
    return View(np.where(valid, values, np.nan).astype(np.float32), valid, part, byte)


def feature_part(labels: NDArray[np.uint8], legend: Legend, side: int) -> tuple[slice, slice]:
    """At most `side` pixels a side around the feature pixel nearest to their median; around the middle without any."""
    found = np.argwhere(np.isin(labels, list(legend.foreground)))  # (n, 2)
    centre = np.array(labels.shape) // 2
    if len(found):
        centre = found[np.abs(found - np.median(found, axis=0)).sum(1).argmin()]
    starts = [min(max(int(c) - side // 2, 0), max(n - side, 0)) for c, n in zip(centre, labels.shape, strict=True)]
    rows, cols = (slice(s, min(s + side, n)) for s, n in zip(starts, labels.shape, strict=True))
    return rows, cols


def score_columns(names: Sequence[str], scores: dict[str, Any] | None = None) -> dict[str, float | None]:
    """The validation columns of ``metrics.csv``, empty without `scores`."""
    iou = {name: None if scores is None else scores["classes"][name]["iou"] for name in names}
    return {"val_miou": scores and scores["miou"]} | {f"val_iou_{name}": value for name, value in iou.items()}


def score_table(epoch: int, scores: dict[str, Any]) -> Table:
    """A table for people: IoU, F1, precision, recall and pixels of each class, and the mean with its rule."""
    mean = scores["miou"]
    title = f"epoch {epoch + 1}: mean IoU " + ("undefined" if mean is None else f"{mean:.3f}")
    table = Table(title=title, caption=scores["miou_rule"], title_justify="left", caption_justify="left")
    table.add_column("class")
    for column in _SCORES:
        table.add_column(column, justify="right")
    table.add_column("pixels", justify="right")
    for name, values in scores["classes"].items():
        cells = ("-" if values[c] is None else f"{values[c]:.3f}" for c in _SCORES)
        table.add_row(name, *cells, f"{values['pixels']:,}")
    return table
