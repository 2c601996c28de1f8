"""Whether a folded model computes what the original does, and how long both take."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from homeostat.errors import DataError
from homeostat.models.foldable import Foldable
from homeostat.models.live import Batch


class Agreement(NamedTuple):
    """The largest relative error on each batch, and what it was computed in."""

    errors: tuple[float, ...]
    precision: str
    note: str = ""


def compare(foldable: Foldable, original: Any, folded: Any, batches: Sequence[Batch]) -> Agreement:
    """Run two models on some batches, in float64 where the model allows that.

    Args:
        foldable: the adapter.
        original: a model.
        folded: what should compute the same.
        batches: what to call both with.

    Raises:
        DataError: the original fails on a batch.
    """
    precision, note = "float64", ""
    try:
        expected = foldable.outputs(original, batches, float64=True)
        actual = foldable.outputs(folded, batches, float64=True)
    except Exception as error:
        # Whatever a model's own code raises where it does not expect float64.
        precision, note = "the model's own precision", f"not computed in float64: {_first(error)}"
        try:
            expected = foldable.outputs(original, batches, float64=False)
        except Exception as failed:
            raise DataError(
                f"the model fails on its inputs: {_first(failed)}. Expected what it is called "
                "with. Give such a batch as inputs."
            ) from failed
        actual = foldable.outputs(folded, batches, float64=False)
    errors = tuple(
        max((relative_error(*pair) for pair in zip(a, e, strict=True)), default=0.0)
        for a, e in zip(actual, expected, strict=True)
    )
    return Agreement(errors, precision, note)


def relative_error(actual: Any, expected: Any) -> float:
    """Return the largest difference of two arrays, relative to the largest number expected.

    What is not finite must be the same in both; else the error is infinite.

    Example:
        >>> relative_error([1.0, 3.0], [1.0, 4.0])
        0.25
        >>> relative_error([np.nan], [1.0])
        inf
    """
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    finite = np.isfinite(expected)
    if actual.shape != expected.shape or not np.array_equal(
        actual[~finite], expected[~finite], equal_nan=True
    ):
        return float("inf")
    difference = np.abs(actual[finite] - expected[finite])
    largest = float(np.max(difference, initial=0.0))
    if not np.isfinite(difference).all():
        return float("inf")
    scale = float(np.max(np.abs(expected[finite]), initial=0.0))
    # Where the original gives zeros alone, the difference itself is told.
    return largest / (scale or 1.0)


def medians(*runs: Callable[[], object], rounds: int) -> tuple[float, ...]:
    """Return the median time of some functions in seconds, run in turns, each once before.

    Args:
        runs: what to time.
        rounds: how often to time each.
    """
    for run in runs:
        run()
    times: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds):
        # Neither is always the one that finds the other's data in the caches.
        for index in sorted(range(len(runs)), reverse=bool(turn % 2)):
            start = time.perf_counter()
            runs[index]()
            times[index].append(time.perf_counter() - start)
    return tuple(map(statistics.median, times))


def _first(error: Exception) -> str:
    line = str(error).strip().partition("\n")[0]
    return f"{type(error).__name__}: {line}" if line else type(error).__name__
