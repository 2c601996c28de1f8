"""How much memory one call adds at its peak, as the operating system sees it."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from collections.abc import Callable
from pathlib import Path

WORTH_MEASURING = 4 * 2**20
"""Bytes of the smallest tensor whose peak is measured; the system counts in coarser steps."""

_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def peak_of(call: Callable[[], object]) -> int | None:
    """Return by how many bytes the resident memory rises while a call runs, its results included.

    What the allocator holds but does not use is given back to the system first, so that it counts
    again when the call takes it. That reaches what the calling thread allocates, as PyTorch does;
    not the arenas of other threads, where XLA and TensorFlow do. None where it cannot be done: it
    needs Linux and glibc.
    """
    trim = _find_trim()
    if trim is None or not os.access(_CLEAR, os.W_OK):
        return None
    call()
    gc.collect()
    trim(0)
    # Sets the peak back to what is resident now.
    _CLEAR.write_text("5")
    before = _read("VmRSS")
    call()
    return max(0, _read("VmHWM") - before)


def _find_trim() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None), "malloc_trim", None)


def _read(name: str) -> int:
    found = re.search(rf"{name}:\s+(\d+) kB", _STATUS.read_text())
    return int(found[1]) * 1024 if found else 0
