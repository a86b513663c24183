"""What a run folder holds, and runs in processes of their own."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[2]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}


def log(run: Path) -> list[dict[str, Any]]:
    """The records of ``log.jsonl``."""
    return [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines() if line.endswith("}")]


def assert_same_weights(a: Path, b: Path) -> None:
    """Two model folders hold the same weights, to the last bit."""
    left, right = (load_file(model / "model.safetensors") for model in (a, b))
    assert left.keys() == right.keys()
    assert all(torch.equal(left[name], right[name]) for name in left)


def command(recipe: Path, run: Path, *more: str) -> list[str]:
    """``uhrseg train`` as a process."""
    return [sys.executable, "-m", "uhrseg", "train", str(recipe), "-o", str(run), *more]
