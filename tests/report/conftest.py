from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

CHROME = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


def find_chrome() -> tuple[str, str]:
    browser = next(filter(None, map(shutil.which, CHROME)), None)
    driver = shutil.which("chromedriver")
    if browser is None or driver is None:
        if os.environ.get("HOMEOSTAT_REQUIRE_BROWSER") == "1":
            pytest.fail("HOMEOSTAT_REQUIRE_BROWSER=1, but chromium or chromedriver is not found")
        pytest.skip("chromium and chromedriver are not both installed")
    return browser, driver


@pytest.fixture
def open_page(tmp_path: Path) -> Iterator[Callable[..., Any]]:
    """Open a file in headless Chromium; its log and its requests are recorded."""
    browser, driver = find_chrome()
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    drivers: list[Any] = []

    def open_file(path: Path, width: int = 1200, dark: bool = False) -> Any:
        options = webdriver.ChromeOptions()
        options.binary_location = browser
        for flag in (*FLAGS, f"--user-data-dir={tmp_path / f'profile{len(drivers)}'}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        chrome = webdriver.Chrome(options=options, service=Service(driver))
        drivers.append(chrome)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 500}
        chrome.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        set_dark(chrome, dark)
        chrome.get(path.as_uri())
        return chrome

    yield open_file
    for chrome in drivers:
        chrome.quit()


def set_dark(chrome: Any, dark: bool) -> None:
    value = "dark" if dark else "light"
    features = [{"name": "prefers-color-scheme", "value": value}]
    chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
