"""How far statistics stray by chance, so that rules of data do not speak of noise."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from homeostat.models import BatchNormRecord, Observation
from homeostat.moments import Moments, sample_correction

Array = np.ndarray[Any, np.dtype[Any]]

ERRORS = 4.0
"""Standard errors that are granted: by chance one of 16,000 normal values lies outside."""
ENOUGH = 4
"""Batches from which on their spread says how noisy they are."""


@dataclass(frozen=True)
class Stray:
    """Standard errors of the difference between observed and moving statistics.

    Args:
        mean: of the means, shape (channels,), in units of the inputs.
        log_variance: of the logarithms of the variances, shape (channels,).
    """

    mean: Array
    log_variance: Array


def estimate_stray(norm: BatchNormRecord, observation: Observation, pooled: Moments) -> Stray:
    """Return how far observed and moving statistics of one distribution are apart by chance.

    Two parts add up as squares: the error of the pooled statistics, and that of a moving average,
    which is that of (1 + m) / (1 - m) batches at momentum m. One batch's error is the spread of the
    batches that were seen. Of fewer than four it is what the count of examples lets expect: the
    elements of one example are taken as one, since they are alike.
    """
    batches = observation.batch_moments.get(norm.name, ())
    number = max(observation.batches, 1)
    memory = _memory(norm)
    if len(batches) >= ENOUGH:
        means = np.stack([np.asarray(batch.mean, np.float64) for batch in batches])
        logs = np.log(np.stack([np.asarray(batch.variance, np.float64) for batch in batches]))
        # Batches without variance say nothing of its logarithm.
        logs[~np.isfinite(logs)] = 0.0
        of_mean, of_log = means.std(0, ddof=1), logs.std(0, ddof=1)
    else:
        size = max(observation.examples / number, 1.0)
        of_mean = np.sqrt(np.asarray(pooled.variance, np.float64) / size)
        of_log = np.full_like(of_mean, np.sqrt(2 / size))
    shrunk = np.sqrt(1 / number + 1 / memory)
    return Stray(of_mean * shrunk, of_log * shrunk)


def _memory(norm: BatchNormRecord) -> float:
    """Return how many batches the moving statistics average; a cautious 19 if that is not known."""
    momentum, updates = norm.momentum, norm.updates
    if norm.cumulative:
        return float(max(updates or 1, 1))
    if momentum is None or not 0 <= momentum < 1:
        return 19.0
    return (1 + momentum) / (1 - momentum)


def expected_variance(norm: BatchNormRecord, observation: Observation, pooled: Moments) -> Array:
    """Return the variance that moving statistics would hold of this data, in their own kind."""
    variance = np.asarray(pooled.variance, np.float64)
    if norm.stored_variance == "sample":
        count = observation.elements.get(norm.name)
        variance = variance * sample_correction(float(count) if count else 0.0, np)
    return variance
