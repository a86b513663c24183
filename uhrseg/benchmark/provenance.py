"""Where a number comes from: program, processor, weights, recipe, data."""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Iterable
from pathlib import Path

import torch

import uhrseg
from uhrseg.benchmark.rows import Provenance
from uhrseg.card import sha256_of
from uhrseg.recipe import Recipe

__all__ = ["fingerprint", "provenance", "recipe_hash"]


def provenance(
    device: str = "cpu",
    *,
    precision: str | None = None,
    model_sha256: str | None = None,
    recipe: Recipe | None = None,
    data: str | None = None,
) -> Provenance:
    """What is known here and now, with what the caller knows."""
    return Provenance(
        version=uhrseg.__version__,
        torch=torch.__version__,
        hardware=_hardware(device),
        precision=precision,
        model_sha256=model_sha256,
        recipe_sha256=None if recipe is None else recipe_hash(recipe),
        data_fingerprint=data,
    )


def _hardware(device: str) -> str:
    if device.startswith("cuda"):
        return f"{torch.cuda.get_device_name(device)}, {torch.get_num_threads()} CPU threads"
    return f"{_processor()}, {torch.get_num_threads()} threads"


def _processor() -> str:
    """The processor's name where the system tells it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def recipe_hash(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe; the folder of the data and the seed are no part of it."""
    data = recipe.data.model_copy(update={"root": ""})
    plain = recipe.model_copy(update={"data": data, "seed": 0})
    return hashlib.sha256(plain.model_dump_json(by_alias=True).encode()).hexdigest()


def fingerprint(files: Iterable[Path]) -> str:
    """SHA-256 over the names and contents of files, in name order."""
    digest = hashlib.sha256()
    for path in sorted(files, key=lambda p: p.name):
        digest.update(f"{path.name} {sha256_of(path)}\n".encode())
    return digest.hexdigest()
