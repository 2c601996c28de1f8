"""The threads that run the loops: OpenMP's where a library has brought it, else a pool of our own.

OpenMP's threads wait for their next work actively for a while. Whoever runs threads of their own
beside a library that uses them, as PyTorch does, gets half of each processor.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from homeostat.kernels.cpu import run_parts

_pool: ThreadPoolExecutor | None = None
# GOMP_parallel(function, data, threads, flags) of libgomp, which LLVM's and Intel's have too.
_openmp: Callable[..., Any] | None = None


def _forget() -> None:
    # A fork copies the pools but none of their threads, and OpenMP does not notice.
    global _pool, _openmp
    _pool = _openmp = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def use_openmp_of(library: str | os.PathLike[str]) -> None:
    """Run the loops on the OpenMP threads of a loaded library, where it has any.

    Args:
        library: path of the shared library; one that is not there, or without OpenMP, is ignored.
    """
    global _openmp
    try:
        _openmp = ctypes.CDLL(os.fspath(library)).GOMP_parallel
    except (OSError, AttributeError):
        return
    _openmp.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    _openmp.restype = None


def share(function: int, record: Any, parts: int, threads: int) -> None:
    """Run a function's parts on this thread and on others; return when all are done.

    Args:
        function: address of one of the functions of `cpu`.
        record: what it is to compute.
        parts: how many there are.
        threads: how many threads may run it, this one included.
    """
    job = np.array([0, parts, function, record.ctypes.data], np.int64)
    threads = min(threads, parts)
    if threads > 1 and _openmp is not None:
        _openmp(run_parts.address, job.ctypes.data, threads, 0)
        return
    helpers = _helpers(job, threads - 1)
    try:
        run_parts.ctypes(job.ctypes.data)
    finally:
        for helper in helpers:
            # One that has not begun finds nothing left; do not wait for it.
            if not helper.cancel():
                helper.result()


def _helpers(job: Any, number: int) -> list[Any]:
    global _pool
    helpers: list[Any] = []
    for _ in range(number):
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="homeostat")
        try:
            helpers.append(_pool.submit(run_parts.ctypes, job.ctypes.data))
        except RuntimeError:
            # The interpreter is shutting down and takes no more tasks.
            break
    return helpers
