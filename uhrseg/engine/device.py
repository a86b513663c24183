"""Where and in what precision a model runs."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from uhrseg.card import ModelCard
from uhrseg.engine.graph import Forward, Recorded
from uhrseg.errors import InputError, RunError

__all__ = ["Precision", "Runner", "default_batch_size", "default_readers", "resolve_device", "resolve_precision"]

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


def default_batch_size(device: torch.device) -> int:
    """Windows per call of a model: enough to fill the device."""
    return 4 if device.type == "cpu" else 16


def default_readers(device: torch.device) -> int:
    """Threads that read ahead of the model for one chunk: up to 6 for a GPU, one beside a model on the CPU."""
    return 1 if device.type == "cpu" else max(1, min(6, (os.cpu_count() or 1) - 2))


def _cpu_has_bf16() -> bool:
    capabilities: Mapping[str, Any] = torch.cpu.get_capabilities()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


class Runner:
    """A model on its device: raw window batches in, float32 logits out, one call at a time.

    Every call runs exactly `batch_size` windows, short batches being filled up: matrix products in bf16 were seen to
    change last bits with the number of rows, and a result must not depend on how a scene was cut. `seconds` is the
    time spent in the model. On a GPU a call returns before the work is done: nothing here waits for the device.
    """

    def __init__(
        self, model: nn.Module, card: ModelCard, device: torch.device, precision: str, batch_size: int,
        compiled: bool = False,
    ) -> None:  # fmt: skip
        self.model = model.to(device).eval()
        self.batch_size = batch_size
        self.device = device
        self.precision = precision
        self.classes = len(card.legend)
        self._batches: dict[int, Tensor] = {}  # on a CPU the inputs of every call, by scale: 0 local, 1 context
        self._clock = _Clock(device)
        self._lock = threading.Lock()
        self._mean = torch.tensor([b.mean for b in card.input.band], device=device).view(-1, 1, 1)
        self._scale = torch.tensor([1 / b.std for b in card.input.band], device=device).view(-1, 1, 1)
        # Tensor cores take convolutions with channels last only; for others the order of channels does not matter.
        self._layout = torch.channels_last if device.type == "cuda" and precision != "fp32" else None
        if self._layout is not None:
            self.model.to(memory_format=self._layout)
        # Every call has one shape, so one graph is compiled, at the first call.
        self._model = torch.compile(self.model, dynamic=False) if compiled else self.model
        self._recorded = compiled and device.type == "cuda"
        self._forward: Forward = Recorded(self._logits) if self._recorded else self._logits

    @property
    def seconds(self) -> float:
        """Seconds spent in the model so far, by the device's own clock on a GPU."""
        return self._clock.seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        """Set the count, to start over."""
        self._clock.seconds = value

    def __call__(self, local: Sequence[NDArray[Any]], context: Sequence[NDArray[np.float32]] | None) -> Tensor:
        """Local logits (B, classes, S, S) float32 of at most `batch_size` padded, unscaled windows (C, S, S).

        Bytes and 16-bit integers are scaled on the device. The caller owns the result and looks for values that are
        not finite: to look here would wait for the device.
        """
        with self._lock, torch.inference_mode(), self._clock:
            inputs = self._scaled(local, 0), None if context is None else self._scaled(context, 1)
            logits = self._forward(*inputs)[: len(local)]
            return logits.clone() if self._is_reused(logits) else logits

    def _is_reused(self, logits: Tensor) -> bool:
        """Whether the next call writes over them: over what was recorded, or inputs that a trivial model gives back."""
        held = logits.untyped_storage().data_ptr()
        return self._recorded or any(held == b.untyped_storage().data_ptr() for b in self._batches.values())

    def _logits(self, local: Tensor, context: Tensor | None) -> Tensor:
        with self.autocast():
            return self._model(local, context, False).logits.float().contiguous()

    def check(self, total: Tensor) -> None:
        """Raise `RunError` when `total`, a sum over logits, is not finite; this waits for the device."""
        if not torch.isfinite(total):
            raise RunError(f"the model gave values that are not finite in {self.precision}: try --precision fp32")

    def _scaled(self, windows: Sequence[NDArray[Any]], scale: int) -> Tensor:
        """Windows (C, S, S) as one full batch (B, C, S, S) on the device, scaled as the card says."""
        full = [*windows, *[windows[-1]] * (self.batch_size - len(windows))]
        if self.device.type == "cpu":
            return self._scaled_in_place(full, scale)
        scaled = self._on_device(full).to(torch.float32).sub_(self._mean).mul_(self._scale)
        return scaled if self._layout is None else scaled.contiguous(memory_format=self._layout)

    def _scaled_in_place(self, windows: Sequence[NDArray[Any]], scale: int) -> Tensor:
        """The same in memory that the next call at this scale uses again: one window after the other, in the cache."""
        shape = (len(windows), *windows[0].shape)
        if scale not in self._batches or self._batches[scale].shape != shape:
            self._batches[scale] = torch.empty(shape)
        for place, window in zip(self._batches[scale], windows, strict=True):
            place.copy_(torch.from_numpy(window)).sub_(self._mean).mul_(self._scale)
        return self._batches[scale]

    def _on_device(self, windows: Sequence[NDArray[Any]]) -> Tensor:
        """Windows (C, S, S) as one batch (B, C, S, S), copied once on their way."""
        if self.device.type != "cuda":
            return torch.from_numpy(np.stack(windows)).to(self.device)
        kind = torch.from_numpy(np.empty(0, np.result_type(*windows))).dtype
        pinned = torch.empty((len(windows), *windows[0].shape), dtype=kind, pin_memory=True)
        np.stack(windows, out=pinned.numpy())
        return pinned.to(self.device, non_blocking=True)  # the allocator keeps it until the copy is done

    def autocast(self) -> Any:
        """The context in which the model runs in this precision."""
        dtype = _DTYPES[self.precision]
        # A recording must not read weights that were cast outside it.
        return torch.autocast(self.device.type, dtype, cache_enabled=not self._recorded) if dtype else nullcontext()


class _Clock:
    """Sums the time spent inside its `with` block; on a GPU by events, which cost no waiting."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._seconds = 0.0
        self._started = 0.0
        self._spans: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    @property
    def seconds(self) -> float:
        """The sum so far; on a GPU this waits for what was started."""
        self._collect(wait=True)
        return self._seconds

    @seconds.setter
    def seconds(self, value: float) -> None:
        self._collect(wait=True)
        self._seconds = value

    def __enter__(self) -> None:
        if self.device.type == "cuda":
            self._collect(wait=False)
            self._spans.append((_event(), _event()))
            self._spans[-1][0].record(torch.cuda.current_stream(self.device))
        self._started = time.perf_counter()

    def __exit__(self, *exc: object) -> None:
        if self.device.type == "cuda":
            self._spans[-1][1].record(torch.cuda.current_stream(self.device))
        else:
            self._seconds += time.perf_counter() - self._started

    def _collect(self, wait: bool) -> None:
        while self._spans and (wait or self._spans[0][1].query()):
            start, end = self._spans.pop(0)
            end.synchronize()
            self._seconds += start.elapsed_time(end) / 1000


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
