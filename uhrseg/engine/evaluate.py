"""Scoring a finished prediction against labels, rasters or polygons on either side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyogrio
import pyproj
from numpy.typing import NDArray
from odc.geo.geobox import GeoBox

from uhrseg.card import read_legend
from uhrseg.engine.fit import find_model, shipped_models
from uhrseg.engine.score import Confusion
from uhrseg.errors import InputError
from uhrseg.geo.labels import VECTOR_SUFFIXES, geometry_layer, read_labels
from uhrseg.geo.plan import pixel_offset, shifted
from uhrseg.geo.resample import nearest_labels
from uhrseg.geo.source import open_dataset
from uhrseg.geo.style import legend_from_tags
from uhrseg.legend import NODATA, Legend

__all__ = ["Evaluation", "evaluate", "legend_named"]

_TILE = 4096
"""Side of the square compared at a time: memory does not grow with the rasters."""

ReadIds = Callable[[GeoBox], NDArray[np.uint8]]


@dataclass(frozen=True)
class Evaluation:
    """Scores of one prediction (`Confusion.scores`) and how the two sides were brought together."""

    scores: dict[str, Any]
    legend: Legend
    grid: GeoBox
    notes: tuple[str, ...]


def evaluate(
    prediction: str | Path,
    labels: str | Path,
    legend: Legend | None = None,
    *,
    res: float | None = None,
    column: str | None = None,
) -> Evaluation:
    """Compare a prediction with labels, pixel by pixel, on the labels' grid (vector labels: on the prediction's).

    A class map on another grid or in another CRS is warped to that grid, nearest neighbour; polygons are burnt at
    pixel centres. Two vector files meet on a grid of `res` metres in the labels' CRS. `legend` defaults to the one
    that a class map of ours carries; `column` names the labels' attribute with the class. Labelled pixels that the
    prediction does not cover are counted and left out.

    Raises `InputError` when there is no legend, no common ground, or no way to bring the two together.
    """
    legend = legend or _legend_of(prediction) or _legend_of(labels)
    if legend is None:
        raise InputError(
            f"neither {prediction} nor {labels} says what its classes are: pass --legend (a model's name or folder, a "
            "class map, a recipe, or [[class]] tables with id, name and color)"
        )
    grid = _common_grid(Path(prediction), Path(labels), res)
    predicted_legend = replace(legend, ignore=NODATA)
    read_prediction, notes = _reader(Path(prediction), grid, predicted_legend, None, "prediction")
    read_reference, _ = _reader(Path(labels), grid, legend, column, "labels")
    confusion = Confusion(len(legend))
    for box in _tiles(grid):
        confusion.update(read_reference(box), read_prediction(box), legend.ignore)
    if not confusion.matrix.any():
        raise InputError(f"{prediction} and {labels} have no labelled pixel in common: are they of the same place?")
    return Evaluation(confusion.scores(legend), legend, grid, notes)


def legend_named(name: str | Path) -> Legend:
    """The legend of a file (see `read_legend`), of a class map that `predict` wrote, or of a model, by folder or name.

    Raises `InputError` for anything else.
    """
    path = Path(name)
    if path.is_file() and path.suffix.lower() in (".tif", ".tiff"):
        found = _legend_of(path)
        if found is None:
            raise InputError(f"{name} carries no legend: name a class map that uhrseg wrote, a card.toml or a recipe")
        return found
    if path.is_dir() or (not path.exists() and str(name) in shipped_models()):
        return read_legend(find_model(name) / "card.toml")
    return read_legend(path)


def _is_vector(path: Path) -> bool:
    if path.suffix.lower() == ".parquet":
        geometry_layer(path)  # refuses it
    return path.suffix.lower() in VECTOR_SUFFIXES


def _legend_of(path: str | Path) -> Legend | None:
    """The legend inside a class map that `predict` wrote; None for anything else."""
    if _is_vector(Path(path)):
        return None
    with open_dataset(str(path)) as dataset:
        return legend_from_tags(dataset.tags())


def _common_grid(prediction: Path, labels: Path, res: float | None) -> GeoBox:
    rasters = [path for path in (labels, prediction) if not _is_vector(path)]
    if rasters:
        return _grid_of(rasters[0])
    if res is None:
        raise InputError(f"{prediction} and {labels} are both polygons: pass --res METRES, the pixels to compare on")
    crs, bounds = _extent(labels)
    other_crs, other = _extent(prediction)
    if crs is None or other_crs is None or not crs.is_projected:
        raise InputError(
            f"{labels} and {prediction} need a CRS, and the labels one in metres, to be compared at --res {res:g}: "
            "reproject the labels (ogr2ogr -t_srs)"
        )
    other = pyproj.Transformer.from_crs(other_crs, crs, always_xy=True).transform_bounds(*other)
    step = res / crs.axis_info[0].unit_conversion_factor
    low, high = np.minimum(bounds[:2], other[:2]), np.maximum(bounds[2:], other[2:])
    return GeoBox.from_bbox((*low, *high), crs=crs.to_wkt(), resolution=step, tight=False)


def _grid_of(path: Path) -> GeoBox:
    with open_dataset(str(path)) as dataset:
        return GeoBox(dataset.shape, dataset.transform, dataset.crs.to_wkt() if dataset.crs else None)


def _extent(path: Path) -> tuple[pyproj.CRS | None, tuple[float, float, float, float]]:
    """CRS and bounds of a vector file."""
    info = pyogrio.read_info(path, layer=geometry_layer(path), force_total_bounds=True)
    crs = None if info["crs"] is None else pyproj.CRS.from_user_input(info["crs"])
    return crs, info["total_bounds"]


def _reader(
    path: Path, grid: GeoBox, legend: Legend, column: str | None, what: str
) -> tuple[ReadIds, tuple[str, ...]]:
    """A function GeoBox -> class ids (Y, X), and what was done to the file to get there."""
    if _is_vector(path):
        return (lambda box: read_labels(path, box, legend, column)), (f"{what}: polygons burnt at pixel centres",)
    own = _grid_of(path)
    if own.crs == grid.crs and _same_lattice(own, grid):
        return (lambda box: read_labels(path, box, legend)), ()
    if own.crs is None or grid.crs is None:
        raise InputError(f"{path} is on another grid than the labels and one of them has no CRS: give both their CRS")
    note = f"{what}: warped to the labels' grid (nearest neighbour)"
    return (lambda box: nearest_labels(path, box, legend)), (note,)


def _same_lattice(own: GeoBox, grid: GeoBox) -> bool:
    try:
        pixel_offset(own, grid)
    except InputError:
        return False
    return True


def _tiles(grid: GeoBox) -> Iterator[GeoBox]:
    height, width = grid.shape
    for row in range(0, height, _TILE):
        for col in range(0, width, _TILE):
            yield shifted(grid, row, col, (min(_TILE, height - row), min(_TILE, width - col)))
