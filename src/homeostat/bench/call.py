"""What a framework's module gives the benchmark for each of its columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

import numpy as np

from homeostat.bench.cases import Case, Inputs
from homeostat.bench.oracle import Results


class Call(NamedTuple):
    """One candidate's call of one case.

    Args:
        run: makes the call and returns when it is done.
        results: makes it and returns its results, channels last.
        saved: makes it and returns the bytes kept for the backward, parameters apart; None where
            the framework does not tell.
        peak: returns the bytes that the call adds at its peak, its results included; None where
            neither framework nor system tells.
    """

    run: Callable[[], object]
    results: Callable[[], Results]
    saved: Callable[[], int | None]
    peak: Callable[[], int | None]


class Observed(NamedTuple):
    """What a layer made of a batch: its output and the population variance of each channel."""

    y: np.ndarray
    variance: np.ndarray


class Framework(Protocol):
    """A framework's module in this package."""

    def make(self, column: str, case: Case, inputs: Inputs) -> Call:
        """Return a column's call of a case."""
        ...

    def copy(self, case: Case, inputs: Inputs) -> Callable[[], object]:
        """Return what copies the case's tensor."""
        ...

    def observe(self, column: str, case: Case, inputs: Inputs) -> Observed:
        """Return what one training step with momentum for the batch alone made of x."""
        ...
