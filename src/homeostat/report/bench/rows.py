"""The records that the benchmark writes, as CSV files that its tables and its page are made of."""

from __future__ import annotations

import csv
import dataclasses
import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from homeostat.errors import DataError
from homeostat.report.appending import append_lines

STATES = ("measured", "wrong", "missing", "failed")
"""What became of a call: only what is right is measured; the note says the rest."""


@dataclass(frozen=True)
class Environment:
    """Where a row was measured; rows of different environments are never compared.

    Args:
        framework: whose process it was: ``"torch"``, ``"jax"`` or ``"tensorflow"``.
        machine: operating system and processor.
        cores: processor cores that this machine lets processes use.
        threads: processor cores that the process was given.
        allocator: ``"keep"`` or ``"system"``, what became of memory that was given back.
        python: version.
        versions: of the framework and of what runs on it, as ``"torch 2.13.0, keras 3.15.1"``.
        homeostat: version.
    """

    framework: str
    machine: str
    cores: int
    threads: int
    allocator: str
    python: str
    versions: str
    homeostat: str


@dataclass(frozen=True)
class TimeRow:
    """One call of one column.

    Args:
        column: what was called; ``"copy"`` copies the tensor, ``"again"`` is one of ours once more.
        shape: (batch, space, channels), as ``"32x28x28x256"``.
        layout: such as ``"NHWC"``.
        dtype: of the tensors.
        work: ``"inference"``, ``"forward"`` or ``"forward+backward"``.
        form: ``"plain"``, ``"relu"`` or ``"add+relu"``.
        state: one of `STATES`.
        note: why it was not measured, or what ``"again"`` repeats.
        rounds: samples of each column, taken in turns.
        p20_ms: of ten samples two are faster.
        p50_ms: the median.
        p80_ms: of ten samples two are slower.
        copies: the median in copies of the tensor by the same process.
        saved: bytes kept for the backward, in tensors; None where unknown.
        peak: memory that the call adds at its peak, in tensors; None where unknown.
        environment: where.
    """

    FILE: ClassVar[str] = "times.csv"

    column: str
    shape: str
    layout: str
    dtype: str
    work: str
    form: str
    state: str
    note: str
    rounds: int
    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    copies: float | None
    saved: float | None
    peak: float | None
    environment: Environment

    @property
    def job(self) -> tuple[Any, ...]:
        """What was asked, which column apart."""
        call = (self.shape, self.layout, self.dtype, self.work, self.form)
        return ("time", self.environment, *call, self.rounds)


@dataclass(frozen=True)
class AccuracyRow:
    """How far one column is from exact arithmetic on hard data, in float32.

    Args:
        column: what was called.
        data: name of the data.
        state: one of `STATES`; what is inexact is measured all the same.
        note: why it was not measured.
        variance_error: largest relative error of the batch's variance; None where not finite.
        output_error: largest error of the output, in units of the largest output (or 1); None
            where not finite.
        environment: where.
    """

    FILE: ClassVar[str] = "accuracy.csv"

    column: str
    data: str
    state: str
    note: str
    variance_error: float | None
    output_error: float | None
    environment: Environment

    @property
    def job(self) -> tuple[Any, ...]:
        """What was asked, which column apart."""
        return ("accuracy", self.environment, self.data)


@dataclass(frozen=True)
class TrainingRow:
    """Whole training steps of one network.

    Args:
        column: whose batch norm the network has.
        network: name of the network.
        layout: ``"NHWC"`` or ``"NCHW"``.
        batch: images in a step.
        state: one of `STATES`.
        note: why it was not measured, or what ``"again"`` repeats.
        rounds: samples of each column, taken in turns.
        p20_ms: of ten samples two are faster.
        p50_ms: the median of a step.
        p80_ms: of ten samples two are slower.
        images_per_s: at the median.
        saved_mib: MiB kept for the backward; None where unknown.
        peak_mib: resident memory that a step adds at its peak, in MiB; None where unknown.
        environment: where.
    """

    FILE: ClassVar[str] = "training.csv"

    column: str
    network: str
    layout: str
    batch: int
    state: str
    note: str
    rounds: int
    p20_ms: float | None
    p50_ms: float | None
    p80_ms: float | None
    images_per_s: float | None
    saved_mib: float | None
    peak_mib: float | None
    environment: Environment

    @property
    def job(self) -> tuple[Any, ...]:
        """What was asked, which column apart."""
        return ("training", self.environment, self.network, self.layout, self.batch, self.rounds)


Row = TimeRow | AccuracyRow | TrainingRow
KINDS: tuple[type[Row], ...] = (TimeRow, AccuracyRow, TrainingRow)


def columns_of(kind: type[Row]) -> tuple[str, ...]:
    """Return the CSV's heading: the row's fields, then the environment's."""
    own = tuple(f.name for f in dataclasses.fields(kind) if f.name != "environment")
    return (*own, *(f.name for f in dataclasses.fields(Environment)))


def to_record(row: Row) -> dict[str, Any]:
    """Return a row's cells by heading."""
    record = dataclasses.asdict(row)
    return record | record.pop("environment")


def from_record(kind: type[Row], record: dict[str, Any]) -> Row:
    """Read back what `to_record` returned, or a CSV made of.

    Raises:
        DataError: a cell is missing or does not fit.
    """
    environment = Environment(**_cells(Environment, record))
    row = kind(**_cells(kind, record), environment=environment)
    if row.state not in STATES:
        raise DataError(f"the state {row.state!r} is not known: expected one of {STATES}.")
    return row


def _cells(kind: type[Any], record: dict[str, Any]) -> dict[str, Any]:
    cells = {}
    for field in dataclasses.fields(kind):
        if field.name == "environment":
            continue
        value = record.get(field.name)
        if value is None and not str(field.type).endswith("None"):
            raise DataError(f"the cell {field.name!r} is missing.")
        try:
            cells[field.name] = _READERS[str(field.type)](value)
        except (TypeError, ValueError) as error:
            raise DataError(f"the cell {field.name!r} is {value!r}: not a {field.type}.") from error
    return cells


_READERS: dict[str, Callable[[Any], Any]] = {
    "str": str,
    "int": int,
    "float | None": lambda value: None if value in (None, "") else float(value),
}


def append_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Append rows to the CSV files of a folder, those of one kind in one write.

    Raises:
        DataError: a file cannot be written, or has another heading.
    """
    rows = list(rows)
    for kind in KINDS:
        mine = [row for row in rows if isinstance(row, kind)]
        if mine:
            _append(folder / kind.FILE, kind, mine)


def _append(path: Path, kind: type[Row], rows: Sequence[Row]) -> None:
    lines, columns = io.StringIO(), columns_of(kind)
    writer = csv.DictWriter(lines, columns, lineterminator="\n")
    writer.writerows(to_record(row) for row in rows)
    append_lines(path, lines.getvalue(), header=",".join(columns) + "\n")


def read_rows(folder: Path) -> list[Row]:
    """Return every row of a folder, the newest where a call was measured again.

    Raises:
        DataError: a file cannot be read, or a line is not a row.
    """
    rows: dict[Any, Row] = {}
    for kind in KINDS:
        path = folder / kind.FILE
        if path.exists():
            for row in _read(path, kind):
                rows[row.job, row.column] = row
    return list(rows.values())


def _read(path: Path, kind: type[Row]) -> list[Row]:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read ({error}): expected rows of the bench.") from error
    # A last line without its end is from a run that was killed.
    lines = io.StringIO(text[: text.rfind("\n") + 1])
    reader = csv.DictReader(lines)
    if tuple(reader.fieldnames or ()) != columns_of(kind):
        raise DataError(
            f"{path} has the columns {', '.join(reader.fieldnames or ())}: expected "
            f"{', '.join(columns_of(kind))}. It may come from another version of Homeostat: choose "
            "another folder with --out."
        )
    rows: list[Row] = []
    for number, record in enumerate(reader, start=2):
        try:
            rows.append(from_record(kind, record))
        except DataError as error:
            raise DataError(
                f"{path}, row {number}: {error} Delete the line, or choose another folder."
            ) from error
    return rows
