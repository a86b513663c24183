"""A trunk, its relays and a head as one segmentation network."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.pretrained import PretrainedReport
from uhrseg.models.relay import Order, one_scale, two_scales

__all__ = ["SegOutput", "Segmenter", "Strategy"]

Strategy = Literal["single", "registers", "relays"]


class SegOutput(NamedTuple):
    """Logits (B, classes, size, size) of the local window and, if asked for, of the context window."""

    logits: Tensor
    context_logits: Tensor | None = None


class Segmenter(nn.Module):
    """``model(local, context)``: the seam between networks and everything else.

    Strategy ``relays`` takes both windows (Perron et al., section 3.1); ``single`` and ``registers`` only the local
    one. Inputs are (B, bands, size, size), already scaled. Raises `InputError` for anything else.
    """

    def __init__(self, trunk: nn.Module, head: nn.Module, strategy: Strategy, order: Order, bands: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.strategy, self.order, self.bands = strategy, order, bands
        self.pretrained: PretrainedReport | None = None

    def forward(
        self, local: Tensor, context: Tensor | None = None, with_context_logits: bool | None = None
    ) -> SegOutput:
        """Segment; ``with_context_logits`` None means "when training"."""
        self._check("local", local)
        if self.strategy != "relays":
            self._refuse_context(context, with_context_logits)
            return SegOutput(self._head(one_scale(self.trunk, local), local))  # type: ignore[arg-type]
        if context is None:
            raise InputError("a model with relays needs the context window too: call model(local, context)")
        self._check("context", context)
        wanted = self.training if with_context_logits is None else with_context_logits
        f_local, f_context = two_scales(self.trunk, local, context, self.order, wanted)  # type: ignore[arg-type]
        return SegOutput(self._head(f_local, local), None if f_context is None else self._head(f_context, context))

    def _head(self, tokens: list[Tensor], image: Tensor) -> Tensor:
        """Logits of one scale. On CPU the head takes one sample at a time: its convolutions choose their algorithm by
        batch size, and a prediction must not depend on the batch it sits in (measured: no slower)."""
        skips = getattr(self.head, "skips", False)  # a U-Net reads what entered the stages
        maps = self.trunk.skips(tokens) if skips else self.trunk.maps(tokens, self.head.last_only)  # type: ignore[operator]
        if self.training or maps[0].device.type != "cpu":
            return cast(Tensor, self.head(maps, image))
        samples = (slice(i, i + 1) for i in range(image.shape[0]))
        return torch.cat([self.head([m[one] for m in maps], image[one]) for one in samples])

    def _check(self, name: str, image: Tensor) -> None:
        size = self.trunk.size
        if image.ndim != 4 or tuple(image.shape[1:]) != (self.bands, size, size):
            raise InputError(
                f"{name} has shape {tuple(image.shape)}; this model takes (B, {self.bands}, {size}, {size})"
            )

    def _refuse_context(self, context: Tensor | None, with_context_logits: bool | None) -> None:
        if context is not None or with_context_logits:
            raise InputError(f"a model with strategy = {self.strategy!r} sees one scale: give it no context")
