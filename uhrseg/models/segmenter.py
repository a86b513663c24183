"""A trunk, its relays and a head as one segmentation network."""

from __future__ import annotations

from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from uhrseg.errors import InputError
from uhrseg.models.fusion import concatenated, enlarged_centre
from uhrseg.models.pretrained import PretrainedReport
from uhrseg.models.relay import Order, one_scale, two_scales

__all__ = ["TWO_SCALES", "SegOutput", "Segmenter", "Strategy"]

Strategy = Literal["single", "registers", "relays", "downsampling", "decision_fusion", "token_concat"]

TWO_SCALES: tuple[Strategy, ...] = ("relays", "downsampling", "decision_fusion", "token_concat")
"""Strategies that take a context window; the others refuse one."""


class SegOutput(NamedTuple):
    """Logits (B, classes, size, size) of the local window and, if asked for, of the context window.

    ``auxiliary_logits`` (B, classes, H, W), at the stride of a middle stage: of an auxiliary head, when training.
    """

    logits: Tensor
    context_logits: Tensor | None = None
    auxiliary_logits: Tensor | None = None


class Segmenter(nn.Module):
    """``model(local, context)``: the seam between networks and everything else.

    Perron et al., sections 3.1 and 4.2. ``single`` and ``registers`` take the local window only; ``relays`` and
    ``token_concat`` let both exchange features; ``decision_fusion`` averages the logits of both; ``downsampling`` reads
    the context alone. Inputs are (B, bands, size, size), already scaled. Raises `InputError` for anything else.
    """

    def __init__(
        self,
        trunk: nn.Module,
        head: nn.Module,
        strategy: Strategy,
        order: Order,
        bands: int,
        context_factor: int | None = None,
    ) -> None:
        super().__init__()
        self.trunk, self.head = trunk, head
        self.strategy, self.order, self.bands, self.context_factor = strategy, order, bands, context_factor
        self.pretrained: PretrainedReport | None = None

    def forward(
        self, local: Tensor, context: Tensor | None = None, with_context_logits: bool | None = None
    ) -> SegOutput:
        """Segment; ``with_context_logits`` None means "when training".

        Strategies whose one result already holds the context's (``downsampling``, ``decision_fusion``) are trained on
        that result alone, so for them None means no.
        """
        self._check("local", local)
        if self.strategy not in TWO_SCALES:
            self._refuse_context(context, with_context_logits)
            tokens = one_scale(self.trunk, local)  # type: ignore[arg-type]
            return SegOutput(self._head(tokens, local), None, self._auxiliary(tokens))
        if context is None:
            raise InputError(
                f"a model with strategy = {self.strategy!r} needs the context window too: call model(local, context)"
            )
        self._check("context", context)
        if self.strategy in ("downsampling", "decision_fusion"):
            return self._fused(local, context, bool(with_context_logits))
        wanted = self.training if with_context_logits is None else with_context_logits
        f_local: list[Tensor]
        f_context: list[Tensor] | None
        if self.strategy == "token_concat":
            f_local, f_context = concatenated(self.trunk, local, context)  # type: ignore[arg-type]
        else:
            f_local, f_context = two_scales(self.trunk, local, context, self.order, wanted)  # type: ignore[arg-type]
        given = f_context is not None and wanted
        context_logits = self._head(f_context, context) if given else None  # type: ignore[arg-type]
        return SegOutput(self._head(f_local, local), context_logits, self._auxiliary(f_local))

    def _fused(self, local: Tensor, context: Tensor, with_context_logits: bool) -> SegOutput:
        """The context's logits over the local window, alone or averaged with the local ones."""
        assert self.context_factor is not None
        if self.strategy == "downsampling":
            context_logits = self._head(one_scale(self.trunk, context), context)  # type: ignore[arg-type]
            logits = enlarged_centre(context_logits, self.context_factor)
        else:
            f_local, f_context = two_scales(self.trunk, local, context, self.order, True)  # type: ignore[arg-type]
            assert f_context is not None
            context_logits = self._head(f_context, context)
            logits = 0.5 * (self._head(f_local, local) + enlarged_centre(context_logits, self.context_factor))
        return SegOutput(logits, context_logits if with_context_logits else None)

    def _head(self, tokens: list[Tensor], image: Tensor) -> Tensor:
        """Logits of one scale. On CPU a head with convolutions takes one sample at a time: they choose their algorithm
        by batch size, and a prediction must not depend on the batch it sits in (measured: no slower)."""
        skips = getattr(self.head, "skips", False)  # a U-Net reads what entered the stages
        maps = self.trunk.skips(tokens) if skips else self.trunk.maps(tokens, self.head.last_only)  # type: ignore[operator]
        at_once = self.training or maps[0].device.type != "cpu" or torch.compiler.is_exporting()
        if at_once or not getattr(self.head, "convolves", True):
            return cast(Tensor, self.head(maps, image))
        samples = (slice(i, i + 1) for i in range(image.shape[0]))
        return torch.cat([self.head([m[one] for m in maps], image[one]) for one in samples])

    def _auxiliary(self, tokens: list[Tensor]) -> Tensor | None:
        """Logits (B, classes, H, W) of the last map but one, when training with an auxiliary head."""
        auxiliary = getattr(self.head, "auxiliary", None)
        if auxiliary is None or not self.training:
            return None
        return cast(Tensor, auxiliary(self.trunk.maps(tokens, False)[-2]))  # type: ignore[operator]

    def _check(self, name: str, image: Tensor) -> None:
        size = self.trunk.size
        if image.ndim != 4 or tuple(image.shape[1:]) != (self.bands, size, size):
            raise InputError(
                f"{name} has shape {tuple(image.shape)}; this model takes (B, {self.bands}, {size}, {size})"
            )

    def _refuse_context(self, context: Tensor | None, with_context_logits: bool | None) -> None:
        if context is not None or with_context_logits:
            raise InputError(f"a model with strategy = {self.strategy!r} sees one scale: give it no context")
