"""What a framework's process is asked to measure, job by job, and the rows that answer it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from homeostat.bench.cases import Case
from homeostat.report.bench.rows import AccuracyRow, Environment, Row, TimeRow, TrainingRow


@dataclass(frozen=True)
class TimeJob:
    """Time every column's call of one case."""

    KIND: ClassVar[str] = "time"
    ROW: ClassVar[type[Row]] = TimeRow

    case: Case
    rounds: int

    @property
    def words(self) -> str:
        """The job in words."""
        shape, case = _by(self.case.shape), self.case
        return f"{case.work} of {shape} {case.layout} {case.dtype}, {case.form}"

    def row(
        self, column: str, where: Environment, state: str, note: str = "", **found: Any
    ) -> TimeRow:
        """Return a column's row; what was not found is None."""
        case = self.case
        names = ("p20_ms", "p50_ms", "p80_ms", "copies", "saved", "peak")
        return TimeRow(
            column, _by(case.shape), case.layout, case.dtype, case.work, case.form, state, note,
            self.rounds, *(found.get(name) for name in names), where,
        )  # fmt: skip


@dataclass(frozen=True)
class AccuracyJob:
    """Hold every column to exact arithmetic on one kind of hard data."""

    KIND: ClassVar[str] = "accuracy"
    ROW: ClassVar[type[Row]] = AccuracyRow

    data: str

    @property
    def words(self) -> str:
        """The job in words."""
        return f"accuracy, {self.data}"

    def row(
        self, column: str, where: Environment, state: str, note: str = "", **found: Any
    ) -> AccuracyRow:
        """Return a column's row; what was not found is None."""
        errors = found.get("variance_error"), found.get("output_error")
        return AccuracyRow(column, self.data, state, note, *errors, where)


@dataclass(frozen=True)
class TrainingJob:
    """Time whole training steps of a network with every batch norm of a framework."""

    KIND: ClassVar[str] = "training"
    ROW: ClassVar[type[Row]] = TrainingRow

    network: str
    layout: str
    batch: int
    rounds: int

    @property
    def words(self) -> str:
        """The job in words."""
        return f"training of {self.network}, {self.layout}"

    def row(
        self, column: str, where: Environment, state: str, note: str = "", **found: Any
    ) -> TrainingRow:
        """Return a column's row; what was not found is None."""
        names = ("p20_ms", "p50_ms", "p80_ms", "images_per_s", "saved_mib", "peak_mib")
        return TrainingRow(
            column, self.network, self.layout, self.batch, state, note, self.rounds,
            *(found.get(name) for name in names), where,
        )  # fmt: skip


Job = TimeJob | AccuracyJob | TrainingJob
_KINDS: dict[str, type[Job]] = {kind.KIND: kind for kind in (TimeJob, AccuracyJob, TrainingJob)}


def to_message(job: Job) -> dict[str, Any]:
    """Return a job as plain values for JSON."""
    return {"kind": job.KIND} | dataclasses.asdict(job)


def from_message(message: dict[str, Any]) -> Job:
    """Read back what `to_message` returned."""
    values = dict(message)
    kind = _KINDS[values.pop("kind")]
    if "case" in values:
        case = values["case"]
        values["case"] = Case(**case | {"shape": tuple(case["shape"])})
    return kind(**values)


def key(job: Job, where: Environment) -> tuple[Any, ...]:
    """Return what the rows of a job have in common, as `Row.job` tells it."""
    row: Row = job.row("", where, "missing")
    return row.job


def _by(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
