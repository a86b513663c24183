"""Networks: relay-token transformers on timm's blocks (torch and timm only)."""

from __future__ import annotations

from uhrseg.models.build import MODELS, build
from uhrseg.models.segmenter import TWO_SCALES, SegOutput
from uhrseg.models.weights import load_weights, save_weights

__all__ = ["MODELS", "TWO_SCALES", "SegOutput", "build", "load_weights", "save_weights"]
