"""Rows as tables of plain cells, for the terminal and for the page alike."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from homeostat.report.bench.floor import floor_of
from homeostat.report.bench.rows import AccuracyRow, Environment, Row, TimeRow, TrainingRow

MISSING = "–"
CONTROLS = ("copy", "again")


@dataclass(frozen=True)
class Cell:
    """What a table shows at one place.

    Args:
        shown: text.
        note: more about it, or "".
        best: whether it is the best of its line.
    """

    shown: str
    note: str = ""
    best: bool = False


@dataclass(frozen=True)
class BenchTable:
    """One table.

    Args:
        title: what it tells.
        headings: of the columns that describe a line, then of the candidates.
        lines: cells, as many as there are headings.
        words: how many of the headings describe.
    """

    title: str
    headings: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    words: int


def make_tables(rows: Sequence[Row]) -> list[BenchTable]:
    """Return the tables of these rows: times, accuracy, training."""
    tables: list[BenchTable] = []
    for where, group in by_environment(rows).items():
        times = [row for row in group if isinstance(row, TimeRow)]
        for work, dtype in dict.fromkeys((row.work, row.dtype) for row in times):
            mine = [row for row in times if (row.work, row.dtype) == (work, dtype)]
            tables.append(_times(where, work, dtype, mine))
        memory = [row for row in times if row.saved is not None]
        if memory:
            tables.append(_memory(where, memory))
    accuracy = [row for row in rows if isinstance(row, AccuracyRow)]
    if accuracy:
        tables.append(_accuracy(accuracy))
    training = [row for row in rows if isinstance(row, TrainingRow)]
    if training:
        tables.append(_training(training))
    return tables


def by_environment(rows: Sequence[Row]) -> dict[Environment, list[Row]]:
    """Return the rows of each environment; only those are compared."""
    groups: dict[Environment, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.environment, []).append(row)
    return groups


def names_of(rows: Sequence[Any]) -> list[str]:
    """Return the columns in their order, controls apart."""
    return list(dict.fromkeys(row.column for row in _in_order(rows)))


def _in_order(rows: Sequence[Any]) -> list[Any]:
    # Ours stand last, whatever was measured first.
    found = [row for row in rows if row.column not in CONTROLS]
    return sorted(found, key=lambda row: row.column.startswith("homeostat"))


def _times(where: Environment, work: str, dtype: str, rows: Sequence[TimeRow]) -> BenchTable:
    names = names_of(rows)
    floors = {floor_of(work, row.form) for row in rows}
    title = (
        f"{_process(where)}: {work}, {dtype}; time in copies of the tensor "
        f"(floor {' to '.join(f'{floor:.1f}' for floor in sorted({min(floors), max(floors)}))})"
    )
    lines = []
    for call, group in _grouped(rows, lambda row: (row.shape, row.layout, row.form)).items():
        best = min((r.copies for n, r in group.items() if n in names and r.copies), default=None)
        cells = [Cell(word) for word in call]
        cells.append(Cell(_number(getattr(group.get("copy"), "p50_ms", None), "{:.3f}")))
        cells += [_copies(group.get(name), best) for name in names]
        cells.append(_copies(group.get("again"), None))
        lines.append(tuple(cells))
    headings = ("shape", "layout", "form", "copy, ms", *names, "again")
    return BenchTable(title, headings, tuple(lines), 3)


def _process(where: Environment) -> str:
    return f"{where.framework}, {where.threads} thread{'s' * (where.threads > 1)}"


def _copies(row: TimeRow | None, best: float | None) -> Cell:
    if row is None or row.copies is None:
        return _reason(row)
    spread = f"p20 {row.p20_ms:.3f} ms, p50 {row.p50_ms:.3f} ms, p80 {row.p80_ms:.3f} ms"
    note = f"{spread}; {row.note} once more" if row.note else spread
    return Cell(f"{row.copies:.1f}", note, row.copies == best)


def _memory(where: Environment, rows: Sequence[TimeRow]) -> BenchTable:
    names = names_of(rows)
    lines = []
    for call, group in _grouped(
        rows, lambda row: (row.shape, row.layout, row.dtype, row.form)
    ).items():
        found = [group.get(name) for name in names]
        cells = [Cell(word) for word in call]
        cells += [
            Cell(f"{_number(r.saved, '{:.1f}')} / {_number(r.peak, '{:.1f}')}") if r else _reason(r)
            for r in found
        ]
        lines.append(tuple(cells))
    title = (
        f"{_process(where)}: memory of forward+backward in tensors; "
        "kept for the backward / added at the peak"
    )
    return BenchTable(title, ("shape", "layout", "dtype", "form", *names), tuple(lines), 4)


def _accuracy(rows: Sequence[AccuracyRow]) -> BenchTable:
    data = list(dict.fromkeys(row.data for row in rows))
    lines = []
    groups = _grouped(rows, lambda row: (row.environment, row.column), lambda row: row.data)
    for (where, column), group in groups.items():
        words = (where.framework, column)
        lines.append((*map(Cell, words), *(_errors(group.get(name)) for name in data)))
    title = "accuracy, float32: largest error of variance (relative) / of output"
    return BenchTable(title, ("framework", "column", *data), tuple(lines), 2)


def _errors(row: AccuracyRow | None) -> Cell:
    if row is None or row.state != "measured":
        return _reason(row)
    errors = (row.variance_error, row.output_error)
    return Cell(" / ".join("NaN" if error is None else f"{error:.0e}" for error in errors))


def _training(rows: Sequence[TrainingRow]) -> BenchTable:
    lines = []
    for row in sorted(rows, key=lambda row: (row.network, row.layout, row.column == "again")):
        words = (row.network, row.layout, str(row.batch), str(row.environment.threads), row.column)
        found = (
            _number(row.images_per_s, "{:.0f}"),
            _number(row.p50_ms, "{:.1f}"),
            _number(row.saved_mib, "{:.0f}"),
            _number(row.peak_mib, "{:.0f}"),
        )
        first, *others = [Cell(text) for text in found]
        first = first if row.state == "measured" else _reason(row)
        lines.append((*map(Cell, words), first, *others))
    title = "training steps in PyTorch, float32: whole networks"
    headings = ("network", "layout", "batch", "threads", "batch norm", "images/s", "step, ms")
    return BenchTable(title, (*headings, "kept, MiB", "peak, MiB"), tuple(lines), 5)


def _reason(row: Any) -> Cell:
    if row is None:
        return Cell(MISSING)
    return Cell("wrong" if row.state == "wrong" else MISSING, f"{row.state}: {row.note}")


def _number(value: float | None, form: str) -> str:
    return MISSING if value is None else form.format(value)


def _grouped(rows: Sequence[Any], line: Any, column: Any = lambda row: row.column) -> Any:
    groups: dict[tuple[Any, ...], dict[str, Any]] = {}
    for row in rows:
        groups.setdefault(line(row), {})[column(row)] = row
    return groups


def make_notes(rows: Sequence[Row]) -> list[str]:
    """Return why there is no number, once for each column and reason."""
    reasons: dict[tuple[str, str, str], int] = {}
    for row in rows:
        if row.state != "measured":
            words = f"wrong: {row.note}" if row.state == "wrong" else row.note
            found = (row.environment.framework, row.column, words)
            reasons[found] = reasons.get(found, 0) + 1
    return [
        f"{framework}, {column}: {words}" + (f" ({count} calls)" if count > 1 else "")
        for (framework, column, words), count in reasons.items()
    ]
