"""Your own rasters: globs inside a folder, and a pattern that leads from each raster to its labels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uhrseg.data.blocks import Blocks
from uhrseg.errors import InputError
from uhrseg.recipe import DataTable

__all__ = ["LabelledRaster", "Split", "find"]

Split = Literal["train", "val"]


@dataclass(frozen=True)
class LabelledRaster:
    """One raster, the file that labels it, and where its labels count: in `aoi` and in a part of its `blocks`."""

    raster: Path
    labels: Path
    aoi: Path | None = None
    blocks: Blocks | None = None

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
    return [_labelled(raster, data) for raster in rasters]


def _matches(root: Path, globs: Sequence[str], split: str) -> list[Path]:
    found: set[Path] = set()
    for pattern in globs:
        matches = list(root.glob(pattern))
        if not matches:
            raise InputError(f"data.{split}: no file in {root} matches {pattern!r}")
        found.update(matches)
    return sorted(found)


def _labelled(raster: Path, data: DataTable) -> LabelledRaster:
    aoi = None if data.aoi is None else _beside(raster, data.aoi, "aoi")
    return LabelledRaster(raster, _beside(raster, data.labels, "labels"), aoi)


def _beside(raster: Path, pattern: str, key: str) -> Path:
    """The file that ``data.KEY`` leads to from the folder of `raster`."""
    name = raster.stem.rpartition("_")[0] or raster.stem
    try:
        path = raster.parent / pattern.format(stem=raster.stem, name=name)
    except (KeyError, IndexError, ValueError) as error:
        raise InputError(f"data.{key} = {pattern!r} may hold {{stem}} and {{name}} only") from error
    if not path.is_file():
        raise InputError(f"{raster} has no {key}: data.{key} = {pattern!r} leads to {path}, which does not exist")
    return path
