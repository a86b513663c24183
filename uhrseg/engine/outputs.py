"""The outputs of one prediction: checked before any work, made of finished chunks, complete or not there."""

from __future__ import annotations

import hashlib
import logging
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
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
from uhrseg.engine.journal import Partials, lock, work_folder
from uhrseg.engine.memory import peak_rss_mb, return_free_memory
from uhrseg.errors import InputError
from uhrseg.geo.area import Area
from uhrseg.geo.mosaic import write_mosaic
from uhrseg.geo.overviews import write_levels
from uhrseg.geo.plan import Chunk
from uhrseg.geo.scene import Scene
from uhrseg.geo.simplify import check_simplify, simplified
from uhrseg.geo.sink import Region, publish
from uhrseg.geo.style import write_raster_style
from uhrseg.geo.vector import DRIVERS, check_polygon_file, pixel_areas, polygonise, write_polygons
from uhrseg.legend import Legend

__all__ = ["Outputs", "Report"]

_CLASS_MAP = ".tif"
_log = logging.getLogger(__name__)


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
    """A context manager around the outputs of one run: `partials` takes chunks, `finish` makes the outputs of them.

    Inside it, `folder` is the working folder beside the first output (`uhrseg.engine.journal`). It goes when the run is
    done, and also when it fails before anything was finished; otherwise it stays, and `resume` goes on with it. Raises
    `InputError` from the constructor for outputs that cannot be made, on entering when another run holds the folder.
    """

    def __init__(
        self, card: ModelCard, scene: Scene, area: Area, chunks: Sequence[Chunk], paths: Sequence[str | Path],
        probabilities: str | Path | None = None, overwrite: bool = False, min_area_m2: float | None = None,
        classes: Sequence[str] | None = None, resume: bool = False, simplify_m: float | None = None,
    ) -> None:  # fmt: skip
        self.card = card
        self.scene = scene
        self.area = area
        self.geobox = area.geobox
        self.chunks = tuple(chunks)
        self.legend = card.legend
        self.maps = [p for p in map(Path, paths) if p.suffix.lower() == _CLASS_MAP]
        self.vectors = [p for p in map(Path, paths) if p.suffix.lower() != _CLASS_MAP]
        self.planes = Path(probabilities) if probabilities else None
        self.min_area_m2 = min_area_m2
        self.simplify_m = simplify_m
        self.classes = self.legend.ids_of(list(classes)) if classes else self.legend.foreground
        self.resume = resume
        self._seconds = {"write": 0.0, "vector": 0.0}
        self._polygons: int | None = None
        self._lock = Lock()
        if not self.paths:
            raise InputError("no output was named: give one, e.g. -o mounds.gpkg or -o classes.tif")
        self.folder = work_folder(self.paths[0])
        planes = {"labels": 1, "confidence": int(self.needs_confidence and bool(self.vectors))}
        planes["probabilities"] = len(self.legend) if self.planes else 0
        kept = tuple((name, bands) for name, bands in planes.items() if bands)
        self.partials = Partials(self.folder, scene.geobox, len(self.legend), kept)
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
        goes_on = self.resume and self.partials.begun
        overwrite = overwrite or (goes_on and self.partials.was_finishing)
        sources = {Path(p).resolve() for p in self.scene.paths}
        for path in self.paths:
            if path.resolve() in sources:
                raise InputError(f"{path} is the source itself: choose another output")
            style = [path.with_suffix(".qml")] if path in self.maps else []  # it lies beside the map
            for file in (path, *style):
                if file.exists() and not overwrite:
                    raise InputError(f"{file} exists already: pass --overwrite to replace it, or choose another name")
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
            check_polygon_file(path, self.geobox.crs, overwrite=True)
        check_simplify(self.simplify_m, self.geobox.crs)
        if self.min_area_m2 is not None and self.scene.geobox.crs is None:
            raise InputError("--min-area is in m2, but the scene has no CRS: give it one with gdal_edit -a_srs")

    def asked(self, options: dict[str, Any]) -> dict[str, Any]:
        """What a run must have in common with the one it goes on with."""
        return {
            "the version of uhrseg": uhrseg.__version__,
            "the model": f"{self.card.name} {self.card.version} ({self.card.weights.sha256[:12]})",
            "the model's card": hashlib.sha256(self.card.model_dump_json().encode()).hexdigest()[:12],
            "the source": [_stamp(path) for path in self.scene.paths],
            "the grid": [*self.scene.geobox.shape, *tuple(self.scene.geobox.affine)[:6], str(self.scene.geobox.crs)],
            "the part (--bounds, --aoi)": self.area.key,
            **options,
            "-o": [str(path.resolve()) for path in self.paths],
            "--classes": list(self.classes),
            "--min-area": self.min_area_m2,
            "--simplify": self.simplify_m,
        }

    def begin(self, options: dict[str, Any]) -> list[Chunk]:
        """The chunks that remain to be done; all of them, and an empty folder, unless the run goes on with another."""
        asked = self.asked(options)
        if not (self.resume and self.partials.begun):
            if self.resume:
                _log.info("nothing to resume: %s begins anew", self.paths[0])
            self.partials.begin(asked)
            return list(self.chunks)
        self.partials.must_match(asked)
        return [chunk for chunk in self.chunks if not self.partials.finished(chunk)]

    def __enter__(self) -> Self:
        self.folder.mkdir(exist_ok=True)
        self._held = lock(self.folder)
        return self

    def _tags(self) -> dict[str, str]:
        return {
            "TIFFTAG_SOFTWARE": f"uhrseg {uhrseg.__version__}",
            "UHRSEG_MODEL": f"{self.card.name} {self.card.version}",
            "UHRSEG_MODEL_SHA256": self.card.weights.sha256,
        }

    def take(self, chunk: Chunk, strips: Iterable[Strip]) -> None:
        """Keep a chunk; any thread may call it. An exception while the strips come leaves the chunk undone."""
        clock = _Stopwatch()
        self.partials.write(chunk, clock.pausing(strips))
        with self._lock:
            self._seconds["write"] += clock.seconds()

    def finish(self) -> None:
        """Make every output from the chunks and give each its name; what was done twice ends the same."""
        self.partials.finishing()
        if self.vectors:
            return_free_memory()  # what the model left is no use to polygons
        started = time.perf_counter()
        labels = self._mosaic("labels", self.legend)
        for path in self.vectors:
            self._polygons = self._write_polygons(path, labels, self._mosaic("confidence", ["confidence"]))
        self._seconds["vector"] = time.perf_counter() - started
        started = time.perf_counter()
        for path in self.maps:
            levels = write_levels(labels, self.geobox, self.folder)
            publish(self._mosaic("labels", self.legend, levels), path, self._checksums("labels"), "mode")
            write_raster_style(path, self.legend)
        if self.planes is not None:
            publish(
                self._mosaic("probabilities", self.legend.names),
                self.planes,
                self._checksums("probabilities"),
                "average",
            )
        self._seconds["write"] += time.perf_counter() - started
        self._counts = self._count()
        (self.folder / "run.json").unlink()  # from here on there is nothing to resume

    def _mosaic(self, plane: str, bands: Sequence[str] | Legend, levels: Sequence[Path] = ()) -> Path:
        path = self.folder / f"{plane}.vrt"
        origin = self.area.rows.start, self.area.cols.start
        tiles = [self.partials.tile(plane, chunk, *origin) for chunk in self.chunks]
        write_mosaic(path, self.geobox, tiles, self._tags(), bands, levels)
        return path

    def _checksums(self, plane: str) -> dict[Region, int]:
        origin = self.area.rows.start, self.area.cols.start
        parts = (self.partials.checksums(plane, chunk, *origin) for chunk in self.chunks)
        return {region: crc for part in parts for region, crc in part.items()}

    def _count(self) -> NDArray[np.int64]:
        """Pixels of each row and class of the output (Y, classes)."""
        counts = np.zeros((self.geobox.shape[0], len(self.legend)), dtype=np.int64)
        for chunk in self.chunks:
            top = chunk.rows.start - self.area.rows.start
            counts[top : top + chunk.shape[0]] += self.partials.counts(chunk)
        return counts

    def _write_polygons(self, path: Path, labels: Path, confidence: Path) -> int:
        tables = polygonise(labels, confidence, self.legend, self.classes, min_area_m2=self.min_area_m2)
        if self.simplify_m is not None:
            tables = simplified(tables, self.simplify_m, self.geobox.crs)
        return write_polygons(tables, path, self.geobox.crs, self.legend, overwrite=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        kept = any(self.folder.glob("chunk-*.json")) or (self.folder / "coarse.json").exists()
        if kind is None or not (kept and self.partials.begun):
            shutil.rmtree(self.folder, ignore_errors=True)
        self._held.close()

    def report(self, runner: Runner, windows: int, read_s: float, total_s: float) -> Report:
        """What was made and what it took."""
        counts, names = self._counts, self.legend.names
        areas = pixel_areas(self.geobox)
        areas_m2 = None if areas is None else dict(zip(names, (areas @ counts).tolist(), strict=True))
        return Report(
            outputs=tuple(str(p) for p in self.paths),
            pixels=int(np.prod(self.geobox.shape)),
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


class _Stopwatch:
    """Seconds since it was made, less the time in which strips were waited for."""

    def __init__(self) -> None:
        self._started = time.perf_counter()

    def pausing(self, strips: Iterable[Strip]) -> Iterator[Strip]:
        """The strips; the clock stands still while the next one is made."""
        coming = iter(strips)
        while True:
            asked = time.perf_counter()
            strip = next(coming, None)
            self._started += time.perf_counter() - asked
            if strip is None:
                return
            yield strip

    def seconds(self) -> float:
        """What it shows."""
        return time.perf_counter() - self._started


def _stamp(path: str) -> list[Any]:
    """Name, size and time of change of a source; the name alone of what is no local file."""
    try:
        facts = Path(path).stat()
    except OSError:
        return [path]
    return [str(Path(path).resolve()), facts.st_size, facts.st_mtime_ns]
