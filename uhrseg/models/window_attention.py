"""SwinV2's cosine attention over windows of patch tokens followed by relays.

Liu et al. 2022 (Swin V2), sections 3.2-3.3, and the authors' treatment of relays: their rows and columns take neither
position bias nor shift mask. Shapes: B batch, W windows, N = patches + relays of a window, C channels, h heads,
d = C / h.
"""

from __future__ import annotations

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any, cast

import torch
import torch.nn.functional as F
from timm.models.swin_transformer_v2 import WindowAttention
from torch import Tensor, nn

from uhrseg.models.relay import Want, by_rows

__all__ = ["CosineAttention", "attend", "cosine_weights", "no_autocast", "split_heads"]

_MAX_LOGIT_SCALE = math.log(100.0)  # Swin V2, section 3.2: temperature not below 0.01
_MAX_BIAS = 16.0  # Swin V2's published code: 16 * sigmoid
_TINY = 1e-12  # as torch.nn.functional.normalize


class CosineAttention(WindowAttention):
    """timm's `WindowAttention` (same parameters and names) that accepts relays and keeps its bias between calls.

    The position bias depends on the weights only, so without gradients it is computed once and kept until a weight
    changes: by an optimiser step, ``load_state_dict``, ``.to()``, ``train()``. (Writing through ``weight.data``
    leaves no trace in torch; call ``train(False)`` after such a write.)
    """

    def __init__(self, dim: int, window: tuple[int, int], heads: int) -> None:
        super().__init__(dim, window, heads)
        self._kept: tuple[tuple[Any, ...], Tensor] | None = None

    def forward(  # type: ignore[override]
        self, x: Tensor, relays: Tensor | None = None, mask: Tensor | None = None, want: Want = "both"
    ) -> tuple[Tensor | None, Tensor | None]:
        """Attend within windows, each with a copy of the relays.

        x (B, W, patches, C), relays (B, R, C), mask (W, patches, patches) -> patches (B, W, patches, C) and the mean
        over windows of the relays (B, R, C). ``want`` names what will be read; the rest is None.
        """
        q, k, v = self._qkv(x, relays, want)  # (B*W, h, rows | N, d)
        scale = self.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()  # (h, 1, 1)
        patches, windows = x.shape[2], x.shape[:2]
        rows = _rows(patches, relays, want)
        bias = self.bias(k.shape[2], mask, v.dtype)[:, :, rows]  # (1 | W, h, rows, N)
        with no_autocast(x.device):  # autocast would run it all in float32, at half the speed
            y = attend(_unit(q, scale), _unit(k, None), v, bias)
        first = 0 if want == "relays" else patches  # rows of y that are patches
        of_patches = self._merge(y[:, :, :first]).unflatten(0, windows) if first else None
        of_relays = None
        if relays is not None and want != "tokens":  # the projection is linear: one of the mean is the mean of all
            of_relays = self._merge(y[:, :, first:].unflatten(0, windows).mean(1))
        return of_patches, of_relays

    def _merge(self, y: Tensor) -> Tensor:
        """(B, h, rows, d) -> (B, rows, C), projected."""
        return by_rows(self.proj, y.transpose(1, 2).flatten(2))

    def _qkv(self, x: Tensor, relays: Tensor | None, want: Want) -> tuple[Tensor, Tensor, Tensor]:
        """Queries of the wanted rows, keys and values of all: relays are projected once and copied to every window."""
        heads, weight = self.num_heads, self.qkv.weight
        bias = torch.cat(cast(tuple[Tensor, Tensor, Tensor], (self.q_bias, self.k_bias, self.v_bias)))
        if relays is None:
            q, k, v = _heads(F.linear(x, weight, bias), 3, heads).flatten(1, 2).contiguous().unbind(0)
            return q, k, v
        copies = (-1, -1, x.shape[1], -1, -1, -1)
        relays = relays.contiguous()  # torch rounds otherwise on strided input, and batches differ in strides
        projected = by_rows(lambda rows: F.linear(rows, weight, bias), relays)  # (B, R, 3 * C)
        shared = _heads(projected.unsqueeze(1), 3, heads).expand(copies)  # (3, B, W, h, R, d)
        if want == "both":
            own = _heads(F.linear(x, weight, bias), 3, heads)  # (3, B, W, h, patches, d)
            q, k, v = torch.cat((own, shared), -2).flatten(1, 2).unbind(0)
            return q, k, v
        if want == "tokens":
            own = _heads(F.linear(x, weight, bias), 3, heads)
            q = own[0]
        else:
            own = _heads(F.linear(x, weight[self.dim :], bias[self.dim :]), 2, heads)
            q = shared[0]
        k, v = torch.cat((own[-2:], shared[1:]), -2).flatten(1, 2).unbind(0)
        return q.flatten(0, 1).contiguous(), k, v

    def bias(self, tokens: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """What is added to the attention logits of a window with ``tokens`` tokens: (1 | W, h, N, N)."""
        first, second = self._cpb_layers()
        weights = (first.weight, first.bias, second.weight)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or any(w.is_inference() for w in weights):
            return self._compute_bias(tokens, mask, dtype)
        key = (tokens, mask is None, dtype, *(w._version for w in weights), *weights)
        kept = self._kept
        if kept is None or not _same_key(kept[0], key):
            with torch.inference_mode(False), torch.no_grad():
                self._kept = kept = (key, self._compute_bias(tokens, mask, dtype))
        return kept[1]

    def _compute_bias(self, tokens: int, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Log-spaced continuous position bias plus shift mask; zero on the rows and columns of relays."""
        patches, (first, second) = self.window_size[0] * self.window_size[1], self._cpb_layers()
        coords, index = self.relative_coords_table, cast(Tensor, self.relative_position_index)
        with no_autocast(coords.device):  # bfloat16 would round a bias of 16 to steps of 1/8
            hidden = F.relu(F.linear(coords.float(), first.weight.float(), first.bias.float()))
            table = F.linear(hidden, second.weight.float()).view(-1, self.num_heads)
            bias = (_MAX_BIAS * torch.sigmoid(table))[index.view(-1)]
        bias = bias.view(patches, patches, self.num_heads).permute(2, 0, 1).unsqueeze(0)  # (1, h, patches, patches)
        if mask is not None:
            bias = bias + mask.unsqueeze(1)  # (W, h, patches, patches)
        relays = tokens - patches
        # pad keeps the heads innermost, and adding that to logits in rows took ten times as long
        return F.pad(bias, (0, relays, 0, relays)).to(dtype).contiguous()

    def _cpb_layers(self) -> tuple[nn.Linear, nn.Linear]:
        return cast(nn.Linear, self.cpb_mlp[0]), cast(nn.Linear, self.cpb_mlp[2])

    def train(self, mode: bool = True) -> CosineAttention:
        """Switch mode, and forget the kept bias."""
        self._kept = None
        super().train(mode)
        return self

    def _apply(self, fn: Any, recurse: bool = True) -> CosineAttention:
        self._kept = None  # .to(), .half() and the like move weights without a new version
        super()._apply(fn, recurse)
        device = self.proj.weight.device  # coordinates stay float32, whatever the weights become
        self.relative_coords_table, _ = self._make_pair_wise_relative_positions(device, torch.float32)
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}  # copies and pickles start without


def cosine_weights(attn: CosineAttention, x: Tensor, relays: Tensor) -> Tensor:
    """The weights that the copies of the relays give in ``attn(x, relays)``: (B*W, h, R, N), rows of sum 1.

    Relays take neither position bias nor mask.
    """
    q, k, _ = attn._qkv(x, relays, "relays")  # (B*W, h, R | N, d)
    scale = attn.logit_scale.clamp(max=_MAX_LOGIT_SCALE).exp()
    logits = _unit(q, scale) @ _unit(k, None).transpose(-2, -1)  # (B*W, h, R, N)
    return logits.softmax(-1)


def _rows(patches: int, relays: Tensor | None, want: Want) -> slice:
    if relays is None or want == "both":
        return slice(None)
    return slice(0, patches) if want == "tokens" else slice(patches, None)


def _heads(x: Tensor, parts: int, heads: int) -> Tensor:
    """(B, W, N, parts * C) -> (parts, B, W, h, N, d), a view."""
    return x.unflatten(-1, (parts, heads, -1)).permute(3, 0, 1, 4, 2, 5)


def no_autocast(device: torch.device) -> AbstractContextManager[object]:
    """Autocast off: for steps whose precision is chosen by hand."""
    known = torch.amp.is_autocast_available(device.type)  # the meta device has none
    return torch.autocast(device.type, enabled=False) if known else nullcontext()


def split_heads(x: Tensor, parts: int, tokens: int, heads: int) -> tuple[Tensor, ...]:
    """(B, W, N, parts * C) -> parts tensors (B*W, h, N, d), contiguous: the products below run faster so."""
    return (
        x.reshape(-1, tokens, parts, heads, x.shape[-1] // (parts * heads))
        .permute(2, 0, 3, 1, 4)
        .contiguous()
        .unbind(0)
    )


def _unit(x: Tensor, scale: Tensor | None) -> Tensor:
    """Vectors of length 1 (times ``scale``), computed in float32 and returned in x's dtype."""
    wide = x.float()
    factor = torch.linalg.vector_norm(wide, dim=-1, keepdim=True).clamp_min(_TINY).reciprocal()
    return (wide * (factor if scale is None else factor * scale)).to(x.dtype)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """softmax(q k^T + bias) v for q, k, v (B*W, h, N, d) and bias (1 | W, h, N, N).

    On CPU in plain steps: for windows of some 70 tokens they took half the time of torch's fused kernel (4.7 against
    8.8 ms in bfloat16, 7 against 11 in float32; forward and backward 21 against 49).
    """
    return _plain(q, k, v, bias) if q.device.type == "cpu" else _fused(q, k, v, bias)


def _plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    logits = q @ k.transpose(-2, -1)  # (B*W, h, N, N)
    logits = logits.view(-1, bias.shape[0], *logits.shape[1:]).add_(bias).view(logits.shape)
    return logits.softmax(-1) @ v


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    windows = bias.shape[0]
    repeated = bias.repeat(q.shape[0] // windows, 1, 1, 1) if windows > 1 else bias
    return F.scaled_dot_product_attention(q, k, v, attn_mask=repeated, scale=1.0)


def _same_key(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return len(a) == len(b) and all(x is y if isinstance(x, Tensor) else x == y for x, y in zip(a, b, strict=True))
