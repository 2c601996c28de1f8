"""What a page says in words and figures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from homeostat.models.records import BatchNormRecord, Observation
from homeostat.report.page import show_hidden

NOT_TOLD = "not told by the file"
SHORT = 96
"""Longer names lose their middle where there is little room."""


def several(count: int, word: str, ending: str = "s") -> str:
    """Return a count with its noun."""
    return f"{count:,} {word}{'' if count == 1 else ending}"


def number(value: float) -> str:
    """Return a number of six digits, NaN and infinity as such."""
    shown = f"{value:.6g}"
    return {"nan": "NaN", "inf": "∞", "-inf": "−∞"}.get(shown, shown.replace("-", "−"))


def shorten(name: str) -> str:
    """Return a name as it is, or without the middle if it is very long."""
    shown = show_hidden(name)
    if len(shown) <= SHORT:
        return shown
    return f"{shown[: SHORT - 32]} … {shown[-24:]}"


def describe_norm(
    record: BatchNormRecord, observation: Observation | None
) -> list[tuple[str, str]]:
    """Return what is known of a norm, each with its name."""

    def told(field: str, words: Callable[[Any], str] = str, otherwise: str = "none") -> str:
        value = getattr(record, field)
        if value is None:
            return NOT_TOLD if field in record.unknown else otherwise
        return words(value)

    momentum = told("momentum", lambda value: f"{number(value)} (weight of the old value)")
    missing = [name for name in ("gamma", "beta") if getattr(record, name) is None]
    facts = [
        ("Kind", record.kind),
        ("Channels", "none" if record.channels is None else f"{record.channels:,}"),
        ("Epsilon", told("epsilon", number)),
        ("Momentum", "none: the average of all batches" if record.cumulative else momentum),
        ("Stored variance", told("stored_variance", otherwise="not known")),
        ("Updates", told("updates", "{:,}".format, "not counted")),
        ("Skipped updates", told("skipped", "{:,}".format, "not counted")),
        ("Dtype of inputs", told("dtype", otherwise="not known")),
        ("Gamma and beta train", told("trainable", _yes, "not known")),
        ("Statistics move", told("tracking", _yes, "not known")),
        ("At inference takes", told("training", _statistics, "not known")),
        ("Synchronized", told("synchronized", _yes, "not known")),
        ("Activation behind it", told("activation")),
        *((name.capitalize(), told(name)) for name in missing),
    ]
    if len(record.operations) > 1:
        uses = ", ".join(shorten(name) for name in record.operations)
        facts.append(("Used", f"{len(record.operations)} times: {uses}"))
    if observation and record.name in observation.inputs:
        count = float(np.max(observation.inputs[record.name].count))
        facts.append(("Observed", f"{count:,.0f} elements of each channel"))
    if observation and record.name in observation.elements:
        smallest = f"{observation.elements[record.name]:,.0f} elements of each channel"
        facts.append(("Smallest batch", smallest))
    return facts


def _yes(value: bool) -> str:
    return "yes" if value else "no"


def _statistics(batch: bool) -> str:
    return "the batch's statistics" if batch else "moving statistics"
