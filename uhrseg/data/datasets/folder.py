"""Rasters on disk: globs inside a folder, and patterns that lead from each raster to its labels and further bands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from uhrseg.data.blocks import Blocks
from uhrseg.errors import InputError
from uhrseg.recipe import DataTable

__all__ = ["LabelledRaster", "Split", "find", "labelled", "rasters_of"]

Split = Literal["train", "val", "test"]


@dataclass(frozen=True)
class LabelledRaster:
    """One raster, the file that labels it, and where its labels count: in `aoi` and in a part of its `blocks`."""

    raster: Path
    labels: Path
    aoi: Path | None = None
    blocks: Blocks | None = None
    more: tuple[Path, ...] = ()

    @property
    def rasters(self) -> tuple[Path, ...]:
        """The raster and the files of its further bands, which make one scene (`uhrseg.geo.stack.open_stack`)."""
        return (self.raster, *self.more)

    @property
    def name(self) -> str:
        """Short name for messages and logs."""
        return self.raster.stem


def find(data: DataTable, split: Split) -> list[LabelledRaster]:
    """The rasters that the globs of `split` match inside ``data.root``, each once, with their labels.

    Raises `InputError` for a missing folder, a glob without a match, missing labels or a raster of two splits.
    """
    return [labelled(raster, data, split) for raster in rasters_of(data, split)]


def rasters_of(data: DataTable, split: Split) -> list[Path]:
    """The rasters of `split`, in name order. Raises `InputError` as `find` does, but for labels."""
    root = Path(data.root).expanduser()
    if not root.is_dir():
        raise InputError(f"data.root = {data.root!r} is no folder: pass --set data.root=FOLDER")
    rasters = _matches(root, getattr(data, split), split)
    for other in ("train", "val"):  # the splits before this one
        if other == split:
            break
        both = set(rasters) & set(_matches(root, getattr(data, other), other))
        if both:
            raise InputError(f"{min(both)} is in data.{other} and in data.{split}: a raster belongs to one split")
    return rasters


def _matches(root: Path, globs: Sequence[str], split: str) -> list[Path]:
    found: set[Path] = set()
    for pattern in globs:
        if pattern.startswith("!"):
            found.difference_update(root.glob(pattern[1:]))
            continue
        matches = list(root.glob(pattern))
        if not matches:
            raise InputError(f"data.{split}: no file in {root} matches {pattern!r}")
        found.update(matches)
    return sorted(found)


def labelled(raster: Path, data: DataTable, split: Split) -> LabelledRaster:
    """`raster` with the files that belong to it. Raises `InputError` for one that does not exist."""
    aoi = None if data.aoi is None else _beside(raster, data, split, data.aoi, "aoi")
    more = tuple(_beside(raster, data, split, pattern, "more") for pattern in data.more)
    return LabelledRaster(raster, _beside(raster, data, split, data.labels, "labels"), aoi, more=more)


def _beside(raster: Path, data: DataTable, split: Split, pattern: str, key: str) -> Path:
    """The file that ``data.KEY`` leads to from the folder of `raster`."""
    known = {
        "stem": raster.stem,
        "name": raster.stem.rpartition("_")[0] or raster.stem,
        "parent": raster.parent.name,
        "root": str(Path(data.root).expanduser().absolute()),
        "split": split,
    }
    try:
        path = raster.parent / pattern.format(**known)
    except (KeyError, IndexError, ValueError) as error:
        allowed = ", ".join(f"{{{name}}}" for name in known)
        raise InputError(f"data.{key} = {pattern!r} may hold {allowed} only") from error
    if not path.is_file():
        raise InputError(f"{raster} has no {key}: data.{key} = {pattern!r} leads to {path}, which does not exist")
    return path
