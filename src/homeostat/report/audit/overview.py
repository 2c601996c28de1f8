"""The norms of an audit at a glance: counts of channels, and how their values spread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from homeostat.models.records import BatchNormRecord
from homeostat.rules.findings import Audit, Finding, Severity
from homeostat.rules.thresholds import Thresholds

Array = np.ndarray[Any, np.dtype[np.float64]]

VANISHING = Thresholds().vanishing_variance


@dataclass(frozen=True)
class Spread:
    """How one quantity spreads over a norm's channels: its least, quartiles and largest.

    Args:
        points: those five, among the channels where it is finite; () where none is.
        places: where they lie on the scale of all norms, 0 to 100.
        odd: how many channels have NaN or infinity.
    """

    points: tuple[float, ...]
    places: tuple[float, ...] = ()
    odd: int = 0


@dataclass(frozen=True, eq=False)
class Line:
    """One norm.

    Args:
        record: the norm.
        findings: what was found of it.
        worst: the worst severity among these; None for a clean one.
        height: of its bar in the strip, 1 to 8, by its channels.
        unmoved: channels whose statistics are still 0 and 1; None without statistics.
        dead: channels that do not vary or that gamma silences; None where neither is known.
        drifted: channels that rules of data name; None without data.
        spreads: of ``"ratio"``, |moving mean| over moving standard deviation; of ``"variance"``,
            the moving one; and of ``"gamma"``.
    """

    record: BatchNormRecord
    findings: tuple[Finding, ...]
    worst: Severity | None
    height: int
    unmoved: int | None
    dead: int | None
    drifted: int | None
    spreads: dict[str, Spread] = field(default_factory=dict[str, Spread])


def look_over(audit: Audit) -> list[Line]:
    """Return a line for each norm, in the order of the network."""
    found: dict[str | None, list[Finding]] = {}
    for finding in audit.findings:
        found.setdefault(finding.norm, []).append(finding)
    of_data = {rule.identifier for rule in audit.rules if "data" in rule.needs}
    seen = audit.observation.inputs if audit.observation else {}
    lines: list[Line] = []
    for norm, spreads in zip(audit.model.norms, _spreads(audit.model.norms), strict=True):
        findings = found.get(norm.name, [])
        drifting = [finding for finding in findings if finding.rule in of_data]
        drifted = _named(drifting, norm.channels or 0) if norm.name in seen else None
        lines.append(
            Line(
                norm,
                tuple(findings),
                worst_of(findings),
                height=min(8, max(1, int(norm.channels or 1).bit_length() - 3)),
                unmoved=_unmoved(norm),
                dead=_dead(norm),
                drifted=drifted,
                spreads=spreads,
            )
        )
    return lines


def _unmoved(norm: BatchNormRecord) -> int | None:
    if norm.moving_mean is None or norm.moving_variance is None:
        return None
    return int(np.sum((norm.moving_mean == 0) & (norm.moving_variance == 1)))


def _dead(norm: BatchNormRecord) -> int | None:
    silent = [] if norm.gamma is None else [norm.gamma == 0]
    if norm.moving_variance is not None:
        silent.append(np.abs(norm.moving_variance) <= VANISHING * (norm.epsilon or 0.0))
    return int(np.sum(np.logical_or.reduce(silent))) if silent else None


def _named(findings: Iterable[Finding], channels: int) -> int:
    """Return how many channels findings name; one that affects all of them names none."""
    named: set[int] = set()
    for finding in findings:
        everywhere = finding.figures.get("affected", 0) >= channels
        named.update(range(channels) if everywhere else finding.channels)
    return len(named)


def worst_of(findings: Iterable[Finding]) -> Severity | None:
    """Return the worst severity among findings; None for none."""
    severities = {finding.severity for finding in findings}
    return next((each for each in ("error", "warning", "info") if each in severities), None)


def _spreads(norms: Sequence[BatchNormRecord]) -> list[dict[str, Spread]]:
    """Return the spreads of each norm, every quantity on one scale for all norms."""
    lines: list[dict[str, Spread]] = [{} for _ in norms]
    for name, (values_of, logarithmic) in _QUANTITIES.items():
        spreads = [_spread(values_of(norm)) for norm in norms]
        points = np.array([each for spread in spreads if spread for each in spread.points])
        place = _scale(points, logarithmic)
        for line, spread in zip(lines, spreads, strict=True):
            if spread is not None:
                places = tuple(place(point) for point in spread.points)
                line[name] = Spread(spread.points, places, spread.odd)
    return lines


def _spread(values: Array | None) -> Spread | None:
    if values is None:
        return None
    finite = values[np.isfinite(values)]
    points = np.percentile(finite, (0, 25, 50, 75, 100)) if finite.size else ()
    return Spread(tuple(float(point) for point in points), odd=len(values) - finite.size)


def _scale(points: Array, logarithmic: bool) -> Callable[[float], float]:
    """Return what places a value between 0 and 100; where logs are taken, 0 and less at 0."""
    if logarithmic:
        points = np.log(points[points > 0])
    low, high = (float(np.min(points)), float(np.max(points))) if points.size else (0.0, 1.0)
    # One value alone is in the middle.
    low, high = (low - 0.5, high + 0.5) if low == high else (low, high)

    def place(value: float) -> float:
        if logarithmic and value <= 0:
            return 0.0
        at = float(np.log(value)) if logarithmic else value
        return round(100 * (at / (high - low) - low / (high - low)), 1)

    return place


def _ratio(norm: BatchNormRecord) -> Array | None:
    if norm.moving_mean is None or norm.moving_variance is None:
        return None
    with np.errstate(all="ignore"):
        stddev = np.sqrt(norm.moving_variance.astype(np.float64))
        return np.abs(norm.moving_mean.astype(np.float64)) / stddev


def _double(name: str) -> Callable[[BatchNormRecord], Array | None]:
    def values_of(norm: BatchNormRecord) -> Array | None:
        array = getattr(norm, name)
        return None if array is None else array.astype(np.float64)

    return values_of


_QUANTITIES: dict[str, tuple[Callable[[BatchNormRecord], Array | None], bool]] = {
    "ratio": (_ratio, True),
    "variance": (_double("moving_variance"), True),
    "gamma": (_double("gamma"), False),
}
