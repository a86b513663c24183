"""Memory of this process."""

from __future__ import annotations

import ctypes
import functools
import resource
import sys
import time
from collections.abc import Callable

_TRIM_SECONDS = 1.0
_last_trim = 0.0

__all__ = ["peak_rss_mb", "return_free_memory"]


def peak_rss_mb() -> float:
    """Peak resident memory of this process in megabytes of 1e6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


def return_free_memory() -> None:
    """Give freed memory back to the system, at most once a second: it costs some 20 ms.

    Only where the C library is glibc; elsewhere nothing needs doing.

    glibc keeps freed blocks below 32 MB in the arena of each thread. Tensors of a few megabytes, made and freed in
    several threads, leave holes there: 590 MB resident were measured where 232 MB were in use.
    """
    global _last_trim
    trim = _malloc_trim()
    if trim is not None and time.monotonic() - _last_trim > _TRIM_SECONDS:
        trim(0)
        _last_trim = time.monotonic()


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)
