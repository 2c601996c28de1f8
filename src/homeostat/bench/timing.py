"""Interleaved timing: every round runs every candidate once, in random order."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

# Several calls a sample, as in training: a lone call would pay for the memory that the candidate
# before it gave back to the system.
SAMPLE_SECONDS = 0.04


@dataclass(frozen=True)
class Timing:
    """Percentiles of the time of one call, in milliseconds."""

    p20: float
    p50: float
    p80: float


def interleave(
    candidates: Mapping[str, Callable[[], object]], rounds: int, seed: int = 0
) -> dict[str, Timing]:
    """Time the candidates side by side; short calls are repeated within a sample."""
    order = random.Random(seed)  # noqa: S311
    repeats = {name: _repeats(call) for name, call in candidates.items()}
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        names = list(candidates)
        order.shuffle(names)
        for name in names:
            samples[name].append(_time(candidates[name], repeats[name]))
    return {name: summarize(values) for name, values in samples.items()}


def _repeats(call: Callable[[], object]) -> int:
    call()
    once = min(_time(call, 1) for _ in range(3))
    return max(1, round(SAMPLE_SECONDS / max(once, 1e-6)))


def _time(call: Callable[[], object], repeats: int) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        # Dropped at once, so that no candidate pays for another one's memory.
        call()
    return (time.perf_counter() - start) / repeats


def summarize(values: list[float]) -> Timing:
    """Return the percentiles of samples, which are in seconds."""
    # Of few samples no percentile may lie beyond them.
    cuts = statistics.quantiles(values, n=10, method="inclusive")
    return Timing(cuts[1] * 1e3, statistics.median(values) * 1e3, cuts[7] * 1e3)
