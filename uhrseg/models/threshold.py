"""A per-pixel classifier on the first band: for tests and dry runs, where the right answer is known by heart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.relay import CONTEXT, LOCAL
from uhrseg.models.segmenter import SegOutput

__all__ = ["Threshold"]

_SHARPNESS = 4.0


class Threshold(nn.Module):
    """Class = number of ``thresholds`` at or below the value of band 0.

    ``scale`` 'context' reads the value from the context window instead: its centre crop, each coarse pixel repeated
    ``context_factor`` times. Logits are -4 * |class - k|. Any window size; it has no parameters.
    """

    def __init__(
        self,
        bands: int,
        classes: int,
        thresholds: Sequence[float] = (0.5,),
        scale: str = LOCAL,
        context_factor: int = 4,
    ) -> None:
        super().__init__()
        if scale not in (LOCAL, CONTEXT):
            raise InputError(f"option scale = {scale!r} of 'threshold': give 'local' or 'context'")
        if len(thresholds) != classes - 1 or sorted(thresholds) != list(thresholds):
            raise InputError(f"thresholds of 'threshold': give {classes - 1} rising numbers for {classes} classes")
        self.bands, self.scale, self.factor = bands, scale, context_factor
        self.register_buffer("thresholds", torch.tensor(list(thresholds), dtype=torch.float32), persistent=False)
        self.register_buffer("indices", torch.arange(classes), persistent=False)

    def forward(
        self, local: Tensor, context: Tensor | None = None, with_context_logits: bool | None = None
    ) -> SegOutput:
        """(B, bands, size, size) -> logits (B, classes, size, size); context logits on request."""
        if self.scale == CONTEXT and context is None:
            raise InputError("'threshold' with scale = 'context' needs the context window: call model(local, context)")
        wanted = self.training if with_context_logits is None else with_context_logits
        value = self._centre(context) if self.scale == CONTEXT and context is not None else local[:, 0]
        logits = self._logits(value)
        return SegOutput(logits, self._logits(context[:, 0]) if wanted and context is not None else None)

    def _centre(self, context: Tensor) -> Tensor:
        side = context.shape[-1] // self.factor
        start = (context.shape[-1] - side) // 2
        crop = context[:, :1, start : start + side, start : start + side]
        return F.interpolate(crop, context.shape[-2:], mode="nearest")[:, 0]

    def _logits(self, value: Tensor) -> Tensor:
        thresholds, indices = cast(Tensor, self.thresholds), cast(Tensor, self.indices)
        found = (value.unsqueeze(1) >= thresholds.view(1, -1, 1, 1)).sum(1, keepdim=True)  # (B, 1, Y, X)
        return -_SHARPNESS * (found - indices.view(1, -1, 1, 1)).abs().to(value.dtype)
