"""The threads that run the loops: a pool of our own, made anew after a fork."""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

_pool: ThreadPoolExecutor | None = None


def _forget() -> None:
    # A fork copies the pool but none of its threads.
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)


def share(leaf: Callable[..., Any], parts: int, threads: int, *arguments: Any) -> None:
    """Run a leaf's parts on this thread and on up to threads - 1 others; return when all are done.

    Args:
        leaf: called as ``leaf(counter, *arguments)``; takes parts until none is left.
        parts: how many there are.
        threads: how many threads may run it, this one included.
        *arguments: what else it wants.
    """
    global _pool
    counter = np.zeros(1, np.int64)
    helpers = []
    for _ in range(min(threads, parts) - 1):
        if _pool is None:
            _pool = ThreadPoolExecutor(os.cpu_count(), thread_name_prefix="homeostat")
        try:
            helpers.append(_pool.submit(leaf, counter, *arguments))
        except RuntimeError:
            # The interpreter is shutting down and takes no more tasks.
            break
    try:
        leaf(counter, *arguments)
    finally:
        for helper in helpers:
            # One that has not begun finds nothing left; do not wait for it.
            if not helper.cancel():
                helper.result()
