"""Gleason 2019: one label map per image from the maps of up to six pathologists."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import RasterioError
from rasterio.windows import Window

from uhrseg.errors import InputError
from uhrseg.geo.source import open_dataset

__all__ = ["MAJORITY", "majority", "prepare"]

MAJORITY = "Maps_majority"
"""Folder that `prepare` writes, beside the annotators' ``Maps1_T`` to ``Maps6_T``."""

_VALUES = 7  # 0, 1 and 6: benign; 2: unused by the annotators; 3, 4, 5: Gleason grades
_ROWS = 512  # read at a time


def prepare(root: Path) -> Path:
    """Write ``Maps_majority/<image>_classimg_nonconvex.png`` for every image that has maps; returns the folder.

    The folder appears when it is complete. Raises `InputError` when it exists, and for maps that are missing, of
    different sizes or hold values that are no Gleason label.
    """
    out = root / MAJORITY
    if out.exists():
        raise InputError(f"{out} exists: delete it to make it again")
    maps = annotators_maps(root)
    partial = root / f"{MAJORITY}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir()
    try:
        for name, paths in maps.items():
            _write(partial / name, majority(paths))
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return partial.rename(out)


def annotators_maps(root: Path) -> dict[str, list[Path]]:
    """File name -> the maps of that name in all annotators' folders, in name order; `InputError` for none."""
    folders = sorted(path for path in root.glob("Maps*") if path.is_dir() and not path.name.startswith(MAJORITY))
    found: dict[str, list[Path]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*_classimg_nonconvex.png")):
            found.setdefault(path.name, []).append(path)
    if not found:
        raise InputError(f"{root} has no Maps1_T to Maps6_T with *_classimg_nonconvex.png: name the data set's folder")
    return dict(sorted(found.items()))


def majority(paths: Sequence[Path]) -> NDArray[np.uint8]:
    """The value (Y, X) uint8 that most maps give a pixel; the smallest of those that are equally frequent."""
    datasets = [open_dataset(str(path)) for path in paths]
    try:
        height, width = datasets[0].shape
        for path, dataset in zip(paths, datasets, strict=True):
            if dataset.shape != (height, width) or dataset.count != 1:
                raise InputError(
                    f"{path} is {dataset.width} x {dataset.height} px with {dataset.count} band(s), but {paths[0]} is "
                    f"{width} x {height} px: maps of one image have one size and one band"
                )
        result = np.empty((height, width), np.uint8)
        for top in range(0, height, _ROWS):
            rows = min(_ROWS, height - top)
            votes = np.zeros((_VALUES, rows, width), np.uint8)
            for path, dataset in zip(paths, datasets, strict=True):
                values = _read(path, dataset, Window(0, top, width, rows))
                for value in range(_VALUES):
                    votes[value] += values == value
            result[top : top + rows] = votes.argmax(0)  # the first of the largest
        return result
    finally:
        for dataset in datasets:
            dataset.close()


def _read(path: Path, dataset: rasterio.DatasetReader, window: Window) -> NDArray[np.uint8]:
    try:
        values = dataset.read(1, window=window)
    except RasterioError as error:
        raise InputError(f"{path} cannot be read, its file may be damaged: {error}") from error
    if values.max(initial=0) >= _VALUES:
        raise InputError(f"{path} holds the value {values.max()}, but Gleason labels are 0 to {_VALUES - 1}")
    return values


def _write(path: Path, values: NDArray[np.uint8]) -> None:
    height, width = values.shape
    with rasterio.open(path, "w", driver="PNG", count=1, height=height, width=width, dtype="uint8") as out:
        out.write(values, 1)
