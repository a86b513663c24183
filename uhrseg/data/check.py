"""What a recipe's data are, and everything that is wrong with them, before any training."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from odc.geo.geobox import GeoBox

from uhrseg.data.datasets import LabelledRaster, Split
from uhrseg.data.datasets.folder import labelled, rasters_of
from uhrseg.data.scenes import check_gsd, labels_on
from uhrseg.data.split import check_label_files, split_rasters
from uhrseg.errors import InputError, UhrsegError
from uhrseg.geo.bands import Derived
from uhrseg.geo.labels import crs_name
from uhrseg.geo.plan import shifted
from uhrseg.geo.scene import Scene, gdal_settings
from uhrseg.geo.stack import open_stack
from uhrseg.recipe import DataTable

__all__ = ["DataReport", "SplitReport", "check_data"]

SPLITS: tuple[Split, ...] = ("train", "val", "test")

Progress = Callable[[int, int], None]
"""Called with (done, total) scenes."""

_TILE = 2048  # side, in pixels, of the pieces that are read


@dataclass
class SplitReport:
    """One split: what it holds. `pixels` are valid ones, `labelled` those of them that have a class."""

    name: str
    files: int = 0
    pixels: int = 0
    labelled: int = 0
    counts: dict[str, int] = field(default_factory=dict)  # class name -> pixels
    sizes: set[tuple[int, int]] = field(default_factory=set)  # (width, height)
    gsd_m: set[tuple[float, float]] = field(default_factory=set)  # (x, y)
    crs: list[str] = field(default_factory=list)

    @property
    def shares(self) -> dict[str, float]:
        """Share of each class among the labelled pixels."""
        return {name: count / max(self.labelled, 1) for name, count in self.counts.items()}

    @property
    def size_range(self) -> str:
        """Width x height, smallest to largest."""
        return _range(self.sizes, "{} x {}")

    @property
    def gsd_range(self) -> str:
        """Width x height of a pixel in metres, smallest to largest; "-" without a CRS."""
        return _range(self.gsd_m, "{:.4g} x {:.4g}")

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        plain = asdict(self) | {"shares": self.shares}
        return plain | {"sizes": sorted(map(list, self.sizes)), "gsd_m": sorted(map(list, self.gsd_m))}


def _range(pairs: set[Any], form: str) -> str:
    """The smallest and the largest pair, once where they are the same."""
    return " to ".join(form.format(*pair) for pair in dict.fromkeys((min(pairs), max(pairs)))) if pairs else "-"


@dataclass
class DataReport:
    """The splits, and one sentence for each problem."""

    splits: list[SplitReport]
    problems: list[str]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, for JSON: ``splits`` {name: ...} and ``problems``."""
        return {"splits": {split.name: split.as_dict() for split in self.splits}, "problems": self.problems}


def check_data(data: DataTable, progress: Progress | None = None) -> DataReport:
    """Read all images and labels of a recipe's data once, in pieces, and report on every split it names.

    Problems are collected, not raised: missing or damaged files, sizes and grids that differ, values that are no class,
    files of two splits, splits without labels.
    """
    problems: list[str] = []
    found = _find(data, problems)
    total, done = sum(map(len, found.values())), 0
    reports = []
    for name, sources in found.items():
        report, before = SplitReport(name, counts=dict.fromkeys(data.legend.names, 0)), len(problems)
        for source in sources:
            with _collected(problems):
                _add(report, source, data)
            done += 1
            if progress:
                progress(done, total)
        if sources and not report.labelled and len(problems) == before:
            problems.append(f"the {name} split has no labelled pixel: check data.labels, data.ignore and data.aoi")
        reports.append(report)
    return DataReport(reports, problems)


class _collected:
    """Turns an `UhrsegError` raised inside into a line of `problems`."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> bool:
        if not isinstance(error, UhrsegError):
            return False
        if str(error) not in self.problems:
            self.problems.append(str(error))
        return True


def _find(data: DataTable, problems: list[str]) -> dict[Split, list[LabelledRaster]]:
    """The usable rasters of every split that the recipe names."""
    found: dict[Split, list[LabelledRaster]] = {}
    for split in SPLITS:
        if not getattr(data, split):
            continue
        found[split] = []
        with _collected(problems):
            rasters = rasters_of(data, split)
            if not rasters:
                raise InputError(f"the {split} split is empty: data.{split} leaves every raster out")
            for raster in rasters:
                with _collected(problems):
                    found[split].append(labelled(raster, data, split))
    if data.blocks is not None and not problems:
        with _collected(problems):
            train, val = split_rasters(data)
            found = {"train": train, "val": val, **{s: r for s, r in found.items() if s == "test"}}
    return found


def _add(report: SplitReport, source: LabelledRaster, data: DataTable) -> None:
    """Count one raster. Raises `InputError` or `RunError` at the first thing that is wrong with it."""
    scene = open_stack(source.rasters)
    report.files += 1
    report.sizes.add((scene.geobox.shape[1], scene.geobox.shape[0]))
    name = crs_name(scene.geobox.crs)
    if name not in report.crs:
        report.crs.append(name)
    if scene.gsd_m is not None:
        report.gsd_m.add((round(scene.gsd_m[1], 6), round(scene.gsd_m[0], 6)))
    check_gsd(scene, data.gsd_m)
    Derived(scene, data.band)  # refuses bands that do not fit
    check_label_files([source])
    with gdal_settings(scene.paths):
        for box in _tiles(scene):
            labels = labels_on(source, box, data, scene.geobox)
            valid = scene.read_native(box)[1]
            report.pixels += int(valid.sum())
            known = labels[valid & (labels < len(data.legend)) & (labels != data.ignore)]
            report.labelled += known.size
            counts = np.bincount(known, minlength=len(data.legend))
            for c in data.legend.classes:
                report.counts[c.name] += int(counts[c.id])


def _tiles(scene: Scene) -> Iterator[GeoBox]:
    height, width = scene.geobox.shape
    for row in range(0, height, _TILE):
        for col in range(0, width, _TILE):
            yield shifted(scene.geobox, row, col, (min(_TILE, height - row), min(_TILE, width - col)))
