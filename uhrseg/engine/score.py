"""Scores of class maps: one confusion matrix, everything else follows from it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from uhrseg.errors import InputError
from uhrseg.legend import NODATA, Legend

__all__ = ["Confusion"]


class Confusion:
    """Pixel counts of `classes` x `classes`: rows are labels, columns predictions (int64).

    `unpredicted` counts pixels with a label where the prediction is nodata (255); they are in no row.
    """

    def __init__(self, classes: int) -> None:
        self.matrix: NDArray[np.int64] = np.zeros((classes, classes), dtype=np.int64)
        self.unpredicted = 0

    def update(self, labels: NDArray[np.integer], prediction: NDArray[np.integer], ignore: int = NODATA) -> None:
        """Count two class maps of one shape; pixels whose label is `ignore` are left out.

        Raises `InputError` for shapes that differ or values that are no class id.
        """
        if labels.shape != prediction.shape:
            raise InputError(f"labels of shape {labels.shape} cannot be compared with a map of {prediction.shape}")
        known = labels != ignore
        covered = known & (prediction != NODATA)
        self.unpredicted += int(known.sum() - covered.sum())
        rows, columns = labels[covered].astype(np.int64), prediction[covered].astype(np.int64)
        classes = len(self.matrix)
        for what, values in (("labels", rows), ("prediction", columns)):
            if values.size and not 0 <= values.min() <= values.max() < classes:
                wrong = values.max() if values.max() >= classes else values.min()
                raise InputError(
                    f"the {what} hold the value {wrong}, but the classes are 0 to {classes - 1}: "
                    "check the legend and the ignore value"
                )
        self.matrix += np.bincount(rows * classes + columns, minlength=classes**2).reshape(classes, classes)

    @property
    def iou(self) -> NDArray[np.float64]:
        """Intersection over union per class (C,); NaN for a class that neither labels nor prediction hold."""
        return _ratio(self._hits, self._labelled + self._predicted - self._hits)

    @property
    def f1(self) -> NDArray[np.float64]:
        """F1 (Dice) per class (C,); NaN for a class that neither labels nor prediction hold."""
        return _ratio(2 * self._hits, self._labelled + self._predicted)

    @property
    def precision(self) -> NDArray[np.float64]:
        """Share of the predicted pixels of a class that are right (C,); NaN where none is predicted."""
        return _ratio(self._hits, self._predicted)

    @property
    def recall(self) -> NDArray[np.float64]:
        """Share of the labelled pixels of a class that are found (C,); NaN where none is labelled."""
        return _ratio(self._hits, self._labelled)

    @property
    def accuracy(self) -> float:
        """Share of all compared pixels that are right; NaN for none."""
        return float(_ratio(np.array(self._hits.sum()), np.array(self.matrix.sum())))

    @property
    def _hits(self) -> NDArray[np.int64]:
        return np.diagonal(self.matrix)

    @property
    def _labelled(self) -> NDArray[np.int64]:
        return self.matrix.sum(axis=1)

    @property
    def _predicted(self) -> NDArray[np.int64]:
        return self.matrix.sum(axis=0)

    def scores(self, legend: Legend) -> dict[str, Any]:
        """The object that ``uhrseg evaluate --json`` prints; what is undefined is None.

        The mean IoU runs over the classes that are no background and that labels or prediction hold; ``miou_rule``
        says which these are.
        """
        iou = self.iou
        counted = [c for c in legend.foreground if np.isfinite(iou[c])]
        columns = {"iou": iou, "f1": self.f1, "precision": self.precision, "recall": self.recall}
        classes = {
            c.name: {key: _or_none(values[c.id]) for key, values in columns.items()}
            | {"pixels": int(self._labelled[c.id])}
            for c in legend.classes
        }
        return {
            "classes": classes,
            "miou": _or_none(np.mean(iou[counted])) if counted else None,
            "miou_rule": self._rule(legend, counted),
            "accuracy": _or_none(self.accuracy),
            "confusion": self.matrix.tolist(),
        }

    def _rule(self, legend: Legend, counted: list[int]) -> str:
        names = legend.names
        rule = f"mean of IoU over {len(counted)} classes: {', '.join(names[c] for c in counted) or 'none'}"
        absent = [names[c] for c in legend.foreground if c not in counted]
        if legend.background is not None:
            rule += f"; background {names[legend.background]!r} left out"
        if absent:
            rule += f"; absent from labels and prediction, left out: {', '.join(absent)}"
        if self.unpredicted:
            rule += f"; {self.unpredicted} labelled pixels without a prediction left out"
        return rule


def _ratio(part: NDArray[np.int64], whole: NDArray[np.int64]) -> NDArray[np.float64]:
    """part / whole, NaN where whole is 0."""
    return np.divide(part, whole, out=np.full(np.shape(whole), np.nan), where=whole > 0)


def _or_none(value: float | np.floating[Any]) -> float | None:
    return float(value) if np.isfinite(value) else None
