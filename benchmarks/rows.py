"""What the rows of every benchmark here have in common, and their file."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from homeostat.bench.timing import Timing


def percentiles(found: Timing) -> dict[str, float]:
    """Return the columns of a time, in milliseconds."""
    return {
        "p20_ms": round(found.p20, 4),
        "p50_ms": round(found.p50, 4),
        "p80_ms": round(found.p80, 4),
    }


def write_rows(path: Path, columns: Sequence[str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Write rows as CSV, in the place of what was there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)
