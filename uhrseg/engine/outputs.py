"""The outputs of one prediction: checked before any work, written as strips arrive, complete or not there."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

import uhrseg
from uhrseg.card import ModelCard
from uhrseg.engine.chunks import Strip
from uhrseg.engine.device import Runner
from uhrseg.engine.memory import peak_rss_mb
from uhrseg.errors import InputError
from uhrseg.geo.scene import Scene
from uhrseg.geo.sink import ClassMapSink, PlanesSink
from uhrseg.geo.vector import DRIVERS, check_polygon_file, pixel_areas, polygonise, write_polygons

__all__ = ["Outputs", "Report"]

_CLASS_MAP = ".tif"


@dataclass(frozen=True)
class Report:
    """What a prediction made and what it took; `as_dict` is the ``--json`` object of the command line."""

    outputs: tuple[str, ...]
    pixels: int
    windows: int
    seconds: dict[str, float]
    peak_rss_mb: float
    device: str
    precision: str
    class_area_m2: dict[str, float] | None
    class_pixels: dict[str, int]
    polygons: int | None
    model: dict[str, str]
    version: str

    def as_dict(self) -> dict[str, Any]:
        """The report as plain data."""
        return {**self.__dict__, "outputs": list(self.outputs)}


class Outputs:
    """A context manager around the outputs of one run: `take` strips, then `finish`; an exception leaves nothing.

    Inside it, `folder` is a working folder beside the first output, removed at the end. Raises `InputError` from the
    constructor for outputs that cannot be made.
    """

    def __init__(
        self, card: ModelCard, scene: Scene, paths: Sequence[str | Path], probabilities: str | Path | None,
        overwrite: bool, min_area_m2: float | None, classes: Sequence[str] | None,
    ) -> None:  # fmt: skip
        self.card = card
        self.scene = scene
        self.legend = card.legend
        self.maps = [p for p in map(Path, paths) if p.suffix.lower() == _CLASS_MAP]
        self.vectors = [p for p in map(Path, paths) if p.suffix.lower() != _CLASS_MAP]
        self.planes = Path(probabilities) if probabilities else None
        self.min_area_m2 = min_area_m2
        self.classes = self.legend.ids_of(list(classes)) if classes else self.legend.foreground
        self._counts = np.zeros((scene.geobox.shape[0], len(self.legend)), dtype=np.int64)  # per row and class
        self._lock = Lock()
        self._seconds = {"write": 0.0, "vector": 0.0}
        self._polygons: int | None = None
        self._check(overwrite)

    @property
    def paths(self) -> list[Path]:
        """Every output."""
        return [*self.maps, *self.vectors, *([self.planes] if self.planes else [])]

    @property
    def needs_confidence(self) -> bool:
        """Whether the softmax is needed at all."""
        return bool(self.vectors or self.planes)

    @property
    def needs_probabilities(self) -> bool:
        """Whether all classes' probabilities are written."""
        return self.planes is not None

    def _check(self, overwrite: bool) -> None:
        if not self.paths:
            raise InputError("no output was named: give one, e.g. -o mounds.gpkg or -o classes.tif")
        sources = {Path(p).resolve() for p in self.scene.paths}
        for path in self.paths:
            if path.resolve() in sources:
                raise InputError(f"{path} is the source itself: choose another output")
            if path.exists() and not overwrite:
                raise InputError(f"{path} exists already: pass --overwrite to replace it, or choose another name")
            if not path.parent.is_dir():
                raise InputError(f"{path.parent} is no folder: create it first")
        if len({p.resolve() for p in self.paths}) < len(self.paths) or len(self.maps) > 1:
            raise InputError("an output was named twice: name one class map, and each polygon file once")
        self._check_vectors()

    def _check_vectors(self) -> None:
        for path in self.vectors:
            if path.suffix.lower() not in DRIVERS:
                legal = " ".join([_CLASS_MAP, *DRIVERS])
                raise InputError(f"{path} ends in {path.suffix!r}: outputs end in one of {legal}")
            check_polygon_file(path, self.scene.geobox.crs, overwrite=True)
        if self.min_area_m2 is not None and self.scene.geobox.crs is None:
            raise InputError("--min-area is in m2, but the scene has no CRS: give it one with gdal_edit -a_srs")

    def __enter__(self) -> Self:
        self.folder = Path(tempfile.mkdtemp(prefix=".uhrseg-", dir=self.paths[0].parent))
        geobox, tags = self.scene.geobox, self._tags()
        path = self.maps[0] if self.maps else self.folder / "labels.tif"
        self._labels = ClassMapSink(path, geobox, self.legend, tags)
        self._confidence = None
        if self.vectors:
            self._confidence = PlanesSink(self.folder / "confidence.tif", geobox, ["confidence"], tags, cog=False)
        self._planes = PlanesSink(self.planes, geobox, self.legend.names, tags) if self.planes else None
        return self

    def _tags(self) -> dict[str, str]:
        return {
            "TIFFTAG_SOFTWARE": f"uhrseg {uhrseg.__version__}",
            "UHRSEG_MODEL": f"{self.card.name} {self.card.version}",
            "UHRSEG_MODEL_SHA256": self.card.weights.sha256,
        }

    def take(self, strip: Strip) -> None:
        """Write one finished strip; any thread may call it."""
        started = time.perf_counter()
        self._labels.write(strip.rows, strip.cols, strip.labels)
        if self._confidence is not None and strip.confidence is not None:
            self._confidence.write(strip.rows, strip.cols, strip.confidence[np.newaxis])
        if self._planes is not None and strip.probabilities is not None:
            self._planes.write(strip.rows, strip.cols, strip.probabilities)
        counts = _class_counts(strip.labels, len(self.legend))
        with self._lock:
            self._counts[strip.rows] += counts
            self._seconds["write"] += time.perf_counter() - started

    def finish(self) -> None:
        """Make polygons from the finished class map, then give every output its final name."""
        started = time.perf_counter()
        self._labels.flush()
        if self._confidence is not None:
            self._confidence.flush()
            for path in self.vectors:
                self._polygons = self._write_polygons(path, self._confidence.tiled_path)
        self._seconds["vector"] = time.perf_counter() - started
        started = time.perf_counter()
        if self.maps:
            self._labels.close()
        if self._planes is not None:
            self._planes.close()
        self._seconds["write"] += time.perf_counter() - started

    def _write_polygons(self, path: Path, confidence: Path) -> int:
        records = polygonise(
            self._labels.tiled_path, confidence, self.legend, self.classes, min_area_m2=self.min_area_m2
        )
        return write_polygons(records, path, self.scene.geobox.crs, self.legend, overwrite=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for sink in (self._labels, self._confidence, self._planes):
            if sink is not None:
                sink.abort()  # nothing to undo for an output that took its final name
        shutil.rmtree(self.folder, ignore_errors=True)

    def report(self, runner: Runner, windows: int, read_s: float, total_s: float) -> Report:
        """What was made and what it took."""
        counts, names = self._counts, self.legend.names
        areas = pixel_areas(self.scene.geobox)
        areas_m2 = None if areas is None else dict(zip(names, (areas @ counts).tolist(), strict=True))
        return Report(
            outputs=tuple(str(p) for p in self.paths),
            pixels=int(np.prod(self.scene.geobox.shape)),
            windows=windows,
            seconds={"total": total_s, "read": read_s, "model": runner.seconds, **self._seconds},
            peak_rss_mb=peak_rss_mb(),
            device=str(runner.device),
            precision=runner.precision,
            class_area_m2=areas_m2,
            class_pixels=dict(zip(names, counts.sum(axis=0).tolist(), strict=True)),
            polygons=self._polygons,
            model={"name": self.card.name, "sha256": self.card.weights.sha256},
            version=uhrseg.__version__,
        )


def _class_counts(labels: NDArray[np.uint8], classes: int) -> NDArray[np.int64]:
    """Pixels of each row and class (Y, classes); four times as fast as `np.bincount` for a few classes."""
    bits = (np.packbits(labels == k, axis=1) for k in range(classes))
    return np.stack([np.bitwise_count(b).sum(axis=1, dtype=np.int64) for b in bits], axis=1)
