"""Training samples: a local crop, its context crop and its labels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from uhrseg.data.augment import Pose, crop, crop_nearest, d4
from uhrseg.data.sampling import Centres, SampleKey, draw_pose, sample_rng
from uhrseg.data.scenes import TrainingScene
from uhrseg.errors import RunError
from uhrseg.geo.scene import gdal_settings
from uhrseg.legend import Legend
from uhrseg.recipe import TrainTable

__all__ = ["Chip", "Chips"]

LEAST_INSIDE = 0.2
"""A sample with more than 80 % of its local crop outside is skipped (paper, appendix).

Outside is what is neither trained on nor scored: beyond the raster, without data or label, outside the AOI or the
split's blocks.
"""

_ATTEMPTS = 1000
_OPEN_SCENES = 32


class Chip(TypedDict, total=False):
    """One sample (a batch has B in front); `context` is absent for single-scale models."""

    local: Tensor  # (C, S, S) float32, not scaled
    context: Tensor  # (C, S, S) float32, not scaled
    labels: Tensor  # (S, S) uint8
    key: Tensor  # (2,) int64: epoch and index


class Chips(Dataset[Chip]):
    """Samples by key (epoch, index); each is a function of the seed and its key alone."""

    def __init__(
        self,
        scenes: Sequence[TrainingScene],
        train: TrainTable,
        *,
        size: int,
        factor: int | None,
        legend: Legend,
        seed: int,
        std: NDArray[np.float64] | None = None,
    ) -> None:
        self.centres = Centres(scenes, legend.foreground)
        self.train = train
        self.size = size
        self.factor = factor
        self._open: OrderedDict[int, TrainingScene] = OrderedDict()
        self.ignore = legend.ignore
        self.seed = seed
        self.std = std  # (C,), the unit of the radiometric jitter

    def __getitem__(self, key: SampleKey) -> Chip:
        """The sample of `key`. Raises `RunError` when the scenes have nowhere to cut a crop."""
        with gdal_settings():
            return self._sample(key)

    def _sample(self, key: SampleKey) -> Chip:
        rng = sample_rng(self.seed, key)
        scene, pose, labels = self._place(rng)
        self._keep_open(scene)
        arrays: dict[str, NDArray[Any]] = {"local": crop(scene.local, pose, self.size), "labels": labels}
        if self.factor is not None and scene.context is not None:
            arrays["context"] = crop(scene.context, pose.on_coarse(self.factor), self.size)
        turns, flip = (int(rng.integers(4)), bool(rng.integers(2))) if self.train.flips else (0, False)
        arrays = {name: d4(array, turns, flip) for name, array in arrays.items()}
        self._jitter(rng, arrays)
        chip = Chip(key=torch.tensor(key))
        chip.update({name: torch.from_numpy(array) for name, array in arrays.items()})  # type: ignore[typeddict-item]
        return chip

    def where(self, key: SampleKey) -> str:
        """The place of a sample in words: scene, centre and key."""
        scene, pose, _ = self._place(sample_rng(self.seed, key))
        return f"index {key[1]} of epoch {key[0]} (scene {scene.name}, centre row {pose.y:g}, column {pose.x:g})"

    def _place(self, rng: np.random.Generator) -> tuple[TrainingScene, Pose, NDArray[np.uint8]]:
        """A scene, a pose in it and the labels (S, S) there, by the 80 % rule."""
        for _ in range(_ATTEMPTS):
            scene, row, col = self.centres.draw(rng, self.train.balanced_centres)
            pose = draw_pose(rng, row, col, self.size, self.factor, self.train)
            labels = crop_nearest(scene.labels, pose, self.size)[0]
            if (labels != self.ignore).mean() >= LEAST_INSIDE:
                return scene, pose, labels
        raise RunError(
            f"{_ATTEMPTS} random crops of {self.size} px had more than {1 - LEAST_INSIDE:.0%} outside the labelled "
            "ground: choose a smaller window.size, or label larger areas"
        )

    def _keep_open(self, scene: TrainingScene) -> None:
        """Close the scene that was used longest ago: data sets have more files than a process may hold open."""
        self._open[id(scene)] = scene
        self._open.move_to_end(id(scene))
        if len(self._open) > _OPEN_SCENES:
            self._open.popitem(last=False)[1].close()

    def _jitter(self, rng: np.random.Generator, arrays: dict[str, NDArray[np.float32]]) -> None:
        """One gain and one offset per band, the same for both windows."""
        if not self.train.jitter or self.std is None:
            return
        bands = len(self.std)
        gain = 1 + self.train.jitter * rng.uniform(-1, 1, (bands, 1, 1))
        offset = self.train.jitter * rng.uniform(-1, 1, (bands, 1, 1)) * self.std[:, None, None]
        for name in arrays.keys() - {"labels"}:
            arrays[name] = (arrays[name] * gain + offset).astype(np.float32)
