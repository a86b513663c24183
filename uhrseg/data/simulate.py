"""Terrain on which context is put on trial: what a feature is depends on something far away, by construction.

Every site is a few small mounds, alike to the eye. Whether they are *mounds* or *temples* is told by a cue whose
distance is measured against the window pair (W pixels, factor f): any local window that holds a mound lies within W of
it, and every context window around such a window reaches at least W (f - 1) / 2 beyond the mound.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uhrseg.data.earthworks import Heights, Place, dome, flat_top, ground, patch, place_of
from uhrseg.data.parcels import write_layer
from uhrseg.errors import InputError

__all__ = ["CLASSES", "CUES", "LANDMARK", "Cue", "Reach", "Simulation", "write_dataset"]

CLASSES = (("background", "#d9d9d9"), ("mound", "#377eb8"), ("temple", "#e41a1c"), ("landmark", "#4daf4a"))

LANDMARK = 3

Cue = Literal["mark", "dyke", "moat", "shape"]
Reach = Literal["near", "context", "beyond"]

_SITE = 8  # mounds lie this close to the centre of their site, in pixels
_RADIUS = (6.0, 9.0)  # of a mound
_LANDMARK = 40  # side of a platform, length of a bank; less where there is less room
_SMALLEST = 24


@dataclass(frozen=True)
class Simulation:
    """A suite: which cue decides, and how far away it is.

    cue: 'mark' (a platform is there or not), 'dyke' (a bank points at the site or lies across), 'moat' (the site is
    inside a square moat or beside one), 'shape' (domes or flat tops: context is worthless).
    reach: 'near' (inside most local windows), 'context' (outside every local window, inside every context window) or
    'beyond' (outside every context window: nobody can know). window, factor: of the models that are tried.
    """

    cue: Cue
    reach: Reach = "context"
    window: int = 64
    factor: int = 8

    @property
    def distances(self) -> tuple[int, int]:
        """Chebyshev distances in pixels, from a site's centre, between which the cue lies whole."""
        w, spare = self.window, _SITE + round(_RADIUS[1])
        if self.reach == "near":
            return spare + 4, spare + 4 + _LANDMARK
        if self.reach == "context":
            return w + spare, w * (self.factor - 1) // 2 - spare
        sight = w * (self.factor + 1) // 2
        return sight + spare, sight + spare + _LANDMARK

    @property
    def landmark(self) -> int:
        """Side of a platform and length of a bank, in pixels."""
        inner, outer = self.distances
        return min(_LANDMARK, outer - inner)

    @property
    def spacing(self) -> int:
        """Pixels between sites: no context window around a site's mounds holds the cue of another."""
        sight = self.window * (self.factor + 1) // 2
        inner, outer = self.distances
        return (2 * outer + inner if self.cue == "moat" else outer) + sight + 2 * _SITE

    def scene(self, sites: int, seed: int, base: Heights | None = None) -> tuple[Heights, NDArray[np.uint8]]:
        """Heights (Y, X) in metres and labels (Y, X) of `sites` x `sites` sites, half of each class.

        base: ground to build on, at least that large; None: `ground` from the seed.
        Raises `InputError` for a base that is too small, or a cue that does not fit between its distances.
        """
        if self.landmark < _SMALLEST:
            raise InputError(
                f"no cue fits between {self.distances[0]} and {self.distances[1]} px: choose a larger window or factor"
            )
        rng = np.random.default_rng([seed, 7])
        side = sites * self.spacing
        if base is not None and min(base.shape) < side:
            raise InputError(f"the ground has {base.shape} pixels, but {sites} x {sites} sites need {side} x {side}")
        heights = ground((side, side), seed) if base is None else base[:side, :side].astype(np.float32)
        labels = np.zeros((side, side), np.uint8)
        classes = rng.permutation(np.arange(sites * sites) % 2) + 1
        for i, class_id in enumerate(classes):
            centre = (np.array(divmod(i, sites)) + 0.5) * self.spacing
            self._site(heights, labels, rng, (float(centre[0]), float(centre[1])), int(class_id))
        return heights, labels

    def _site(
        self, heights: Heights, labels: NDArray[np.uint8], rng: np.random.Generator, at: tuple[float, float], kind: int
    ) -> None:
        """One site of class `kind` (1 mound, 2 temple) with its cue, in place."""
        if self.cue == "moat":
            at, place = self._moat(heights, rng, at, inside=kind == 2)
            labels[place] = LANDMARK
        elif self.cue == "dyke":
            labels[_bank(heights, self._position(rng, at), at, self.landmark, points_here=kind == 2)] = LANDMARK
        elif kind == 2 if self.cue == "mark" else rng.random() < 0.5:
            labels[_platform(heights, self._position(rng, at), self.landmark)] = LANDMARK
        for _ in range(int(rng.integers(2, 5))):
            y, x = (c + rng.uniform(-_SITE, _SITE) for c in at)
            shape = flat_top if self.cue == "shape" and kind == 2 else dome
            labels[shape(heights, (y, x), rng.uniform(*_RADIUS), rng.uniform(0.8, 1.5))] = kind

    def _position(self, rng: np.random.Generator, at: tuple[float, float]) -> tuple[float, float]:
        """Centre of a landmark that lies whole between the two distances, in any direction."""
        inner, outer = self.distances
        far = rng.uniform(inner + self.landmark / 2, outer - self.landmark / 2)
        along = rng.uniform(-far, far)
        side = int(rng.integers(4))
        dy, dx = ((-far, along), (far, along), (along, -far), (along, far))[side]
        return at[0] + dy, at[1] + dx

    def _moat(
        self, heights: Heights, rng: np.random.Generator, at: tuple[float, float], inside: bool
    ) -> tuple[tuple[float, float], Place]:
        """A square moat around `at` (inside) or beside the site; returns the site's centre and where the moat is."""
        inner, outer = self.distances
        half = rng.uniform(inner, min(outer - 6, inner + 40))
        place = _ditch(heights, at, half)
        if inside:
            return at, place
        away = half + rng.uniform(inner, min(outer - 6, inner + 40))
        along = rng.uniform(-half, half)
        sign = rng.choice((-1, 1))
        dy, dx = (sign * away, along) if rng.random() < 0.5 else (along, sign * away)
        return (at[0] + dy, at[1] + dx), place


def _platform(heights: Heights, at: tuple[float, float], side: int) -> Place:
    """A landmark nobody overlooks: a square platform, 3 m high."""
    rows, cols, dy, dx = patch(heights, at, side / 2)
    edge = side / 2 - np.maximum(np.abs(dy), np.abs(dx))
    heights[rows, cols] += np.clip(edge, 0, 3).astype(np.float32)
    return place_of(rows, cols, edge > 0)


def _bank(
    heights: Heights, at: tuple[float, float], site: tuple[float, float], length: int, points_here: bool
) -> Place:
    """A bank 12 px wide and 3 m high that points at `site`, or lies across that direction."""
    rows, cols, dy, dx = patch(heights, at, length / 2)
    away = np.array([at[0] - site[0], at[1] - site[1]])
    uy, ux = away / np.linalg.norm(away)
    along, across = dy * uy + dx * ux, dx * uy - dy * ux
    if not points_here:
        along, across = across, along
    inside = np.minimum(length / 2 - np.abs(along), 6 - np.abs(across))
    heights[rows, cols] += np.clip(inside, 0, 3).astype(np.float32)
    return place_of(rows, cols, inside > 0)


def _ditch(heights: Heights, at: tuple[float, float], half: float) -> Place:
    """A square ditch 8 px wide and 3 m deep, `half` px from `at`."""
    rows, cols, dy, dx = patch(heights, at, half + 8)
    ring = 4 - np.abs(np.maximum(np.abs(dy), np.abs(dx)) - half - 4)
    heights[rows, cols] -= np.clip(ring, 0, 3).astype(np.float32)
    return place_of(rows, cols, ring > 0)


CUES: dict[str, Callable[[int, int], Simulation]] = {
    "mark": lambda window, factor: Simulation("mark", "context", window, factor),
    "mark-near": lambda window, factor: Simulation("mark", "near", window, factor),
    "mark-beyond": lambda window, factor: Simulation("mark", "beyond", window, factor),
    "dyke": lambda window, factor: Simulation("dyke", "context", window, factor),
    "moat": lambda window, factor: Simulation("moat", "context", window, factor),
    "control": lambda window, factor: Simulation("shape", "context", window, factor),
}
"""The suites by name, from the trivial to the relational, and the control."""


def write_dataset(
    simulation: Simulation, folder: Path, seed: int, *, train: int = 4, val: int = 2, sites: int = 5
) -> Path:
    """`train` and `val` scenes as ``train/NAME_dtm.tif`` (float32 metres, 1 m pixels) with ``NAME_mask.tif``.

    The same seed writes the same pixels; train and val share none. Returns `folder`.
    """
    for split, count, offset in (("train", train, 0), ("val", val, 10_000)):
        (folder / split).mkdir(parents=True, exist_ok=True)
        for i in range(count):
            heights, labels = simulation.scene(sites, seed * 100_000 + offset + i)
            write_layer(folder / split / f"{split}{i}_dtm.tif", heights, "dtm")
            write_layer(folder / split / f"{split}{i}_mask.tif", labels, "class")
    return folder
