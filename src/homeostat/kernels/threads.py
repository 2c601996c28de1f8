"""The threads that run the loops: OpenMP's where a library has brought it, else a pool of our own.

OpenMP's threads wait for their next work actively for a while. Whoever runs threads of their own
beside a library that uses them, as PyTorch does, gets half of each processor.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import types

from homeostat.kernels.addresses import call, fetch_add, words
from homeostat.kernels.compiled import c_function
from homeostat.kernels.strips import WORTH_WAKING

# What threads share: the next part to take, how many there are, what computes one, and of what.
_NEXT, _PARTS, _FUNCTION, _RECORD, _JOB_WORDS = range(5)
# What one thread runs: GOMP_parallel, the function of its threads, how many they may be, the
# record, the number of steps, where function and parts of each are, and what is lent.
_OPENMP, _RUN_PARTS, _THREADS, _OF_RECORD, _COUNT, _STEPS, _LENT, _FIELD, _PROGRAM_WORDS = range(9)

_pool: ThreadPoolExecutor | None = None
# The address of GOMP_parallel(function, data, threads, flags), or 0. It is libgomp's, and LLVM's
# and Intel's OpenMP have it too.
_openmp = 0


def _forget() -> None:
    # A fork copies the pools but none of their threads, and OpenMP does not notice.
    global _pool, _openmp
    _pool, _openmp = None, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def use_openmp_of(library: str | os.PathLike[str]) -> None:
    """Run the loops on the OpenMP threads of a loaded library, where it has any.

    Args:
        library: path of the shared library; one that is not there, or without OpenMP, is ignored.
    """
    global _openmp
    try:
        function = ctypes.CDLL(os.fspath(library)).GOMP_parallel
    except (OSError, AttributeError):
        return
    _openmp = ctypes.cast(function, ctypes.c_void_p).value or 0


@c_function(types.void(types.intp))
def _run_parts(address):
    """Take and compute parts of the job at an address until none is left."""
    job = words(address, _JOB_WORDS)
    part = fetch_add(address + 8 * _NEXT, 1)
    while part < job[_PARTS]:
        call(job[_FUNCTION], job[_RECORD], part, 0, 0)
        part = fetch_add(address + 8 * _NEXT, 1)


@c_function(types.void(types.intp))
def _run_steps(address):
    """Run the steps at an address one after the other, each on OpenMP's threads."""
    head = words(address, _PROGRAM_WORDS)
    steps = words(head[_STEPS], 2 * head[_COUNT])
    lent, job = np.empty(head[_LENT]), np.empty(_JOB_WORDS, np.int64)
    words(head[_OF_RECORD] + 8 * head[_FIELD], 1)[0] = lent.ctypes.data
    for i in range(head[_COUNT]):
        function, parts = steps[2 * i], steps[2 * i + 1]
        threads = min(head[_THREADS], parts)
        if threads > 1:
            job[_NEXT], job[_PARTS] = 0, parts
            job[_FUNCTION], job[_RECORD] = function, head[_OF_RECORD]
            call(head[_OPENMP], head[_RUN_PARTS], job.ctypes.data, threads, 0)
        else:
            for part in range(parts):
                call(function, head[_OF_RECORD], part, 0, 0)
    # Their last use: numba frees an array behind it.
    job[0], lent[0] = 0, 0


class Steps:
    """Steps that `run` runs one after the other.

    Args:
        steps: of each the address of a C function of a record and a part's number, and how many
            parts there are.
        lent: the float64 of a piece of memory that lasts as long as they run.
        field: the record's field that has its address.
    """

    def __init__(self, steps: Sequence[tuple[int, int]], lent: int, field: int) -> None:
        self.each, self.lent, self.field = tuple(steps), lent, field
        words = [word for step in steps for word in step]
        self._words = (ctypes.c_int64 * len(words))(*words)
        self.address = ctypes.addressof(self._words)


_Program, _Job = ctypes.c_int64 * _PROGRAM_WORDS, ctypes.c_int64 * _JOB_WORDS


def run(steps: Steps, record: Any, threads: int) -> None:
    """Run steps one after the other, the parts of each on this thread and on others.

    Args:
        steps: what to run.
        record: what they are to compute.
        threads: how many threads may run, this one included.
    """
    address = ctypes.addressof(record)
    if threads == 1 or _openmp:
        program = _Program(
            _openmp, _run_parts.address, threads, address, len(steps.each), steps.address,
            steps.lent, steps.field,
        )  # fmt: skip
        _run_steps.ctypes(ctypes.addressof(program))
        return
    lent = np.empty(steps.lent)
    record[steps.field] = lent.ctypes.data
    for function, parts in steps.each:
        job = _Job(0, parts, function, address)
        _share(ctypes.addressof(job), min(threads, parts // WORTH_WAKING) - 1)


def _share(job: int, number: int) -> None:
    """Run a job on this thread and on so many of our own."""
    global _pool
    helpers: list[Any] = []
    for _ in range(number):
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="homeostat")
        try:
            helpers.append(_pool.submit(_run_parts.ctypes, job))
        except RuntimeError:
            # The interpreter is shutting down and takes no more tasks.
            break
    try:
        _run_parts.ctypes(job)
    finally:
        for helper in helpers:
            # One that has not begun finds nothing left; do not wait for it.
            if not helper.cancel():
                helper.result()
