"""What the rows say: the table of every call, and each bar with whether it was met."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from benchmarks.gpu.columns import AGAIN, COMPILED, COPY, EAGER, NATIVE, OURS, PEERS
from benchmarks.gpu.rows import MEASURED, NOT_MEASURED, WRONG

Row = Mapping[str, str]
Key = tuple[str, ...]
Group = dict[str, Row]

KEY = ("dtype", "layout", "work", "form", "shape")
MET, MISSED = "met", "not met"


class Bar(NamedTuple):
    """What is asked of the measurement.

    Args:
        asked: in words.
        least: the number that every call must reach.
        calls: which calls it is asked of, by their key's fields.
        value: a call's number, or None where it was not measured.
    """

    asked: str
    least: float
    calls: Mapping[str, str]
    value: Callable[[Group], float | None]


class Outcome(NamedTuple):
    """What came of a bar.

    Args:
        asked: in words.
        found: the least and the geometric mean, and where the least was.
        told: ``"met"``, ``"not met"`` or ``"not measured"``, and of how many calls.
    """

    asked: str
    found: str
    told: str


def group_rows(rows: Iterable[Row]) -> dict[Key, Group]:
    """Return the calls in their order, each with its rows by column."""
    groups: dict[Key, Group] = {}
    for row in rows:
        if row["work"] != COPY:
            groups.setdefault(tuple(row[name] for name in KEY), {})[row["column"]] = row
    return groups


def milliseconds(group: Group, *names: str) -> float | None:
    """Return the fastest of some columns' medians, or None where none was measured."""
    return _least(group, names, "p50_ms")


def _least(group: Group, names: Sequence[str], field: str) -> float | None:
    found = [
        float(group[name][field])
        for name in names
        if name in group and group[name]["state"] == MEASURED and group[name][field]
    ]
    return min(found, default=None)


def speedup(group: Group, *names: str, field: str = "p50_ms") -> float | None:
    """Return how many times as long as ours the fastest of some columns takes."""
    theirs, ours = _least(group, names, field), _least(group, (OURS,), field)
    return theirs / ours if theirs and ours else None


def _fraction(field: str) -> Callable[[Group], float | None]:
    def value(group: Group) -> float | None:
        row = group.get(OURS)
        found = row is not None and row["state"] == MEASURED and row[field]
        return float(row[field]) if row is not None and found else None

    return value


_MAIN = {"dtype": "bfloat16", "layout": "NHWC"}
_STEP = {**_MAIN, "work": "forward+backward"}


def _against_eager(group: Group) -> float | None:
    return speedup(group, EAGER, NATIVE)


def _against_compiled(group: Group) -> float | None:
    return speedup(group, COMPILED)


BARS = (
    Bar("forward + backward + ReLU, torch.compile", 1.3, {**_STEP, "form": "relu"},
        _against_compiled),
    Bar("forward + backward + ReLU, eager", 1.8, {**_STEP, "form": "relu"}, _against_eager),
    Bar("forward + backward + add + ReLU, torch.compile", 1.5, {**_STEP, "form": "add+relu"},
        _against_compiled),
    Bar("forward + backward + add + ReLU, eager", 2.0, {**_STEP, "form": "add+relu"},
        _against_eager),
    Bar("floor's bytes, of the bandwidth of copying the same tensor", 0.8, _STEP,
        _fraction("of_copy")),
    Bar("floor's bytes, of the bandwidth of the largest copy", 0.8, _STEP,
        _fraction("of_largest_copy")),
    Bar("the best peer, every call", 0.95, {}, lambda group: speedup(group, *PEERS)),
    Bar("the best peer, every call, from call to call with the host", 0.95, {},
        lambda group: speedup(group, *PEERS, field="follow_ms")),
)  # fmt: skip
"""Each call must reach the number: speedups over a peer, or fractions."""


def judge(rows: Sequence[Row]) -> list[Outcome]:
    """Return what came of every bar."""
    groups = group_rows(rows)
    return [_judge(bar, groups) for bar in BARS]


def _judge(bar: Bar, groups: Mapping[Key, Group]) -> Outcome:
    asked = f"{bar.asked}: at least {bar.least:g}"
    calls = {
        key: group
        for key, group in groups.items()
        if all(dict(zip(KEY, key, strict=True))[name] == v for name, v in bar.calls.items())
    }
    found = {key: value for key, group in calls.items() if (value := bar.value(group)) is not None}
    faulty = [
        key for key, group in calls.items()
        if OURS in group and group[OURS]["state"] not in (MEASURED, NOT_MEASURED)
    ]  # fmt: skip
    missing = len(calls) - len(found) - len(faulty)
    if not found and not faulty:
        return Outcome(asked, "", NOT_MEASURED)
    reached = sum(value >= bar.least for value in found.values())
    told = MET if reached == len(found) and not faulty else MISSED
    told += f", {reached} of {len(found) + len(faulty)} calls"
    told += f", {missing} not measured" if missing else ""
    if not found:
        return Outcome(asked, f"{len(faulty)} wrong or failed", told)
    worst = min(found, key=lambda key: found[key])
    mean = math.exp(sum(math.log(max(v, 1e-9)) for v in found.values()) / len(found))
    words = f"least {found[worst]:.2f} ({' '.join(worst)}), geometric mean {mean:.2f}"
    return Outcome(asked, words, told)


def bars_table(rows: Sequence[Row]) -> str:
    """Return the bars as a table."""
    lines = ["| asked | found | |", "|---|---|---|"]
    lines += [f"| {' | '.join(outcome)} |" for outcome in judge(rows)]
    return "\n".join(lines)


def markdown(rows: Sequence[Row]) -> str:
    """Return the rows as the table of docs/gpu.md."""
    head = (
        *("dtype", "memory", "work", "fused", "shape", "copy, ms", "eager, ms"),
        *("torch.compile, ms", "Homeostat, ms", "over eager", "over torch.compile"),
        *("of the copy's bandwidth", "noise"),
    )
    lines = [f"| {' | '.join(head)} |", "|---" * len(head) + "|"]
    for key, group in group_rows(rows).items():
        of_copy = _fraction("of_copy")(group)
        noise = speedup(group, AGAIN)
        cells = [
            _time(group, COPY), _time(group, EAGER, NATIVE), _time(group, COMPILED),
            _time(group, OURS), _times(speedup(group, EAGER, NATIVE)),
            _times(speedup(group, COMPILED)),
            "" if of_copy is None else f"{of_copy:.0%}", _times(noise),
        ]  # fmt: skip
        lines.append(f"| {' | '.join((*key, *cells))} |")
    return "\n".join(lines)


def _time(group: Group, *names: str) -> str:
    found = milliseconds(group, *names)
    if found is not None:
        return f"{found:.3f}"
    states = {group[name]["state"] for name in names if name in group}
    return next((state for state in (WRONG, "failed") if state in states), NOT_MEASURED)


def _times(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.2f}x"


def faults(rows: Sequence[Row]) -> list[str]:
    """Return a line for every call that was wrong or failed."""
    told = []
    for row in rows:
        if row["state"] in (WRONG, "failed"):
            name = " ".join(row.get(field, "") for field in (*KEY, "column"))
            told.append(f"{row['state']}: {name}: {row['note']}")
    return told


def unmeasured(rows: Sequence[Row]) -> str:
    """Return how many calls no time was left for, in one line, or nothing."""
    late = {
        tuple(row[name] for name in KEY)
        for row in rows
        if row["state"] == NOT_MEASURED and row["note"] == "no time was left"
    }
    if not late:
        return ""
    names = "; ".join(" ".join(key) for key in sorted(late))
    return f"Not measured, since no time was left, {len(late)} calls: {names}"
