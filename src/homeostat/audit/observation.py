"""What data shows of a model: run it, and gather moments and outputs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from homeostat.audit.comparison import Comparison
from homeostat.data import unpack
from homeostat.errors import DataError
from homeostat.models import Behaviour, LiveModel, Observation, count_examples
from homeostat.moments import Moments, merge

KEPT_BATCHES = 256
"""How many batches' moments an observation keeps."""


def observe(live: LiveModel, data: Iterable[Any]) -> Observation:
    """Run data through a model and return what it showed; the model is left as it was.

    Each batch is run three times: for the moments of the norms' inputs, and for the outputs with
    moving and with the batch's statistics. Memory does not grow with the data.

    Args:
        live: the model's adapter.
        data: batches as `homeostat.data.unpack` reads them.

    Raises:
        DataError: there is no batch, or labels do not fit the examples.
    """
    statistics, comparison = _Statistics(), Comparison()
    for batch in data:
        examples = unpack(batch)
        number = count_examples(examples.inputs)
        if not number:
            continue
        statistics.add(live.observe(examples.inputs, weights=examples.weights), number)
        comparison.add(
            live.outputs(examples.inputs),
            live.outputs(examples.inputs, batch_statistics=True),
            examples,
        )
    if not statistics.batches:
        raise DataError(
            "the data has no examples: expected at least one batch. Check where it comes from; an "
            "iterator can be used up already."
        )
    return statistics.observation(comparison.behaviour())


def measure_alone(
    live: LiveModel, names: Iterable[str], batches: Iterable[Any]
) -> dict[str, Behaviour]:
    """Return how outputs differ when one norm alone takes the batch's statistics, by its name."""
    comparisons = {name: Comparison() for name in names}
    for batch in batches:
        examples = unpack(batch)
        if not count_examples(examples.inputs):
            continue
        moving = live.outputs(examples.inputs)
        for name, comparison in comparisons.items():
            one = live.outputs(examples.inputs, batch_statistics=[name])
            comparison.add(moving, one, examples)
    found = {name: comparison.behaviour() for name, comparison in comparisons.items()}
    return {name: behaviour for name, behaviour in found.items() if behaviour is not None}


class _Statistics:
    """What batches showed of the norms' inputs."""

    def __init__(self) -> None:
        self.batches = 0
        self.examples = 0
        self.pooled: dict[str, Moments] = {}
        self.kept: dict[str, list[Moments]] = {}
        self.elements: dict[str, float] = {}
        self.whole = 0

    def add(self, seen: Mapping[str, Moments], number: int) -> None:
        self.batches += 1
        self.examples += number
        # A batch is whole if none before had more examples.
        if number > self.whole:
            self.whole, self.elements = number, {}
        for name, moments in seen.items():
            if name in self.pooled:
                self.pooled[name] = merge(self.pooled[name], moments, np)
            else:
                self.pooled[name] = moments
            if self.batches <= KEPT_BATCHES:
                self.kept.setdefault(name, []).append(moments)
            if number == self.whole:
                least = float(np.min(moments.count))
                self.elements[name] = min(self.elements.get(name, least), least)

    def observation(self, behaviour: Behaviour | None) -> Observation:
        return Observation(
            self.pooled,
            self.batches,
            self.examples,
            self.elements,
            {name: tuple(kept) for name, kept in self.kept.items()},
            behaviour,
        )
