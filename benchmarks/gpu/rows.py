"""The rows that a run writes, each as soon as it is known: a run that is cut off leaves its CSV."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.rows import percentiles
from homeostat.bench.timing import summarize
from homeostat.report.appending import append_lines

MEASURED, WRONG, FAILED, NOT_MEASURED = "measured", "wrong", "failed", "not measured"
"""What became of a call; the note says why it was not measured."""

_STATE = ("state", "note", "samples", "p20_ms", "p50_ms", "p80_ms")
_WHERE = (
    *("gpu", "driver", "clocks", "cuda", "cudnn", "torch", "triton", "python", "homeostat"),
)  # fmt: skip
TIMES = (
    *("dtype", "layout", "shape", "form", "work", "column", "way", *_STATE, "follow_ms"),
    *("tensor_bytes", "floor_bytes", "of_copy", "of_largest_copy", "saved_bytes", "peak_bytes"),
    *_WHERE,
)  # fmt: skip
TUNED = (
    *("dtype", "layout", "shape", "form", "work", "plan", "default", *_STATE, "of_default"),
    *_WHERE,
)  # fmt: skip
NETWORK = (
    *("network", "batch", "column", *_STATE, "images_per_s", "saved_bytes", "peak_bytes"),
    *_WHERE,
)  # fmt: skip
FILES: Mapping[str, Sequence[str]] = {
    "gpu.csv": TIMES,
    "gpu_tuned.csv": TUNED,
    "gpu_network.csv": NETWORK,
}
"""The columns of each file."""

Row = dict[str, Any]


class Rows:
    """The files of a run.

    Args:
        folder: where they are; what an earlier run left there is replaced.
        where: the columns that say where it was measured.
    """

    def __init__(self, folder: Path, where: Mapping[str, str]) -> None:
        self._folder, self._where = folder, where
        folder.mkdir(parents=True, exist_ok=True)
        for name in FILES:
            (folder / name).unlink(missing_ok=True)

    def add(self, name: str, row: Mapping[str, Any]) -> None:
        """Append a row to a file; columns that it does not name stay empty."""
        path, columns = self._folder / name, FILES[name]
        empty = dict.fromkeys(columns, "")
        append_lines(path, _line(columns, [{**empty, **self._where, **row}]), _line(columns, []))


def _line(columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    if not rows:
        writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def timed(samples: Iterable[float]) -> Row:
    """Return the columns of a call that was measured."""
    values = list(samples)
    return {"state": MEASURED, "samples": len(values), **percentiles(summarize(values))}


def read_rows(path: Path) -> list[dict[str, str]]:
    """Return a file's rows, none where there is no file."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return list(csv.DictReader(file))
