"""Uses of the context window that are no relays: what the paper compares them with (section 4.2, Tables 3 and 6)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from uhrseg.models.relay import CONTEXT, LOCAL, Trunk

__all__ = ["concatenated", "crop_context", "enlarged_centre"]


def crop_context(context_logits: Tensor, factor: int) -> Tensor:
    """The centre (B, C, S/f, S/f) of context logits (B, C, S, S): the extent of the local window."""
    size = context_logits.shape[-1]
    side, rest = divmod(size, factor)
    if rest or (size - side) % 2:
        raise ValueError(f"a context window of {size} px has no centred crop for factor {factor}")
    start = (size - side) // 2
    return context_logits[..., start : start + side, start : start + side]


def enlarged_centre(context_logits: Tensor, factor: int) -> Tensor:
    """Context logits (B, C, S, S) over the extent of the local window, bilinear: (B, C, S, S)."""
    centre = crop_context(context_logits, factor)  # (B, C, S/f, S/f)
    return F.interpolate(centre, scale_factor=factor, mode="bilinear", align_corners=False)


def concatenated(trunk: Trunk, local: Tensor, context: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Token concatenation: every block attends over the tokens of both windows at once (paper, Table 6).

    For trunks with one stage whose blocks attend everywhere (ViT). Returns the tokens of both scales after the stage.
    """
    f_local, f_context = trunk.embed(local, LOCAL), trunk.embed(context, CONTEXT)
    for stage in trunk.stages:
        for block in stage.blocks:
            f_local, both = block(f_local, f_context)  # the context stands where relays would
            assert both is not None
            f_context = both
    return [f_local], [f_context]
