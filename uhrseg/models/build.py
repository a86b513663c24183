"""`build`: a network from names and numbers; `MODELS`: the trunks it knows."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_args

from torch import nn

from uhrseg.errors import InputError
from uhrseg.models.baselines import LibraryTrunk, deeplabv3, gcvit, pvtv2, unet
from uhrseg.models.flatten import FlattenTrunk
from uhrseg.models.glam import GlamTrunk
from uhrseg.models.heads import BilinearHead, LinearHead, UperHead
from uhrseg.models.pretrained import load_pretrained
from uhrseg.models.published_heads import UperMmsegHead, UperRelayHead
from uhrseg.models.pyramid import PyramidTrunk
from uhrseg.models.relay import ORDERS
from uhrseg.models.segmenter import Segmenter, Strategy
from uhrseg.models.swin import SwinTrunk
from uhrseg.models.threshold import Threshold
from uhrseg.models.unet import NluUnetHead, UnetHead
from uhrseg.models.vit import VitTrunk, timm_vit, vit

__all__ = ["HEADS", "MODELS", "ModelEntry", "build"]

_SWIN_S = {"depths": (2, 2, 18, 2)}
_SWIN_B = {**_SWIN_S, "embed_dim": 128, "heads": (4, 8, 16, 32)}
_PLAIN = {"global_tokens": 0}  # Swin, without GLAM's tokens


@dataclass(frozen=True)
class ModelEntry:
    """One trunk: its class, the defaults that make it this one, and the timm model whose weights fit it."""

    trunk: Callable[..., Any]
    defaults: Mapping[str, Any] = field(default_factory=dict)
    timm_name: str | None = None


MODELS: dict[str, ModelEntry] = {
    "vit_s": ModelEntry(vit, {}, "deit3_small_patch16_224.fb_in22k_ft_in1k"),
    "vit_m": ModelEntry(vit, {"embed_dim": 512, "heads": 8}, "deit3_medium_patch16_224.fb_in22k_ft_in1k"),
    "vit_b": ModelEntry(vit, {"embed_dim": 768, "heads": 12}, "deit3_base_patch16_224.fb_in22k_ft_in1k"),
    "swinv2_t": ModelEntry(SwinTrunk, {}, "swinv2_tiny_window8_256.ms_in1k"),
    "swinv2_s": ModelEntry(SwinTrunk, _SWIN_S, "swinv2_small_window8_256.ms_in1k"),
    "swinv2_b": ModelEntry(SwinTrunk, _SWIN_B, "swinv2_base_window8_256.ms_in1k"),
    "swinv2_l": ModelEntry(
        SwinTrunk,
        {**_SWIN_S, "embed_dim": 192, "heads": (6, 12, 24, 48), "window": 12},
        "swinv2_large_window12_192.ms_in22k",
    ),
    "swin_t": ModelEntry(GlamTrunk, _PLAIN, "swin_tiny_patch4_window7_224.ms_in22k"),
    "swin_s": ModelEntry(GlamTrunk, {**_SWIN_S, **_PLAIN}, "swin_small_patch4_window7_224.ms_in22k"),
    "swin_b": ModelEntry(GlamTrunk, {**_SWIN_B, **_PLAIN}, "swin_base_patch4_window7_224.ms_in22k"),
    "glam_t": ModelEntry(GlamTrunk, {}, "swin_tiny_patch4_window7_224.ms_in22k"),
    "glam_s": ModelEntry(GlamTrunk, _SWIN_S, "swin_small_patch4_window7_224.ms_in22k"),
    "glam_b": ModelEntry(GlamTrunk, _SWIN_B, "swin_base_patch4_window7_224.ms_in22k"),
    "flatten_swin_t": ModelEntry(FlattenTrunk),
    "flatten_swin_s": ModelEntry(FlattenTrunk, _SWIN_S),
    "flatten_swin_b": ModelEntry(FlattenTrunk, _SWIN_B),
    "gcvit": ModelEntry(gcvit),
    "unet": ModelEntry(unet),
    "deeplabv3": ModelEntry(deeplabv3),
    "pvtv2": ModelEntry(pvtv2),
    "threshold": ModelEntry(Threshold),
}

HEADS: dict[str, type[nn.Module]] = {
    "linear": LinearHead,
    "bilinear": BilinearHead,
    "upernet": UperHead,
    "upernet_mmseg": UperMmsegHead,
    "upernet_relay": UperRelayHead,
    "unet": UnetHead,
    "unet_nlu": NluUnetHead,
}

_TIMM = "timm:"
_STRATEGIES: tuple[str, ...] = get_args(Strategy)
_WITH_TOKENS = ("relays", "registers")
_BOTH_EMBEDDED = ("relays", "decision_fusion", "token_concat")  # strategies in which both scales have patches


def build(
    trunk: str,
    *,
    bands: int,
    classes: int,
    size: int = 256,
    strategy: str = "relays",
    relays: int = 4,
    order: str = "sequential",
    share_projector: bool = True,
    head: str = "linear",
    pretrained: bool | str = False,
    context_factor: int | None = None,
    **options: Any,
) -> nn.Module:
    """Make a network ``model(local, context) -> SegOutput`` for windows of ``size`` pixels.

    trunk: a name in `MODELS`, or 'timm:NAME' for any plain timm VisionTransformer.
    strategy: 'relays' (both scales), 'registers' (one scale with ``relays`` tokens) or 'single' (one scale, none);
    to compare with (paper, Tables 3 and 6): 'downsampling', 'decision_fusion', 'token_concat' (ViT only).
    context_factor: how many times as wide the context window is; only 'downsampling' and 'decision_fusion' need it.
    order: 'sequential' (paper, Eq. 4-5) or 'parallel' (Eq. 11-13). share_projector: both scales use one projection.
    head: a name in `HEADS`. pretrained: True for timm's weights, or a path; ``model.pretrained`` then reports.
    options: of the trunk (embed_dim, depth or depths, heads, window, patch_size, drop_path, final_norm) or of the
    head (head_channels, detail_channels, auxiliary).
    Raises `InputError` naming what is unknown, with the nearest known name; `RunError` for pretrained weights that
    are out of reach or do not fit.
    """
    entry = _entry(trunk)
    if bands < 1 or classes < 1:
        raise InputError(f"bands = {bands} and classes = {classes}: give at least 1 of each")
    if entry.trunk is Threshold:
        return Threshold(bands, classes, **_known(trunk, options, _options_of(Threshold, 2)))
    _lookup("strategy", strategy, _STRATEGIES)
    _lookup("order", order, ORDERS)
    make_head = _lookup("head", head, HEADS)
    if strategy in ("downsampling", "decision_fusion") and (context_factor is None or size % (2 * context_factor)):
        raise InputError(
            f"strategy = {strategy!r} cuts the centre out of the context: give a context_factor of which twice divides "
            f"size = {size}, not {context_factor}"
        )
    if relays < 1 and strategy in _WITH_TOKENS:
        raise InputError(f"relays = {relays} with strategy = {strategy!r}: give at least 1, or strategy = 'single'")
    trunk_names, head_names = _options_of(entry.trunk, 4), _options_of(make_head, 4)
    _known(trunk, options, trunk_names | head_names)
    if options.get("share_blocks") is False and strategy != "relays":
        raise InputError(f"share_blocks = false with strategy = {strategy!r}: only 'relays' has two scales")
    if options.get("auxiliary") and strategy in ("downsampling", "decision_fusion"):
        raise InputError(f"auxiliary = true with strategy = {strategy!r}, trained on its one result: leave it out")
    tokens = relays if strategy in _WITH_TOKENS else 0
    separate = strategy in _BOTH_EMBEDDED and not share_projector
    given = {**entry.defaults, **{k: v for k, v in options.items() if k in trunk_names}}
    body = entry.trunk(bands, size, tokens, separate, **given)
    chosen = {k: v for k, v in {**entry.defaults, **options}.items() if k in head_names}
    if issubclass(make_head, UnetHead) and not isinstance(body, PyramidTrunk):
        raise InputError(f"head = {head!r} needs the stages of Swin, GLAM or Flatten-Swin, not {trunk!r}: use 'linear'")
    top = make_head(body.channels, body.strides, classes, bands, **chosen)
    if isinstance(body, PyramidTrunk) and top.last_only:
        body.drop_lower_norms()
    if strategy == "token_concat" and not isinstance(body, VitTrunk):
        raise InputError(f"strategy = 'token_concat' needs a trunk that attends everywhere (a ViT), not {trunk!r}")
    model = Segmenter(body, top, strategy, order, bands, context_factor)  # type: ignore[arg-type]
    if pretrained and isinstance(body, LibraryTrunk):
        raise InputError(f"trunk = {trunk!r} is trained from scratch here: set pretrained = false")
    if pretrained:
        model.pretrained = load_pretrained(body, entry.timm_name, pretrained)
    return model


def _entry(trunk: str) -> ModelEntry:
    """The entry of a name; 'timm:NAME' stands for any timm ViT."""
    if trunk.startswith(_TIMM):
        name = trunk.removeprefix(_TIMM)
        return ModelEntry(functools.partial(timm_vit, name), {}, name)
    entry: ModelEntry = _lookup("trunk", trunk, MODELS)
    return entry


def _lookup(what: str, name: str, known: Any) -> Any:
    if name not in known:
        raise InputError(_unknown(what, name, known))
    return known[name] if isinstance(known, Mapping) else name


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    nearest = difflib.get_close_matches(str(name), list(known), 1, 0.5)
    hint = f"did you mean {nearest[0]!r}?" if nearest else f"known: {', '.join(sorted(known))}"
    return f"unknown {what} {name!r}: {hint}"


def _options_of(make: Callable[..., Any], skip: int) -> dict[str, Any]:
    """Names and defaults of a constructor's parameters after the first ``skip``, which `build` fills in."""
    return {p.name: p.default for p in list(inspect.signature(make).parameters.values())[skip:]}


def _known(trunk: str, options: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if name not in defaults:
            raise InputError(_unknown(f"option of {trunk!r}", name, defaults))
        if isinstance(defaults[name], tuple) != isinstance(value, (tuple, list)):
            example = list(defaults[name]) if isinstance(defaults[name], tuple) else defaults[name]
            raise InputError(f"option {name} = {value!r} of {trunk!r}: give a value like {example!r}")
    return options
