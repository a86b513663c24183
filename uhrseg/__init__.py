"""Segment gigapixel LiDAR, aerial and satellite rasters with relay-token transformers.

``import uhrseg`` is light: a name below is imported when it is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from uhrseg.card import ModelCard
    from uhrseg.engine.fit import load_model
    from uhrseg.engine.predict import Prediction, predict
    from uhrseg.engine.train import train
    from uhrseg.errors import InputError, RunError, UhrsegError
    from uhrseg.geo.scene import Scene
    from uhrseg.legend import Legend
    from uhrseg.recipe import Recipe

__version__ = "0.1.1"

__all__ = [
    "InputError",
    "Legend",
    "ModelCard",
    "Prediction",
    "Recipe",
    "RunError",
    "Scene",
    "UhrsegError",
    "__version__",
    "load_model",
    "predict",
    "train",
]

_HOME = {
    "InputError": "uhrseg.errors",
    "Legend": "uhrseg.legend",
    "ModelCard": "uhrseg.card",
    "Prediction": "uhrseg.engine.predict",
    "Recipe": "uhrseg.recipe",
    "RunError": "uhrseg.errors",
    "Scene": "uhrseg.geo.scene",
    "UhrsegError": "uhrseg.errors",
    "load_model": "uhrseg.engine.fit",
    "predict": "uhrseg.engine.predict",
    "train": "uhrseg.engine.train",
}


def __getattr__(name: str) -> Any:
    """Import a public name from its module on first use (PEP 562)."""
    if name not in _HOME:
        raise AttributeError(f"module 'uhrseg' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    """The public names, imported or not."""
    return sorted(__all__)
