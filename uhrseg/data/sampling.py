"""Which crop comes next: a pure function of (seed, epoch, index), whoever asks and whenever."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch.utils.data import Sampler

from uhrseg.data.augment import Pose
from uhrseg.data.scenes import TrainingScene
from uhrseg.recipe import TrainTable

__all__ = ["SampleKey", "StepSampler", "draw_centre", "draw_pose", "sample_rng"]

SampleKey = tuple[int, int]
"""(epoch, index in the epoch)."""


def sample_rng(seed: int, key: SampleKey) -> np.random.Generator:
    """The random numbers of one sample."""
    return np.random.default_rng((seed, *key))


def draw_centre(
    scenes: Sequence[TrainingScene], rng: np.random.Generator, balanced: float
) -> tuple[TrainingScene, int, int]:
    """A scene and a pixel (row, col) of it: uniform over all pixels, or, with probability `balanced`, over a class.

    Balanced: a feature class drawn uniformly among those present, then one of its pixels.
    """
    if rng.random() < balanced:
        present = sorted({c for scene in scenes for c in scene.centres})
        if present:
            return _class_centre(scenes, rng, present[rng.integers(len(present))])
    sizes = np.array([scene.shape[0] * scene.shape[1] for scene in scenes], dtype=np.float64)
    scene = scenes[rng.choice(len(scenes), p=sizes / sizes.sum())]
    return scene, int(rng.integers(scene.shape[0])), int(rng.integers(scene.shape[1]))


def _class_centre(
    scenes: Sequence[TrainingScene], rng: np.random.Generator, class_id: int
) -> tuple[TrainingScene, int, int]:
    holders = [scene for scene in scenes if class_id in scene.centres]
    counts = np.array([len(scene.centres[class_id]) for scene in holders], dtype=np.float64)
    scene = holders[rng.choice(len(holders), p=counts / counts.sum())]
    row, col = divmod(int(rng.choice(scene.centres[class_id])), scene.shape[1])
    return scene, row, col


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
