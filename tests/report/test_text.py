from __future__ import annotations

import io

import pytest
from rich.console import Console

from homeostat.report.published import LESSON, find_published
from homeostat.report.summary import summarize
from homeostat.report.text import render_notes, render_tables
from tests.report.lesson import lesson_row, speed_row


def show(rows) -> str:
    console = Console(file=io.StringIO(), width=80)
    for table in render_tables(rows):
        console.print(table)
    return console.file.getvalue()


def pair_of_rows(**changes):
    return [
        lesson_row(batch_norm=batch_norm, seed=seed, test_accuracy=accuracy + seed / 50, **changes)
        for batch_norm, accuracy in ((False, 0.8), (True, 0.95))
        for seed in (0, 1)
    ]


def test_the_table_shows_means_and_published_results_in_80_columns():
    text = show(pair_of_rows())
    row = next(line for line in text.splitlines() if line.startswith("normal"))
    assert row.split() == [
        *("normal", "relu", "0.01", "0.8100", "±0.010", "0.9600", "±0.010", "+0.1500"),
        *("0.8262", "/", "0.9525"),
    ]
    assert max(map(len, text.splitlines())) <= 80


def test_other_data_have_no_published_results():
    assert "published" not in show(pair_of_rows(data="digits"))


def test_other_steps_have_no_published_results():
    assert "published" not in show(pair_of_rows(steps=1999))


def test_markup_from_a_file_is_shown_as_it_is():
    text = show([lesson_row(data="[red]x[/red]", start="[bold]")])
    assert "[red]x[/red]" in text
    assert "[bold]" in text


def test_one_network_alone_has_no_gain():
    rows = [lesson_row(batch_norm=False, data="digits")]
    (row,) = (line for line in show(rows).splitlines() if line.startswith("normal"))
    assert row.split()[-2:] == ["–", "–"]
    assert render_notes(rows) == []


def test_notes_say_the_claim_the_wrong_mode_and_the_speed():
    claim, wrong, speed = render_notes([*pair_of_rows(), speed_row()])
    assert "better in 1 of 1 configurations" in claim
    assert "0.8100 without, 0.9600 with" in claim
    assert "0.1000 by batch statistics, 0.9600 by moving statistics" in wrong
    assert "8,000 steps/s" in speed
    assert "2,000 steps/s; 4.0 times as fast" in speed


def test_groups_do_not_mix_data_steps_or_backends():
    rows = [
        lesson_row(),
        lesson_row(steps=100),
        lesson_row(backend="torch"),
        lesson_row(fingerprint="x"),
    ]
    assert len(summarize(rows)) == 4


def test_the_later_of_two_equal_rows_counts():
    rows = [lesson_row(test_accuracy=0.1), lesson_row(test_accuracy=0.9)]
    assert summarize(rows)[0].pairs[0].with_.values == (0.9,)


def test_every_published_result():
    assert len(LESSON) == 15
    assert find_published("mnist", "bad", "sigmoid", 2.0, 50_000).with_ == 0.9583
    assert find_published("mnist", "bad", "sigmoid", 2.0, 2_000) is None
    assert find_published("digits", "normal", "relu", 0.01, 2_000) is None


@pytest.mark.parametrize("rows", [[], [speed_row()]])
def test_no_networks_no_tables(rows):
    assert summarize(rows) == []
