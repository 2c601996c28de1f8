from __future__ import annotations

import json
import re

import pytest

from homeostat.errors import DataError
from homeostat.report.html import render_report, write_report
from tests.report.lesson import lesson_row, speed_row

ATTACK = "</script><script>document.title='broken'</script><img src=x onerror=alert(1)>'\"&"


def own_part(page: str) -> str:
    """The page without Plotly's source, which is most of it."""
    return re.sub(r"<script>/\*\*.*?</script>", "", page, flags=re.S)


def test_what_comes_from_files_is_escaped():
    names = ("data", "activation", "start", "backend", "device", "finished")
    attack = dict.fromkeys(names, ATTACK) | {"versions": {ATTACK: ATTACK}}
    rows = [lesson_row(batch_norm=batch_norm, **attack) for batch_norm in (False, True)]
    page = render_report([*rows, speed_row(data=ATTACK, backend=ATTACK)])
    assert "<img src=x" not in page
    assert "document.title='broken'" not in page
    assert "&lt;img src=x onerror" in page
    figures = json.loads(re.search(r'id="figures">(.*?)</script>', page, re.S)[1])
    # Plotly reads tags in labels, so they are escaped once more for it.
    assert all("<img" not in label for label in figures["g0-grid"]["data"][0]["y"])


def test_the_page_asks_for_nothing_from_elsewhere():
    page = render_report([lesson_row(), lesson_row(batch_norm=False)])
    own = own_part(page)
    assert len(own) < 0.1 * len(page)
    assert "http" not in own.replace('http-equiv="Content-Security-Policy"', "")
    assert "default-src 'none'" in own
    assert not re.search(r"<(?:script|img|link)[^>]+(?:src|href)=\"(?!data:,)", own)


def test_published_columns_only_where_there_are_published_results():
    assert "Published without" in render_report([lesson_row()])
    assert "Published without" not in render_report([lesson_row(data="digits")])


def test_no_rows_is_an_error_that_says_what_to_do():
    with pytest.raises(DataError, match="Run `homeostat study` first"):
        render_report([speed_row()])


def test_a_place_that_cannot_be_written_to(tmp_path):
    with pytest.raises(DataError, match="cannot be written"):
        write_report([lesson_row()], tmp_path / "nowhere" / "report.html")


def test_networks_without_their_pair_are_reported():
    assert "Final accuracy" in render_report([lesson_row(batch_norm=False)])
