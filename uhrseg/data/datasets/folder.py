"""Your own rasters: globs inside a folder, and a pattern that leads from each raster to its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uhrseg.errors import InputError
from uhrseg.recipe import DataTable

__all__ = ["LabelledRaster", "Split", "find"]

Split = Literal["train", "val"]


@dataclass(frozen=True)
class LabelledRaster:
    """One raster and the file that labels it."""

    raster: Path
    labels: Path

    @property
    def name(self) -> str:
        """Short name for messages and logs."""
        return self.raster.stem


def find(data: DataTable, split: Split) -> list[LabelledRaster]:
    """The rasters that the globs of `split` match inside ``data.root``, each once, with their labels.

    Raises `InputError` for a missing folder, a glob without a match or missing labels, naming it.
    """
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise InputError(f"data.root = {data.root!r} is no folder: pass --set data.root=FOLDER")
    rasters = _matches(root, data.train if split == "train" else data.val, split)
    if split == "val":
        both = set(rasters) & set(_matches(root, data.train, "train"))
        if both:
            raise InputError(f"{min(both)} is in data.train and in data.val: a raster belongs to one split")
    return [LabelledRaster(raster, _labels_of(raster, data.labels)) for raster in rasters]


def _matches(root: Path, globs: Sequence[str], split: str) -> list[Path]:
    found: set[Path] = set()
    for pattern in globs:
        matches = list(root.glob(pattern))
        if not matches:
            raise InputError(f"data.{split}: no file in {root} matches {pattern!r}")
        found.update(matches)
    return sorted(found)


def _labels_of(raster: Path, pattern: str) -> Path:
    name = raster.stem.rpartition("_")[0] or raster.stem
    try:
        path = raster.parent / pattern.format(stem=raster.stem, name=name)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"data.labels = {pattern!r} may hold {{stem}} and {{name}} only") from error
    if not path.is_file():
        raise InputError(f"{raster} has no labels: data.labels = {pattern!r} leads to {path}, which does not exist")
    return path
