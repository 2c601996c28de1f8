"""Time calls in turns on the device's own clock, as `triton.testing.do_bench` does for one call."""

from __future__ import annotations

import contextlib
import random
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import torch

Call = Callable[[], object]

# Cycles that the device waits for in the one measurement of how long a cycle is.
_CYCLES = 20_000_000
_LONGEST_LEAD = 0.05
FOLLOWING = 10
"""Calls one after another in a sample of how fast they follow."""


class Candidate(NamedTuple):
    """What takes turns.

    Args:
        call: runs once; each time on the next of several inputs.
        around: makes the context that its calls run in, entered before the clock starts.
    """

    call: Call
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


class Clock(Protocol):
    """What tells times."""

    def prepare(self, name: str, call: Call) -> None:
        """Learn what a call needs to be timed well; it has run before."""
        ...

    def sample(self, name: str, call: Call) -> float:
        """Return the seconds of one call alone."""
        ...

    def follow(self, name: str, call: Call, calls: int = FOLLOWING) -> float:
        """Return the seconds of a call among calls one after another, the host's time included."""
        ...


class DeviceClock:
    """Times a CUDA device by events around a call.

    The device waits until the host has launched the whole call, so that the time between the events
    is the device's alone. Where the host was late the sample is taken again with more lead.
    """

    def __init__(self) -> None:
        start, end = _event(), _event()
        torch.cuda._sleep(_CYCLES)
        start.record()
        torch.cuda._sleep(_CYCLES)
        end.record()
        end.synchronize()
        self._cycles_per_second = _CYCLES / (start.elapsed_time(end) / 1e3)
        self._leads: dict[str, float] = {}

    def prepare(self, name: str, call: Call) -> None:
        """Measure how long the host takes to launch a call."""
        call()
        torch.cuda.synchronize()
        before = time.perf_counter()
        call()
        self._leads[name] = min(_LONGEST_LEAD, 1.5 * (time.perf_counter() - before) + 1e-4)
        torch.cuda.synchronize()

    def sample(self, name: str, call: Call) -> float:
        """Return the device's seconds for one call."""
        start, end = _event(), _event()
        while True:
            lead = self._leads[name]
            torch.cuda._sleep(int(lead * self._cycles_per_second))
            start.record()
            call()
            end.record()
            late = start.query()
            end.synchronize()
            if not late or lead >= _LONGEST_LEAD:
                return start.elapsed_time(end) / 1e3
            self._leads[name] = min(_LONGEST_LEAD, 2 * lead)

    def follow(self, name: str, call: Call, calls: int = FOLLOWING) -> float:
        """Return the seconds from call to call."""
        start, end = _event(), _event()
        torch.cuda.synchronize()
        start.record()
        for _ in range(calls):
            call()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / calls


class HostClock:
    """Times what the host computes itself."""

    def prepare(self, name: str, call: Call) -> None:
        """Run a call once more."""
        call()

    def sample(self, name: str, call: Call) -> float:
        """Return the seconds of one call."""
        before = time.perf_counter()
        call()
        return time.perf_counter() - before

    def follow(self, name: str, call: Call, calls: int = FOLLOWING) -> float:
        """Return the seconds from call to call."""
        before = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - before) / calls


def clock_of(device: str) -> Clock:
    """Return the clock of ``"cuda"`` or ``"cpu"``."""
    return DeviceClock() if device == "cuda" else HostClock()


def synchronize(device: str) -> None:
    """Wait until a device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def prepare(clock: Clock, candidates: Mapping[str, Candidate]) -> None:
    """Let a clock learn what it must know of every candidate."""
    for name, candidate in candidates.items():
        with candidate.around():
            clock.prepare(name, candidate.call)


def take_turns(
    sample: Callable[[str, Call], float],
    candidates: Mapping[str, Candidate],
    rounds: int,
    seed: int = 0,
) -> dict[str, list[float]]:
    """Return every candidate's samples (of a clock's), taken in random order in every round."""
    order = random.Random(seed)  # noqa: S311
    samples: dict[str, list[float]] = {name: [] for name in candidates}
    names = list(candidates)
    for _ in range(rounds):
        order.shuffle(names)
        for name in names:
            with candidates[name].around():
                samples[name].append(sample(name, candidates[name].call))
    return samples


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)
