"""Which crop comes next: a pure function of (seed, epoch, index), whoever asks and whenever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from uhrseg.data.augment import Pose
from uhrseg.data.scenes import CELL, NO_LABEL, TrainingScene
from uhrseg.errors import InputError
from uhrseg.recipe import TrainTable

__all__ = ["Centres", "SampleKey", "StepSampler", "draw_pose", "sample_rng"]

SampleKey = tuple[int, int]
"""(epoch, index in the epoch)."""


def sample_rng(seed: int, key: SampleKey) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.default_rng((seed, *key))


class Centres:
    """Where crops are centred: uniform over labelled pixels, or over those of a class.

    Holds running sums over cells of pixels (some bytes each); the pixel itself is looked up in its cell's labels.
    """

    def __init__(self, scenes: Sequence[TrainingScene], features: Sequence[int]) -> None:
        self.scenes = list(scenes)
        counts = np.concatenate([scene.counts.reshape(-1, scene.counts.shape[-1]) for scene in scenes])  # (cells, C)
        if not counts.any():
            raise InputError(NO_LABEL)
        self._first = np.cumsum([0] + [scene.counts.shape[0] * scene.counts.shape[1] for scene in scenes])
        self._all = np.cumsum(counts.sum(1))
        self._of_class = {c: np.cumsum(counts[:, c]) for c in features if counts[:, c].any()}

    def draw(self, rng: np.random.Generator, balanced: float) -> tuple[TrainingScene, int, int]:
        """A scene and a pixel (row, col) of it: any labelled pixel, or, with probability `balanced`, one of a class.

        Balanced: a feature class drawn uniformly among those present, then one of its pixels.
        """
        if rng.random() < balanced and self._of_class:
            wanted = sorted(self._of_class)[rng.integers(len(self._of_class))]
            return self._pixel(int(rng.integers(self._of_class[wanted][-1])), self._of_class[wanted], wanted)
        return self._pixel(int(rng.integers(self._all[-1])), self._all, None)

    def _pixel(self, k: int, sums: NDArray[np.int64], wanted: int | None) -> tuple[TrainingScene, int, int]:
        """The k-th pixel that `sums` counts: of class `wanted`, or of any (None)."""
        cell = int(np.searchsorted(sums, k, side="right"))
        which = int(np.searchsorted(self._first, cell, side="right")) - 1
        scene = self.scenes[which]
        i, j = divmod(cell - int(self._first[which]), scene.counts.shape[1])
        labels = scene.labels.read(i * CELL, j * CELL, CELL, CELL)[0]
        classes = scene.counts.shape[2]
        found = np.flatnonzero(labels < classes if wanted is None else labels == wanted)
        row, col = divmod(int(found[k - (int(sums[cell - 1]) if cell else 0)]), CELL)
        return scene, i * CELL + row, j * CELL + col


def draw_pose(rng: np.random.Generator, row: int, col: int, size: int, factor: int | None, train: TrainTable) -> Pose:
    """The pose of the crop around pixel (row, col): scale in [0.5, 2] and angle in [-90, 90] by their probabilities.

    The crop's first pixel is moved to the nearest multiple of `factor`, as windows lie at prediction, so that the
    context of an unscaled, unturned crop is a slice of the coarse grid (Dataloader paragraph of the paper's appendix).
    """
    step = factor or 1
    top, left = (round((p - size // 2) / step) * step for p in (row, col))
    scale = float(rng.uniform(0.5, 2.0)) if rng.random() < train.scale_probability else 1.0
    angle = float(rng.uniform(-90.0, 90.0)) if rng.random() < train.rotate_probability else 0.0
    return Pose(top + size / 2, left + size / 2, scale, angle)


@dataclass(frozen=True)
class StepSampler(Sampler[list[SampleKey]]):
    """Batches of sample keys of one process, from optimiser step `start` to `stop`.

    A step takes ``processes * accumulate * batch_size`` consecutive indices; a pass of all processes together takes
    consecutive ones of these, so that N processes see what one process with an N times larger batch sees.
    """

    start: int
    stop: int
    steps_per_epoch: int
    batch_size: int
    accumulate: int = 1
    rank: int = 0
    processes: int = 1

    def __len__(self) -> int:
        return (self.stop - self.start) * self.accumulate

    def __iter__(self) -> Iterator[list[SampleKey]]:
        pass_size = self.processes * self.batch_size
        for step in range(self.start, self.stop):
            epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
            for i in range(self.accumulate):
                first = (step_in_epoch * self.accumulate + i) * pass_size + self.rank * self.batch_size
                yield [(epoch, first + k) for k in range(self.batch_size)]
