"""When a step fails: what fits into memory, and which sample is at fault. Both are measured, not guessed."""

from __future__ import annotations

import gc
import math
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from uhrseg.data.chips import Chip, Chips
from uhrseg.data.sampling import SampleKey
from uhrseg.engine.memory import return_free_memory
from uhrseg.engine.step import NotFinite, Step

__all__ = ["describe_not_finite", "describe_out_of_memory", "fitting_batch", "is_out_of_memory", "release_memory"]

_CPU_ALLOCATION = ("can't allocate memory", "not enough memory", "bad_alloc", "Cannot allocate memory")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory ran out: CUDA's and MPS' own exceptions, and the messages of torch's CPU allocator."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    words = str(error).strip()
    # oneDNN's whole message when it gets no memory; what it does not support has more words.
    short = words == "could not create a primitive"
    found = any(part in words for part in (*_CPU_ALLOCATION, "out of memory"))
    return isinstance(error, RuntimeError) and (short or found)


def release_memory() -> None:
    """Give back what a failed step left behind; call it outside the except block, whose traceback holds tensors."""
    gc.collect()
    return_free_memory()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def fitting_batch(step: Step, module: nn.Module, batch: Chip) -> int:
    """The largest of 1/2, 1/4, ... of the samples of `batch` whose forward and backward pass succeed; 0 for none.

    Weights and gradients stay as they are: the pass works on aliases of the parameters of `module`, and the room that
    an optimiser not yet used will need is held meanwhile.
    """
    samples = len(batch["labels"])
    while (samples := samples // 2) > 0:
        if _fits(step, module, batch, samples):
            return samples
        release_memory()
    return 0


def _fits(step: Step, module: nn.Module, batch: Chip, samples: int) -> bool:
    part: Any = {name: value[:samples] for name, value in batch.items()}  # type: ignore[index]
    try:
        held = [torch.empty_like(p) for p in module.parameters() for _ in range(0 if step.optimizer.state else 2)]
        aliases = {name: p.detach().requires_grad_(p.requires_grad) for name, p in module.named_parameters()}
        aliases |= {name: b.clone() for name, b in module.named_buffers()}
        with step.fabric.autocast():
            output = functional_call(module, aliases, step.inputs(part))
        step.loss(output, part["labels"].long(), None, None).total.backward()
        del held
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return False
    return True


def describe_out_of_memory(batch: int, accumulate: int, fits: int | None, kept: str) -> str:
    """The sentence for a step of `accumulate` passes of `batch` samples; `fits` None: not tried."""
    start = f"out of memory with train.batch_size = {batch}; {kept}. "
    advice = "train.activation_checkpointing = true needs less memory"
    if fits is None:
        return f"{start}Lower train.batch_size and raise train.accumulate by the same factor; {advice}"
    if fits == 0:
        return f"{start}Not even one sample fits: choose a smaller window.size or trunk; {advice}"
    return (
        f"{start}{fits} would fit (tried): go on with --set train.batch_size={fits} "
        f"--set train.accumulate={accumulate * batch // fits} --resume, which trains the same; {advice}"
    )


def describe_not_finite(step: Step, module: nn.Module, passes: Sequence[Chip], chips: Chips, error: NotFinite) -> str:
    """The sentence for a step whose numbers are not finite; names the first sample whose own loss is not."""
    losses = [pair for batch in passes for pair in _single_losses(step, module, batch)]
    wrong = [key for key, value in losses if not math.isfinite(value)]
    if not wrong:
        first, last = losses[0][0], losses[-1][0]
        place = f"no sample alone gives it; samples (epoch, index) {first} to {last}"
    elif len(wrong) == len(losses) > 1:
        place = f"every sample gives it, so the weights have diverged; the first is {chips.where(wrong[0])}"
    else:
        place = f"sample {chips.where(wrong[0])}"
    return f"step {error.step + 1} is not finite ({', '.join(error.names)}): {place}"


def _single_losses(step: Step, module: nn.Module, batch: Chip) -> Iterator[tuple[SampleKey, float]]:
    """Key and loss of each sample by itself."""
    module.eval()
    for k, (epoch, index) in enumerate(batch["key"].tolist()):
        one: Any = {name: value[k : k + 1] for name, value in batch.items()}  # type: ignore[index]
        local, context = step.inputs(one)
        with torch.no_grad(), step.fabric.autocast():
            output = module(local, context, None if context is None else True)
        yield (epoch, index), step.loss(output, one["labels"].long(), None, None).total.item()
