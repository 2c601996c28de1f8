"""The time that a run may take, and each phase's share of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

# What writing the verdict and the chart takes.
RESERVE_SECONDS = 10.0


class Deadline:
    """A moment after which nothing more is started.

    Args:
        at: the moment, on the clock.
        clock: seconds.
    """

    def __init__(self, at: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._at, self._clock = at, clock

    def left(self) -> float:
        """Return the seconds that are left, at least 0."""
        return max(0.0, self._at - self._clock())

    def part(self, parts: int) -> Deadline:
        """Return the end of one of so many equal parts of what is left."""
        return Deadline(self._clock() + self.left() / max(1, parts), self._clock)

    def allows(self, seconds: float = 0.0) -> bool:
        """Return whether something of this length may still be started."""
        return self.left() > seconds


class Budget:
    """Time that phases share; what one does not need, those after it get.

    Args:
        seconds: of the whole run.
        shares: weights of the phases, in their order.
        clock: seconds.
    """

    def __init__(
        self,
        seconds: float,
        shares: Mapping[str, float],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._shares = dict(shares)
        self._end = clock() + max(0.0, seconds - RESERVE_SECONDS)

    def start(self, phase: str) -> Deadline:
        """Return a phase's deadline; earlier phases are over."""
        names = list(self._shares)
        coming = names[names.index(phase) :]
        share = self._shares[phase] / sum(self._shares[name] for name in coming)
        now = self._clock()
        return Deadline(now + max(0.0, self._end - now) * share, self._clock)
