from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from uhrseg.engine.score import Confusion
from uhrseg.errors import InputError
from uhrseg.legend import Legend, LegendClass

CLASSES = 4
MAPS = arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))


def legend(background: int | None = 0) -> Legend:
    return Legend(tuple(LegendClass(i, f"c{i}", "#123456") for i in range(CLASSES)), background)


def counted(labels: np.ndarray, prediction: np.ndarray) -> Confusion:
    confusion = Confusion(CLASSES)
    confusion.update(labels, prediction)
    return confusion


@given(MAPS, MAPS)
def test_scores_equal_set_arithmetic(labels: np.ndarray, prediction: np.ndarray) -> None:
    use = (labels != 255) & (prediction != 255)
    confusion = counted(labels, prediction)
    assert confusion.unpredicted == np.sum((labels != 255) & (prediction == 255))
    for c in range(CLASSES):
        truth, found = {*np.flatnonzero(use & (labels == c))}, {*np.flatnonzero(use & (prediction == c))}
        both, either = len(truth & found), len(truth | found)
        expected = {
            "iou": both / either if either else np.nan,
            "f1": 2 * both / (len(truth) + len(found)) if either else np.nan,
            "precision": both / len(found) if found else np.nan,
            "recall": both / len(truth) if truth else np.nan,
        }
        for name, value in expected.items():
            assert getattr(confusion, name)[c] == pytest.approx(value, nan_ok=True)
    right = np.sum(labels[use] == prediction[use])
    assert confusion.accuracy == pytest.approx(right / use.sum() if use.any() else np.nan, nan_ok=True)


@given(MAPS, MAPS)
def test_counting_in_parts_is_counting_the_whole(labels: np.ndarray, prediction: np.ndarray) -> None:
    parts = Confusion(CLASSES)
    for row in range(labels.shape[0]):
        parts.update(labels[row], prediction[row])
    np.testing.assert_array_equal(parts.matrix, counted(labels, prediction).matrix)


def test_rows_are_labels() -> None:
    assert counted(np.array([1, 1]), np.array([2, 2])).matrix[1, 2] == 2


def test_the_mean_leaves_out_background_and_absent_classes_and_says_so() -> None:
    labels, prediction = np.array([0, 0, 1, 1, 2]), np.array([0, 1, 1, 1, 0])
    scores = counted(labels, prediction).scores(legend())
    assert scores["miou"] == pytest.approx((2 / 3 + 0) / 2)  # classes 1 and 2
    assert "c1, c2" in scores["miou_rule"]
    assert "background 'c0' left out" in scores["miou_rule"]
    assert "absent from labels and prediction, left out: c3" in scores["miou_rule"]
    assert scores["classes"]["c3"] == {"iou": None, "f1": None, "precision": None, "recall": None, "pixels": 0}
    assert counted(labels, prediction).scores(legend(None))["miou"] == pytest.approx((1 / 3 + 2 / 3 + 0) / 3)


def test_the_json_has_the_keys_of_the_contract() -> None:
    scores = counted(np.array([0]), np.array([0])).scores(legend())
    assert list(scores) == ["classes", "miou", "miou_rule", "accuracy", "confusion"]
    assert list(scores["classes"]["c0"]) == ["iou", "f1", "precision", "recall", "pixels"]
    assert scores["miou"] is None


def test_pixels_without_a_prediction_are_mentioned() -> None:
    assert "1 labelled pixels without" in counted(np.array([1, 1]), np.array([1, 255])).scores(legend())["miou_rule"]


@pytest.mark.parametrize(
    "labels, prediction, said",
    [
        (np.array([7]), np.array([0]), "the labels hold the value 7"),
        (np.array([0]), np.array([4]), "the prediction hold"),
        (np.array([-1]), np.array([0]), "the value -1"),
        (np.array([0, 0]), np.array([0]), "cannot be compared"),
    ],
)
def test_what_does_not_fit_is_refused(labels: np.ndarray, prediction: np.ndarray, said: str) -> None:
    with pytest.raises(InputError, match=said):
        counted(labels, prediction)
