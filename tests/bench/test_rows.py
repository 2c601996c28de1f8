"""Rows go to CSV and come back, whole lines only."""

from __future__ import annotations

import csv

import pytest

from homeostat.errors import DataError
from homeostat.report.bench.rows import TimeRow, append_rows, columns_of, read_rows
from tests.bench.rows import some_rows, time_row


def test_rows_come_back_as_they_were(tmp_path):
    append_rows(tmp_path, some_rows())
    assert read_rows(tmp_path) == some_rows()


def test_the_heading_tells_machine_versions_and_threads(tmp_path):
    append_rows(tmp_path, some_rows())
    for name in ("times.csv", "accuracy.csv", "training.csv"):
        with (tmp_path / name).open() as file:
            heading = next(csv.reader(file))
        assert {"column", "state", "note", "machine", "cores", "threads"} < set(heading)
        assert {"framework", "versions", "python", "homeostat", "allocator"} < set(heading)


def test_what_is_measured_again_replaces_the_old(tmp_path):
    append_rows(tmp_path, [time_row(copies=10.0)])
    append_rows(tmp_path, [time_row(copies=11.0), time_row(rounds=7)])
    assert [row.copies for row in read_rows(tmp_path)] == [11.0, 10.0]


def test_a_line_that_a_killed_run_left_is_dropped(tmp_path):
    append_rows(tmp_path, [time_row()])
    path = tmp_path / TimeRow.FILE
    path.write_text(path.read_text() + "keras,8x6x6x16,NH")
    assert read_rows(tmp_path) == [time_row()]
    append_rows(tmp_path, [time_row(column="keras")])
    assert [row.column for row in read_rows(tmp_path)] == ["torch", "keras"]


@pytest.mark.parametrize(
    ("cell", "value", "message"),
    [
        ("copies", "fast", "row 2: the cell 'copies' is 'fast': not a float"),
        ("rounds", "", "row 2: the cell 'rounds' is ''"),
        ("state", "guessed", "row 2: the state 'guessed' is not known"),
    ],
)
def test_a_broken_cell_is_told_by_its_row(tmp_path, cell, value, message):
    append_rows(tmp_path, [time_row()])
    path = tmp_path / TimeRow.FILE
    with path.open() as file:
        records = list(csv.DictReader(file))
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns_of(TimeRow))
        writer.writeheader()
        writer.writerows([record | {cell: value} for record in records])
    with pytest.raises(DataError, match=message):
        read_rows(tmp_path)


def test_another_heading_is_refused(tmp_path):
    (tmp_path / TimeRow.FILE).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match="has the columns a, b: expected column, shape"):
        read_rows(tmp_path)


def test_a_place_that_cannot_be_written_to(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        append_rows(tmp_path / "file", [time_row()])
