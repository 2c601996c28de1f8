"""A norm's arrays and options as another can take them, and whether it computes the same."""

from __future__ import annotations

from typing import Any

import numpy as np

from homeostat.errors import UnsupportedError
from homeostat.models import BatchNormRecord
from homeostat.spec import CONVENTIONS


def translate(
    source: BatchNormRecord, target: BatchNormRecord, count: float | None = None
) -> tuple[BatchNormRecord, tuple[str, ...]]:
    """Return a norm's record as another norm can take it, and what is to be known about that.

    Args:
        source: the norm whose arrays and options are wanted.
        target: the norm that takes them; what it has decides what is filled in.
        count: elements per channel in a training batch, or None; see `convert`.

    Raises:
        UnsupportedError: the target lacks what the source has.
    """
    if source.moving_mean is None or source.moving_variance is None:
        raise UnsupportedError(
            f"{source.name!r} has no moving statistics: expected some to move. Leave it out with a "
            "mapping."
        )
    notes: list[str] = []
    changes: dict[str, Any] = {}
    for name, neutral in (("gamma", 1.0), ("beta", 0.0)):
        theirs, ours = getattr(source, name), getattr(target, name)
        if theirs is None and ours is not None:
            changes[name] = np.full(source.channels or 0, neutral, ours.dtype)
            notes.append(f"{name} is {neutral:g}, for the source has none")
        if theirs is not None and ours is None:
            if np.any(theirs != neutral):
                raise UnsupportedError(
                    f"{target.name!r} has no {name}, but that of {source.name!r} is not {neutral:g}"
                    f": expected a norm that takes it. Make the target with a {name}."
                )
            changes[name] = None
    for option in ("epsilon", "momentum"):
        if getattr(source, option) is None and not (option == "momentum" and source.cumulative):
            changes[option] = getattr(target, option)
            notes.append(f"{option} is the target's own, for the source does not tell")
    kinds = (source.stored_variance, target.stored_variance)
    changes["stored_variance"] = target.stored_variance
    if None not in kinds and kinds[0] != kinds[1]:
        if count is None:
            notes.append(f"variance as it is, though {kinds[0]} there and {kinds[1]} here")
        else:
            factor = _variance_factor(source, target, count)
            changes["moving_variance"] = source.moving_variance * factor
            notes.append(f"variance times {factor:.6g}, from {kinds[0]} to {kinds[1]}")
    return source.with_fields(**changes), tuple(notes)


def _variance_factor(source: BatchNormRecord, target: BatchNormRecord, count: float) -> float:
    kinds = source.stored_variance or "population", target.stored_variance
    fitting = next(c for c in CONVENTIONS.values() if c.stored_variance == kinds[1])
    return fitting.variance_factor(kinds[0], count)


def make_inputs(record: BatchNormRecord) -> Any:
    """Return inputs (examples, channels), float32, around what the statistics say is usual."""
    mean, variance = (
        np.asarray(a, np.float64) for a in (record.moving_mean, record.moving_variance)
    )
    noise = np.random.default_rng(0).standard_normal((16, len(mean)))
    return (mean + noise * np.sqrt(np.maximum(variance, 0))).astype(np.float32)


def difference(found: Any, record: BatchNormRecord, inputs: Any) -> float:
    """Return how far outputs are from (x - mean) / sqrt(variance + epsilon) * gamma + beta."""
    x, mean, variance = (
        np.asarray(a, np.float64) for a in (inputs, record.moving_mean, record.moving_variance)
    )
    gamma = 1.0 if record.gamma is None else np.asarray(record.gamma, np.float64)
    beta = 0.0 if record.beta is None else np.asarray(record.beta, np.float64)
    expected = (x - mean) / np.sqrt(variance + (record.epsilon or 0.0)) * gamma + beta
    size = np.maximum(np.max(np.abs(expected), axis=0), np.finfo(np.float32).tiny)
    return float(np.max(np.abs(np.asarray(found, np.float64) - expected) / size))
