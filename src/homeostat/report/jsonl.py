"""Rows on disk: one JSON object a line, appended as networks finish."""

from __future__ import annotations

import json
from pathlib import Path

from homeostat.errors import DataError
from homeostat.report.appending import append_lines
from homeostat.report.rows import Row, from_record, to_record

ROWS_FILE = "rows.jsonl"
"""Name of the rows' file in a study's folder."""


def append_row(path: Path, row: Row) -> None:
    """Append one row and make sure that it is on the disk.

    Raises:
        DataError: the file cannot be written.
    """
    line = json.dumps(to_record(row), allow_nan=False, separators=(",", ":")) + "\n"
    append_lines(path, line)


def read_rows(path: Path) -> list[Row]:
    """Read every row of a file; a last line without its end, from a killed run, is left out.

    Raises:
        DataError: the file cannot be read, or a line is not a row.
    """
    try:
        text = path.read_bytes().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(
            f"{path} cannot be read ({error}): expected the rows of a study. Give the folder that "
            "`homeostat study` wrote with --out."
        ) from error
    rows: list[Row] = []
    lines = text.split("\n")[:-1]
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(from_record(json.loads(line)))
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{path}, line {number}: {error} Expected one row of a study on each line. Delete "
                "the line, or choose another folder."
            ) from error
    return rows
