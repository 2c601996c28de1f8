"""From rows to what a reader compares: pairs of networks, seeds together."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import fmean

from homeostat.report.published import Published, find_published
from homeostat.report.rows import LessonRow, Row, SpeedRow


@dataclass(frozen=True)
class Scores:
    """Test accuracies of one kind of network over its seeds, in the order of the seeds."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float | None:
        """Their mean, or None where there are none."""
        return fmean(self.values) if self.values else None

    @property
    def spread(self) -> float:
        """Largest minus smallest."""
        return max(self.values) - min(self.values) if self.values else 0.0


@dataclass(frozen=True)
class Pair:
    """The networks with and without batch norm of one configuration, over the seeds."""

    start: str
    activation: str
    learning_rate: float
    without_rows: tuple[LessonRow, ...]
    with_rows: tuple[LessonRow, ...]
    published: Published | None

    @property
    def name(self) -> str:
        """Such as ``relu, rate 0.01, normal start``."""
        return f"{self.activation}, rate {self.learning_rate:g}, {self.start} start"

    @property
    def without(self) -> Scores:
        """Test accuracies without batch norm."""
        return Scores(tuple(row.test_accuracy for row in self.without_rows))

    @property
    def with_(self) -> Scores:
        """Test accuracies with batch norm."""
        return Scores(tuple(row.test_accuracy for row in self.with_rows))

    @property
    def gain(self) -> float | None:
        """Mean accuracy with batch norm minus without."""
        a, b = self.without.mean, self.with_.mean
        return None if a is None or b is None else b - a

    @property
    def single(self) -> tuple[float | None, float | None]:
        """Mean single-image accuracy with batch statistics and with moving statistics."""
        wrong = [r.single_batch_statistics for r in self.with_rows]
        right = [r.single_moving_statistics for r in self.with_rows]
        return _mean(wrong), _mean(right)


@dataclass(frozen=True)
class Group:
    """The pairs that were trained on the same data, for the same steps, by the same backend."""

    data: str
    backend: str
    steps: int
    batch_size: int
    pairs: tuple[Pair, ...]
    speed: SpeedRow | None

    @property
    def name(self) -> str:
        """Such as ``mnist, 2,000 steps, tensorflow``."""
        return f"{self.data}, {self.steps:,} steps, {self.backend}"

    @property
    def rows(self) -> list[LessonRow]:
        """Every row of the group."""
        return [row for pair in self.pairs for row in (*pair.without_rows, *pair.with_rows)]

    @property
    def published(self) -> bool:
        """Whether any pair has published figures."""
        return any(pair.published for pair in self.pairs)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return fmean(known) if known else None


def lesson_rows(rows: Iterable[Row]) -> list[LessonRow]:
    """Return the lesson's rows; of two with the same settings the later one."""
    latest = {row.settings: row for row in rows if isinstance(row, LessonRow)}
    return list(latest.values())


def summarize(rows: Sequence[Row]) -> list[Group]:
    """Arrange rows into groups and pairs, normal start first, rates ascending."""
    speeds = {(row.data, row.backend): row for row in rows if isinstance(row, SpeedRow)}
    groups: dict[tuple[str, str, str, int, int], list[LessonRow]] = {}
    for row in lesson_rows(rows):
        key = (row.data, row.fingerprint, row.backend, row.steps, row.batch_size)
        groups.setdefault(key, []).append(row)
    return [
        Group(data, backend, steps, batch, _pairs(members), speeds.get((data, backend)))
        for (data, _, backend, steps, batch), members in sorted(groups.items())
    ]


def _pairs(rows: Sequence[LessonRow]) -> tuple[Pair, ...]:
    keys = {(row.start, row.activation, row.learning_rate) for row in rows}
    pairs: list[Pair] = []
    for start, activation, rate in sorted(keys, key=lambda k: (k[0] != "normal", k)):
        mine = [
            row
            for row in sorted(rows, key=lambda row: row.seed)
            if (row.start, row.activation, row.learning_rate) == (start, activation, rate)
        ]
        published = find_published(mine[0].data, start, activation, rate, mine[0].steps)
        without = tuple(row for row in mine if not row.batch_norm)
        with_ = tuple(row for row in mine if row.batch_norm)
        pairs.append(Pair(start, activation, rate, without, with_, published))
    return tuple(pairs)
