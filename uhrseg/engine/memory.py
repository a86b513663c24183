"""Memory of this process."""

from __future__ import annotations

import ctypes
import functools
import math
import resource
import sys
import threading
import time
from pathlib import Path

__all__ = ["SteadyMemory", "Watch", "keep_free_memory", "peak_rss_mb", "resident_mb", "return_free_memory"]

_STATM = Path("/proc/self/statm")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # numbers of glibc's malloc.h
_KEPT = 128 << 20  # bytes at the end of the heap that glibc may keep: a batch with what the model makes of it
_MAPPED = 32 << 20  # bytes from which on a block is mapped by itself; no larger number is accepted


def peak_rss_mb() -> float:
    """Peak resident memory of this process in megabytes of 1e6 bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6


class Watch:
    """Notes the resident memory of this process every few milliseconds inside its `with` block.

    `rise_mb`: how far it rose above what it was on entering; where there is no ``/proc``, how far the peak rose.
    """

    def __enter__(self) -> Watch:
        self._start = self._highest = resident_mb()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._note, name="uhrseg-memory")
        self._thread.start()
        return self

    @property
    def rise_mb(self) -> float:
        """Megabytes of 1e6 bytes."""
        return self._highest - self._start

    def _note(self) -> None:
        while not self._stop.wait(0.002):
            self._highest = max(self._highest, resident_mb())

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        self._thread.join()
        self._highest = max(self._highest, resident_mb())


def resident_mb() -> float:
    """Resident memory of this process now in megabytes of 1e6 bytes; its peak where there is no ``/proc``."""
    try:
        pages = int(_STATM.read_text().split()[1])
    except OSError:
        return peak_rss_mb()
    return pages * resource.getpagesize() / 1e6


@functools.cache
def keep_free_memory() -> None:
    """Let glibc keep up to 128 MB of freed memory for the next batch, in one heap; for the whole process, and once.

    Left alone it gives the end of the heap back to the system whenever a window is done, and takes it again page by
    page for the next one: a tenth of the CPU time of a run with a cheap network. Threads that start later share the
    main heap: one of their own falls into pieces of 64 MB, which a few rows of windows fill with holes.
    """
    libc = _glibc()
    if libc is not None:
        libc.mallopt(_M_MMAP_THRESHOLD, _MAPPED)
        libc.mallopt(_M_TRIM_THRESHOLD, _KEPT)
        libc.mallopt(_M_ARENA_MAX, 1)


def return_free_memory() -> None:
    """Give freed memory back to the system; it costs some 20 ms, and as much again when the pages are taken back.

    Only where the C library is glibc; elsewhere nothing needs doing. glibc keeps freed blocks below 32 MB, and tensors
    of a few megabytes leave holes.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


class SteadyMemory:
    """Keeps resident memory at the level that some repeated work needs: `settle` is called after each round of it.

    Free memory goes back when holes have added `growth_mb` to the lowest level seen, at most once in `seconds`: work
    that takes the pages back at once would be held up by it.
    """

    def __init__(self, growth_mb: float, seconds: float) -> None:
        self.growth_mb = growth_mb
        self.seconds = seconds
        self._level_mb = math.inf
        self._returned = time.monotonic()

    def settle(self) -> None:
        """Compare with the level, and give free memory back if there is too much of it."""
        now = resident_mb()
        self._level_mb = min(self._level_mb, now)
        if now - self._level_mb > self.growth_mb and time.monotonic() - self._returned >= self.seconds:
            return_free_memory()
            self._returned = time.monotonic()


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    if not sys.platform.startswith("linux"):
        return None
    libc = ctypes.CDLL(None)
    return libc if hasattr(libc, "malloc_trim") else None  # musl has none
