"""Rows as a run writes them, for what needs no run."""

from __future__ import annotations

from typing import Any

from homeostat.report.bench.rows import AccuracyRow, Environment, Row, TimeRow, TrainingRow

WHERE = Environment("torch", "Linux x86_64", 2, 2, "keep", "3.11.7", "torch 2.13.0", "0.1.0")


def time_row(**changes: Any) -> TimeRow:
    values: dict[str, Any] = {
        "column": "torch", "shape": "8x6x6x16", "layout": "NHWC", "dtype": "float32",
        "work": "forward+backward", "form": "plain", "state": "measured", "note": "", "rounds": 5,
        "p20_ms": 0.9, "p50_ms": 1.0, "p80_ms": 1.2, "copies": 10.0, "saved": 1.0, "peak": None,
        "environment": WHERE,
    }  # fmt: skip
    return TimeRow(**values | changes)


def without_numbers(**changes: Any) -> TimeRow:
    numbers = ("p20_ms", "p50_ms", "p80_ms", "copies", "saved", "peak")
    return time_row(**dict.fromkeys(numbers), **changes)


def some_rows() -> list[Row]:
    """Return rows of every kind and state."""
    return [
        time_row(column="copy", copies=1.0, p50_ms=0.1, saved=None),
        time_row(),
        time_row(column="homeostat.torch", copies=5.0, p50_ms=0.5),
        time_row(column="again", copies=5.1, note="homeostat.torch", saved=None),
        without_numbers(column="keras", state="wrong", note="error 3.1e-02 in dx"),
        without_numbers(column="torch.compile", state="failed", note="RuntimeError: no compiler"),
        without_numbers(column="homeostat.keras", state="missing", note="not installed: keras"),
        AccuracyRow("torch", "mean/std 1e4", "measured", "", 2e-4, 3e-3, WHERE),
        AccuracyRow("keras", "mean/std 1e4", "measured", "", 33.0, None, WHERE),
        TrainingRow(
            "torch", "ResNet-18, 64x64", "NHWC", 32, "measured", "", 5,
            100.0, 110.0, 120.0, 290.9, 55.0, None, WHERE,
        ),
    ]  # fmt: skip
