"""A trained model as an ONNX file, checked against the original before it takes its name."""

from __future__ import annotations

import json
import logging
import os
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from uhrseg.card import ModelCard
from uhrseg.engine.fit import load_model
from uhrseg.errors import InputError, RunError

__all__ = ["Exported", "Logits", "export_onnx"]

TOLERANCE = 1e-3
"""Largest difference of logits between the file and the model, relative to the largest logit if that is above 1."""

_BATCHES = (1, 2, 5)
_LARGEST_BATCH = 1024


@dataclass(frozen=True)
class Exported:
    """What was written: inputs by name, and the largest difference of logits found."""

    path: Path
    inputs: tuple[str, ...]
    difference: float


class Logits(nn.Module):
    """The local logits alone: (B, bands, S, S), and the context alike, already scaled -> (B, classes, S, S)."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, local: Tensor, context: Tensor | None = None) -> Tensor:
        """See the class."""
        return cast(Tensor, self.module(local, context, False).logits)


def export_onnx(model: str | Path, output: Path, overwrite: bool = False) -> Exported:
    """Write the model (a folder or a shipped name) to `output`: inputs ``local`` and, with two scales, ``context``.

    Inputs are scaled as the card says ((value - mean) / std per band) and have any batch size; the output ``logits`` is
    (batch, classes, size, size) float32. The card travels in the file's metadata (``uhrseg.card``, JSON). onnxruntime
    runs the file on random windows before it takes its name. Raises `InputError` for a file that exists or tools that
    are missing, and `RunError` for a network that cannot be traced or a file that does not do what the model does.
    """
    if output.suffix != ".onnx":
        raise InputError(f"{output} is no ONNX file: give a name that ends in .onnx")
    if output.exists() and not overwrite:
        raise InputError(f"{output} exists: pass --overwrite to replace it")
    onnx, runtime = _tools()
    module, card = load_model(model)
    network = Logits(module).eval()
    size, bands = card.window.size, len(card.input.band)
    inputs = ("local",) if card.window.context_factor is None else ("local", "context")
    draft = output.with_name(f".{output.name}")
    try:
        program = _program(network, inputs, (2, bands, size, size))
        program.save(str(draft))
        _describe(onnx, draft, card)
        difference = _difference(runtime, draft, network, inputs, (bands, size, size))
        if not difference <= TOLERANCE:
            raise RunError(f"{model}: the exported network differs from the model by {difference:.2g} in its logits")
        os.replace(draft, output)
    finally:
        draft.unlink(missing_ok=True)
    return Exported(output, inputs, difference)


def _tools() -> tuple[Any, Any]:
    try:
        import onnx
        import onnxruntime
        import onnxscript  # noqa: F401  (torch.onnx needs it)
    except ImportError as error:
        raise InputError(f"export needs {error.name}, which is not installed: pip install uhrseg[export]") from error
    return onnx, onnxruntime


def _program(network: nn.Module, inputs: tuple[str, ...], shape: tuple[int, ...]) -> Any:
    """The network traced by `torch.export` with a free batch size, translated to ONNX."""
    batch = torch.export.Dim("batch", min=1, max=_LARGEST_BATCH)
    examples = tuple(torch.zeros(shape) for _ in inputs)
    dynamic = {name: {0: batch} if name in inputs else None for name in ("local", "context")}
    if len(inputs) == 1:
        dynamic.pop("context")
    with warnings.catch_warnings():  # the exporter's notes to its own developers
        warnings.simplefilter("ignore")
        logging.getLogger("torch.onnx").setLevel(logging.ERROR)
        try:
            program = torch.export.export(network, examples, dynamic_shapes=dynamic)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:200]
            raise RunError(f"this network cannot be exported with a free batch size: {reason}") from error
        return torch.onnx.export(program, dynamo=True, verbose=False, output_names=["logits"])


def _describe(onnx: Any, path: Path, card: ModelCard) -> None:
    """The card, and the legend by itself, as metadata."""
    file = onnx.load(str(path))
    metadata = {
        "uhrseg.card": card.model_dump_json(by_alias=True, exclude_none=True),
        "uhrseg.legend": json.dumps([asdict(c) for c in card.legend.classes], ensure_ascii=False),
    }
    onnx.helper.set_model_props(file, metadata)
    onnx.save(file, str(path))


def _difference(
    runtime: Any, path: Path, network: nn.Module, inputs: tuple[str, ...], shape: tuple[int, ...]
) -> float:
    """The largest difference of logits between file and network on random windows, for several batch sizes."""
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    generator, worst = torch.Generator().manual_seed(0), 0.0
    for batch in _BATCHES:
        windows = [torch.randn((batch, *shape), generator=generator) for _ in inputs]
        with torch.inference_mode():
            expected = network(*windows)
        found = session.run(None, {name: w.numpy() for name, w in zip(inputs, windows, strict=True)})[0]
        scale = max(1.0, float(expected.abs().max()))
        worst = max(worst, float((torch.from_numpy(found) - expected).abs().max()) / scale)
    return worst
