from __future__ import annotations

import json
import math

import pytest

from homeostat.errors import DataError
from homeostat.report.jsonl import append_row, read_rows
from homeostat.report.rows import from_record, to_record
from tests.report.lesson import lesson_row, speed_row


@pytest.mark.parametrize("row", [lesson_row(), lesson_row(batch_norm=False), speed_row()])
def test_rows_come_back_as_they_went(row):
    assert from_record(json.loads(json.dumps(to_record(row)))) == row


def test_what_is_not_finite_becomes_none():
    record = to_record(lesson_row(wall_s=math.nan))
    assert record["wall_s"] is None
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "poem"}, "of kind 'poem'"),
        ({"seed": "0"}, "'seed' is '0': expected a whole number"),
        ({"seed": True}, "'seed' is True: expected a whole number"),
        ({"test_accuracy": None}, "'test_accuracy' is None: expected a number"),
        ({"batch_norm": 1}, "'batch_norm' is 1: expected true or false"),
        ({"data": 7}, "'data' is 7: expected text"),
        ({"versions": []}, "'versions' is []: expected an object"),
        ({"versions": {"keras": 3}}, "'versions' is 3: expected text"),
        ({"probes": {}}, "'probes' is {}: expected a list"),
        ({"probes": [1]}, "1 is not an object"),
        ({"probes": [{"step": 0}]}, "'validation_accuracy' is missing"),
    ],
)
def test_a_record_of_the_wrong_form_is_refused(change, message):
    with pytest.raises(DataError) as caught:
        from_record(to_record(lesson_row()) | change)
    assert message in str(caught.value)


@pytest.mark.parametrize("record", [None, 3, [], "lesson"])
def test_what_is_no_object_is_refused(record):
    with pytest.raises(DataError, match="expected an object with 'kind'"):
        from_record(record)


def test_rows_are_appended_and_read_in_order(tmp_path):
    path = tmp_path / "new" / "rows.jsonl"
    rows = [lesson_row(seed=seed) for seed in range(3)]
    for row in rows:
        append_row(path, row)
    assert read_rows(path) == rows


def test_an_unfinished_line_is_left_out_and_replaced(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, lesson_row(seed=0))
    with path.open("a") as file:
        file.write('{"kind":"lesson","data":"mn')
    assert [row.seed for row in read_rows(path)] == [0]
    append_row(path, lesson_row(seed=1))
    assert [row.seed for row in read_rows(path)] == [0, 1]


def test_a_damaged_line_is_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    append_row(path, lesson_row())
    path.write_text(path.read_text() + "not json\n")
    with pytest.raises(DataError, match=r"rows\.jsonl, line 2: .*Delete the line"):
        read_rows(path)


def test_a_missing_or_binary_file_is_a_data_error(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "rows.jsonl")
    (tmp_path / "rows.jsonl").write_bytes(b"\xff\xfe\n")
    with pytest.raises(DataError, match="cannot be read"):
        read_rows(tmp_path / "rows.jsonl")


def test_a_place_that_cannot_be_written_to_is_a_data_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="Choose another one with --out"):
        append_row(tmp_path / "file" / "rows.jsonl", lesson_row())
