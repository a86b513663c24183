"""Where and in what precision a model runs."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uhrseg.card import ModelCard
from uhrseg.errors import InputError, RunError

__all__ = ["Precision", "Runner", "resolve_device", "resolve_precision"]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
_DTYPES = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_device(name: str = "auto") -> torch.device:
    """The device called `name`; ``auto`` takes CUDA, then Apple's MPS, then the CPU.

    Raises `InputError` for an unknown name or a device this machine lacks.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device {name!r} is not known: choose auto, cpu, cuda, cuda:N or mps") from error
    missing = device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count()
    missing |= device.type == "mps" and not torch.backends.mps.is_available()
    if missing or device.type not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r} is not available here: choose auto or cpu")
    return device


def resolve_precision(name: str, device: torch.device) -> str:
    """``fp32``, ``bf16`` or ``fp16`` for a device; ``auto`` takes bf16 where the hardware computes in it.

    On CPUs that is AVX512-BF16 or AMX. Raises `InputError` for an unknown name, or fp16 on a CPU.
    """
    if name not in get_args(Precision):
        raise InputError(f"precision {name!r} is not known: choose one of {', '.join(get_args(Precision))}")
    if name == "fp16" and device.type == "cpu":
        raise InputError("precision fp16 is for GPUs: choose bf16 or fp32 on a CPU")
    if name != "auto":
        return name
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "bf16" if device.type == "cpu" and _cpu_has_bf16() else "fp32"


def _cpu_has_bf16() -> bool:
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Runner:
    """A model on its device: raw window batches in, float32 logits out, one call at a time.

    Every call runs exactly `batch_size` windows, short batches being filled up: matrix products in bf16 were seen to
    change last bits with the number of rows, and a result must not depend on how a scene was cut. `seconds` counts
    the time spent in the model.
    """

    def __init__(
        self, model: nn.Module, card: ModelCard, device: torch.device, precision: str, batch_size: int
    ) -> None:
        self.model = model.to(device).eval()
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.classes = len(card.legend)
        self.seconds = 0.0
        self._lock = threading.Lock()
        self._mean = torch.tensor([b.mean for b in card.input.band], device=device).view(-1, 1, 1)
        self._scale = torch.tensor([1 / b.std for b in card.input.band], device=device).view(-1, 1, 1)

    def __call__(self, local: NDArray[np.float32], context: NDArray[np.float32] | None) -> Tensor:
        """Local logits (B, classes, S, S) float32 of padded, unscaled windows (B, C, S, S)."""
        with self._lock, torch.inference_mode(), self._autocast():
            started = time.perf_counter()
            output = self.model(self._scaled(local), None if context is None else self._scaled(context), False)
            logits = output.logits[: len(local)].float()
            if not torch.isfinite(logits).all():
                raise RunError(f"the model gave values that are not finite in {self.precision}: try --precision fp32")
            self.seconds += time.perf_counter() - started
            return logits

    def _scaled(self, windows: NDArray[np.float32]) -> Tensor:
        missing = self.batch_size - len(windows)
        if missing > 0:
            windows = np.concatenate([windows, np.repeat(windows[-1:], missing, axis=0)])
        return (torch.from_numpy(windows).to(self.device) - self._mean) * self._scale

    def _autocast(self) -> Any:
        dtype = _DTYPES[self.precision]
        return torch.autocast(self.device.type, dtype) if dtype else nullcontext()
