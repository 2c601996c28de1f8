"""The threads that run the loops: OpenMP's where a library has brought it, else a pool of our own.

OpenMP's threads wait for their next work actively for a while. Whoever runs threads of their own
beside a library that uses them, as PyTorch does, gets half of each processor.

Each thread has a share of a tensor's parts, neighbours and the same ones in every loop over a
tensor of that size, so that it finds in its own cache what it left there; OpenMP's programs divide
their loops so too. Who is done with a share helps with the others.
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

# What threads have in common: what computes a part, and of what; how many parts there are, and in
# how many shares; what tells a thread its number, or 0, and how many have come that it did not
# tell; and, for each share, how many of its parts are taken.
_FUNCTION, _RECORD, _PARTS, _SHARES, _NUMBER, _CAME, _TAKEN = range(7)
# What one thread runs: GOMP_parallel, omp_get_thread_num, the function of the threads, how many
# they may be, the record, the number of steps, where function and parts of each are, and what is
# lent.
_OPENMP, _NUMBERING, _RUN_PARTS, _THREADS = range(4)
_OF_RECORD, _COUNT, _STEPS, _LENT, _FIELD, _PROGRAM_WORDS = range(4, 10)

_pool: ThreadPoolExecutor | None = None
# The addresses of GOMP_parallel(function, data, threads, flags) and of omp_get_thread_num(), or 0.
# They are libgomp's, and LLVM's and Intel's OpenMP have them too.
_openmp = _numbering = 0


def _forget() -> None:
    # A fork copies the pools but none of their threads, and OpenMP does not notice.
    global _pool, _openmp, _numbering
    _pool, _openmp, _numbering = None, 0, 0


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def use_openmp_of(library: str | os.PathLike[str]) -> None:
    """Run the loops on the OpenMP threads of a loaded library, where it has any.

    Args:
        library: path of the shared library; one that is not there, or without OpenMP, is ignored.
    """
    global _openmp, _numbering
    try:
        found = ctypes.CDLL(os.fspath(library))
        functions = found.GOMP_parallel, found.omp_get_thread_num
    except (OSError, AttributeError):
        return
    _openmp, _numbering = (ctypes.cast(f, ctypes.c_void_p).value or 0 for f in functions)


@c_function(types.void(types.intp))
def _run_parts(address):
    """Take and compute parts of the job at an address until none is left."""
    job = words(address, _TAKEN)
    parts, shares = job[_PARTS], job[_SHARES]
    if job[_NUMBER] != 0:
        # An int, of 32 bits.
        own = call(job[_NUMBER], 0, 0, 0, 0) & 0x7FFFFFFF
    else:
        own = fetch_add(address + 8 * _CAME, 1)
    for share in range(own, own + shares):
        share %= shares
        taken = address + 8 * (_TAKEN + share)
        first, last = share * parts // shares, (share + 1) * parts // shares
        part = first + fetch_add(taken, 1)
        while part < last:
            call(job[_FUNCTION], job[_RECORD], part, 0, 0)
            part = first + fetch_add(taken, 1)


@c_function(types.void(types.intp))
def _run_steps(address):
    """Run the steps at an address one after the other, each on OpenMP's threads."""
    head = words(address, _PROGRAM_WORDS)
    steps = words(head[_STEPS], 2 * head[_COUNT])
    lent, job = np.empty(head[_LENT]), np.empty(_TAKEN + head[_THREADS], np.int64)
    words(head[_OF_RECORD] + 8 * head[_FIELD], 1)[0] = lent.ctypes.data
    for i in range(head[_COUNT]):
        function, parts = steps[2 * i], steps[2 * i + 1]
        threads = min(head[_THREADS], parts)
        if threads > 1:
            job[:] = 0
            job[_FUNCTION], job[_RECORD] = function, head[_OF_RECORD]
            job[_PARTS], job[_SHARES], job[_NUMBER] = parts, threads, head[_NUMBERING]
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


_Program = ctypes.c_int64 * _PROGRAM_WORDS


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
            _openmp, _numbering, _run_parts.address, threads, address,
            len(steps.each), steps.address, steps.lent, steps.field,
        )  # fmt: skip
        _run_steps.ctypes(ctypes.addressof(program))
        return
    lent = np.empty(steps.lent)
    record[steps.field] = lent.ctypes.data
    for function, parts in steps.each:
        shares = max(1, min(threads, parts // WORTH_WAKING))
        job = (ctypes.c_int64 * (_TAKEN + shares))(function, address, parts, shares)
        _share(ctypes.addressof(job), shares - 1)


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
