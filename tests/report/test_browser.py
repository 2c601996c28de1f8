"""The report in a real browser."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.wait import WebDriverWait

from homeostat.report.html import REPORT_FILE, write_report
from homeostat.report.jsonl import ROWS_FILE, read_rows
from tests.report.conftest import set_dark
from tests.report.lesson import lesson_row
from tests.report.test_html import ATTACK


@pytest.fixture
def report(digits_study: Path) -> Path:
    return digits_study / REPORT_FILE


def draw_all(chrome) -> int:
    """Scroll through the page, as a reader does, until every chart is drawn; return how many."""

    def drawn(_) -> bool:
        left = chrome.execute_script(
            "const left = document.querySelector('.chart:not(.js-plotly-plot)');"
            "if (left) left.scrollIntoView(); return left === null;"
        )
        time.sleep(0.05)
        return left

    WebDriverWait(chrome, 30).until(drawn)
    return len(chrome.find_elements(By.CSS_SELECTOR, ".chart .main-svg:first-child"))


def console_errors(chrome) -> list[str]:
    return [entry["message"] for entry in chrome.get_log("browser")]


def requests(chrome) -> list[str]:
    """What the page asked for beyond itself; Chromium's own new tab asks for its own."""
    messages = [json.loads(entry["message"])["message"] for entry in chrome.get_log("performance")]
    sent = [m["params"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    urls = [m["request"]["url"] for m in sent if m["documentURL"].startswith("file:")]
    return [url for url in urls if not url.startswith(("file:", "data:", "blob:"))]


def test_it_opens_from_a_file_and_draws_every_chart(open_page, report):
    chrome = open_page(report)
    # The grid, eight accuracy curves, four charts inside the networks, the wrong mode.
    assert draw_all(chrome) == 14
    lines = chrome.execute_script(
        "return [...document.querySelectorAll('.chart')].map("
        "c => c.querySelectorAll('.scatterlayer path, .barlayer path').length)"
    )
    assert all(count > 0 for count in lines), lines
    assert console_errors(chrome) == []
    assert requests(chrome) == []


def test_the_console_check_can_fail(open_page, tmp_path):
    path = tmp_path / "page.html"
    path.write_text("<script>throw new Error('seen')</script><img src='http://127.0.0.1:9/x'>")
    chrome = open_page(path)
    WebDriverWait(chrome, 10).until(lambda _: "seen" in str(console_errors(chrome)))
    assert requests(chrome) == ["http://127.0.0.1:9/x"]


@pytest.mark.parametrize("dark", [False, True])
def test_a_phone_needs_no_sideways_scrolling(open_page, report, dark):
    chrome = open_page(report, width=375, dark=dark)
    draw_all(chrome)
    size = "return [document.documentElement.scrollWidth, window.innerWidth]"
    assert chrome.execute_script(size) == [375, 375]
    wide = chrome.execute_script(
        "return [...document.querySelectorAll('p, h1, h2, .chart, select, dl, figure')]"
        ".filter(e => e.getBoundingClientRect().right > 375.5).length"
    )
    assert wide == 0


def cells(chrome, column: int) -> list[str]:
    return chrome.execute_script(
        "return [...document.querySelectorAll('.sortable tbody tr')]"
        f".map(row => row.children[{column}].dataset.sort)"
    )


def test_the_table_sorts_by_click_and_by_key(open_page, report):
    chrome = open_page(report)
    headers = chrome.find_elements(By.CSS_SELECTOR, ".sortable th")
    buttons = chrome.find_elements(By.CSS_SELECTOR, ".sortable th button")
    column = [button.text.split("\n")[0] for button in buttons].index("With batch norm")
    before = [float(value) for value in cells(chrome, column)]
    chrome.execute_script("arguments[0].scrollIntoView({block: 'center'})", buttons[column])
    buttons[column].click()
    assert [float(value) for value in cells(chrome, column)] == sorted(before)
    assert headers[column].get_attribute("aria-sort") == "ascending"
    buttons[column].send_keys(Keys.ENTER)
    assert [float(value) for value in cells(chrome, column)] == sorted(before, reverse=True)
    assert headers[column].get_attribute("aria-sort") == "descending"
    buttons[1].send_keys(Keys.SPACE)
    assert cells(chrome, 1) == ["relu"] * 4 + ["sigmoid"] * 4
    states = [header.get_attribute("aria-sort") for header in headers]
    assert states.count("none") == len(states) - 1


def background(chrome) -> str:
    return chrome.execute_script("return getComputedStyle(document.body).backgroundColor")


def tick_color(chrome) -> str:
    return chrome.execute_script(
        "return getComputedStyle(document.querySelector('.chart .xtick text')).fill"
    )


def test_dark_mode_reaches_page_and_plots(open_page, report):
    chrome = open_page(report, dark=True)
    draw_all(chrome)
    assert background(chrome) == "rgb(20, 24, 29)"
    assert tick_color(chrome) == "rgb(230, 234, 239)"
    set_dark(chrome, False)
    WebDriverWait(chrome, 10).until(lambda _: tick_color(chrome) == "rgb(27, 31, 36)")
    assert background(chrome) == "rgb(255, 255, 255)"


def test_choosing_a_configuration_draws_its_charts(open_page, report):
    chrome = open_page(report)
    Select(chrome.find_element(By.CSS_SELECTOR, ".choice")).select_by_visible_text(
        "sigmoid, rate 1, bad start"
    )
    draw_all(chrome)
    charts = chrome.find_elements(By.CSS_SELECTOR, ".inside .chart")
    assert len(charts) == 4
    assert all("sigmoid, rate 1, bad start" in c.get_attribute("aria-label") for c in charts)
    assert console_errors(chrome) == []


def test_names_from_files_run_nothing(open_page, tmp_path):
    attack = {"data": ATTACK, "activation": ATTACK, "start": ATTACK, "device": ATTACK}
    rows = [lesson_row(batch_norm=batch_norm, **attack) for batch_norm in (False, True)]
    chrome = open_page(write_report(rows, tmp_path / REPORT_FILE))
    draw_all(chrome)
    assert chrome.title == "Homeostat: the MNIST lesson"
    assert chrome.find_elements(By.TAG_NAME, "img") == []
    assert ATTACK in chrome.find_element(By.TAG_NAME, "h2").text
    assert console_errors(chrome) == []


def test_the_report_is_rebuilt_from_the_rows_alone(digits_study, tmp_path):
    rebuilt = write_report(read_rows(digits_study / ROWS_FILE), tmp_path / REPORT_FILE)
    assert rebuilt.read_text() == (digits_study / REPORT_FILE).read_text()
