"""A network's forward pass as one CUDA graph.

A transformer over two scales launches some thousand small kernels per batch; a fast GPU is done with one before the
processor has sent the next. Recorded once, they are sent as one. See
https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs
"""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

__all__ = ["Forward", "Recorded"]

_log = logging.getLogger(__name__)

Forward = Callable[[Tensor, Tensor | None], Tensor]
"""Local and context windows (B, C, S, S) -> logits (B, classes, S, S)."""

_PLAIN_CALLS = 3  # kernels are chosen, compiled and tuned; and a scene of a few windows needs no recording


class Recorded:
    """`forward`, recorded at the fourth call and replayed from then on; all calls have one shape.

    A result is overwritten by the next call. A network that cannot be recorded, since it waits for the device between
    its kernels, runs as before, and a warning says so.
    """

    def __init__(self, forward: Forward) -> None:
        self._forward = forward
        self._calls = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: list[Tensor] = []
        self._output: Tensor | None = None

    def __call__(self, local: Tensor, context: Tensor | None) -> Tensor:
        """Logits of one batch."""
        self._calls += 1
        given = [local] if context is None else [local, context]
        if self._calls == _PLAIN_CALLS + 1:
            self._record(given)
        if self._graph is None or self._output is None:
            return self._forward(local, context)
        for kept, new in zip(self._inputs, given, strict=True):
            kept.copy_(new)
        self._graph.replay()
        return self._output

    def _record(self, given: list[Tensor]) -> None:
        inputs, graph = [x.clone() for x in given], torch.cuda.CUDAGraph()
        torch.cuda.synchronize(given[0].device)
        try:
            # Other threads go on reading and copying: only what this one does must be fit for a graph.
            with torch.cuda.graph(graph, capture_error_mode="thread_local"):
                output = self._forward(inputs[0], inputs[1] if len(inputs) == 2 else None)
        except RuntimeError as error:
            _log.warning("the network cannot be recorded as a CUDA graph and runs slower: %s", error)
            return
        self._graph, self._inputs, self._output = graph, inputs, output
