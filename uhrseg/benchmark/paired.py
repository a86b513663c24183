"""Is one line better than another? Differences of the same scene and seed, and a test that assumes little."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from uhrseg.benchmark.rows import Row

__all__ = ["comparisons", "reference", "sign_flip_test"]

_EXACT = 14  # up to 2^14 sign patterns are tried, all of them
_DRAWS = 10_000
_REFERENCES = ("sliding window", "0 relays", "both losses")


def reference(rows: Sequence[Row]) -> str | None:
    """Name of the line the others are compared with: the sliding window, or what a table starts from."""
    return next((row.name for row in rows if plain_name(row).lower() in _REFERENCES), None)


def plain_name(row: Row) -> str:
    """The name without its table: 'Table 3: Registers' -> 'Registers'."""
    return row.name.rpartition(": ")[2]


def comparisons(rows: Sequence[Row]) -> list[str]:
    """One sentence per line: mean difference to the reference over the scenes and seeds both have, and its p."""
    base = reference(rows)
    if base is None:
        return []
    theirs = _scores(rows, base)
    sentences = []
    for name in dict.fromkeys(row.name for row in rows if row.name != base):
        ours = _scores(rows, name)
        pairs = [ours[key] - theirs[key] for key in ours if key in theirs]
        if len(pairs) > 1:
            seeds = len({seed for seed, scene in ours if (seed, scene) in theirs})
            sentences.append(
                f"{name} against {base}: {np.mean(pairs):+.1f} points, p = {sign_flip_test(pairs):.3f} "
                f"({len(pairs)} pairs of scene and seed, {seeds} seeds; sign-flip test, two-sided)"
            )
    return sentences


def sign_flip_test(differences: Sequence[float]) -> float:
    """Two-sided p of a mean as far from 0 as this one, if each difference could as well have the other sign.

    Exact for up to 14 pairs; n pairs cannot give less than 2^(1 - n). Pairs of one seed share their training, so that
    few seeds with many scenes look surer than they are.
    """
    values = np.asarray(differences, dtype=float)
    if len(values) <= _EXACT:
        signs = np.array(list(itertools.product((1, -1), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((1, -1), (_DRAWS, len(values)))
        signs[0] = 1  # what was seen is one of the patterns
    means = np.abs((signs * values).mean(1))
    return float((means >= abs(values.mean()) - 1e-12).mean())


def _scores(rows: Sequence[Row], name: str) -> dict[tuple[int | None, str], float]:
    return {(row.seed, scene): score for row in rows if row.name == name for scene, score in row.scenes.items()}
