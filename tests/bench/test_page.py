"""Tables and page are made of the rows alone."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from homeostat.errors import DataError
from homeostat.report.bench.floor import floor_of
from homeostat.report.bench.html import render_bench, write_bench
from homeostat.report.bench.rows import AccuracyRow
from homeostat.report.bench.tables import make_notes, make_tables
from tests.bench.rows import WHERE, some_rows, time_row
from tests.report.conftest import open_page  # noqa: F401
from tests.report.test_browser import background, console_errors, draw_all, requests
from tests.report.test_html import ATTACK, own_part


def test_what_is_wrong_is_shown_as_wrong_and_what_is_missing_as_a_dash():
    table = make_tables(some_rows())[0]
    line = dict(zip(table.headings, table.lines[0], strict=True))
    shown = {name: cell.shown for name, cell in line.items()}
    assert shown["copy, ms"] == "0.100"
    assert (shown["torch"], shown["homeostat.torch"], shown["again"]) == ("10.0", "5.0", "5.1")
    assert shown["keras"] == "wrong"
    assert (shown["torch.compile"], shown["homeostat.keras"]) == ("–", "–")
    assert [name for name, cell in line.items() if cell.best] == ["homeostat.torch"]
    assert "floor 4.0" in table.title
    assert make_notes(some_rows()) == [
        "torch, keras: wrong: error 3.1e-02 in dx",
        "torch, torch.compile: RuntimeError: no compiler",
        "torch, homeostat.keras: not installed: keras",
    ]


def test_different_environments_do_not_share_a_line():
    other = dataclasses.replace(WHERE, threads=1)
    tables = make_tables([time_row(), time_row(environment=other, copies=20.0)])
    times = [t for t in tables if "time in copies" in t.title]
    assert [t.lines[0][4].shown for t in times] == ["10.0", "20.0"]
    assert ["2 threads" in t.title for t in times] == [True, False]
    accuracy = [row for row in some_rows() if isinstance(row, AccuracyRow)][:1]
    accuracy.append(dataclasses.replace(accuracy[0], environment=other, variance_error=1e-5))
    (table,) = make_tables(accuracy)
    assert [line[2].shown for line in table.lines] == ["2e-04 / 3e-03", "1e-05 / 3e-03"]


def test_an_output_that_is_not_finite_is_called_so():
    accuracy = next(t for t in make_tables(some_rows()) if t.title.startswith("accuracy"))
    assert [line[2].shown for line in accuracy.lines] == ["2e-04 / 3e-03", "3e+01 / NaN"]


def test_the_floor_counts_what_must_be_read_and_written():
    assert [floor_of(work, "plain") for work in ("inference", "forward", "forward+backward")] == [
        1.0, 1.5, 4.0,
    ]  # fmt: skip
    assert floor_of("forward+backward", "relu") == 4.0
    assert floor_of("forward+backward", "add+relu") == 5.0


def test_the_page_asks_for_nothing_from_elsewhere():
    own = own_part(render_bench(some_rows()))
    assert "http" not in own.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in own
    assert not re.search(r"<(?:script|img|link)[^>]+(?:src|href)=\"(?!data:,)", own)


def test_a_chart_holds_every_column_and_the_floor():
    page = render_bench(some_rows())
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])
    (figure,) = figures.values()
    (trace,) = figure["data"]
    assert dict(zip(trace["y"], trace["x"], strict=True)) == {
        "torch (torch)": 10.0, "homeostat.torch (torch)": 5.0, "again (torch)": 5.1,
    }  # fmt: skip
    assert [shape["x0"] for shape in figure["layout"]["shapes"]] == [4.0]
    # One copy took 0.1 ms: the p80 of torch is 0.2 ms, two copies, above its median.
    assert trace["error_x"]["array"][0] == pytest.approx(2.0)


def test_what_comes_from_files_is_escaped():
    rows = [time_row(**dict.fromkeys(("column", "shape", "layout", "dtype"), ATTACK))]
    rows.append(
        dataclasses.replace(rows[0], environment=dataclasses.replace(WHERE, machine=ATTACK))
    )
    page = render_bench(rows)
    assert "<img src=x" not in page
    assert "&lt;img src=x onerror" in page


def test_no_rows_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match="Run `homeostat bench` first"):
        render_bench([])


@pytest.mark.parametrize("dark", [False, True])
def test_it_opens_from_a_file_on_a_phone_too(open_page, tmp_path, dark):  # noqa: F811
    page = write_bench(some_rows(), tmp_path / "bench.html")
    chrome = open_page(page, width=375, dark=dark)
    assert draw_all(chrome) == 1
    assert console_errors(chrome) == []
    assert requests(chrome) == []
    size = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert chrome.execute_script(size) == [375, 375]
    assert background(chrome) == ("rgb(20, 24, 29)" if dark else "rgb(255, 255, 255)")
