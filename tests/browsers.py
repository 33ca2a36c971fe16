"""A headless Chromium for the tests of pages, with a fresh profile each time.

``RAS_DIT_SCREENSHOTS=FOLDER`` keeps pictures of every view.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver import ActionChains, Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    CHROMIUM is None or DRIVER is None, reason="needs chromium and chromedriver"
)
DESKTOP, PHONE = (1280, 800), (390, 844)


@contextlib.contextmanager
def browser(
    size: tuple[int, int], profile: Path, downloads: Path | None = None
) -> Iterator[Chrome]:
    """A browser of the given size; below 700 pixels wide it is a phone with a touch screen."""
    assert CHROMIUM is not None
    assert DRIVER is not None
    options = ChromeOptions()
    options.binary_location = CHROMIUM
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--disable-dev-shm-usage",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        f"--user-data-dir={profile}",
        f"--window-size={size[0]},{size[1]}",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    if downloads is not None:
        options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    if size[0] < 700:
        metrics = {"width": size[0], "height": size[1], "pixelRatio": 2.0, "touch": True}
        options.add_experimental_option("mobileEmulation", {"deviceMetrics": metrics})
    driver = Chrome(options, Service(DRIVER))
    try:
        yield driver
    finally:
        driver.quit()


class Page:
    """What a participant sees and does."""

    def __init__(self, driver: Chrome, name: str) -> None:
        self.driver = driver
        self.name = name

    def find(self, id_: str) -> Any:
        return self.driver.find_element(By.ID, id_)

    def script(self, code: str) -> Any:
        return self.driver.execute_script(f"return {code}")

    def wait(self, condition: Callable[[], object]) -> None:
        WebDriverWait(self.driver, 180, 0.05).until(lambda _: condition())

    def press(self, *keys: str) -> None:
        ActionChains(self.driver).send_keys(*keys).perform()

    def open(self, address: str, *, anew: bool = True) -> None:
        """Opens the page, as somebody who has never been here."""
        self.driver.get(address)
        if anew:
            self.script("localStorage.clear()")
            self.driver.get("about:blank")
            self.driver.get(address)
        self.wait(lambda: self.view() is not None)

    def view(self) -> str | None:
        code = "(document.querySelector('main:not([hidden])') || {}).id"
        found: str | None = self.script(code)
        return found

    def position(self) -> int:
        return int(self.find("position").text.split()[1])

    def at(self, position: int) -> None:
        self.wait(lambda: self.view() == "question" and self.position() == position)
        self.wait(lambda: self.script("document.getElementById('right').complete"))

    def saved(self) -> None:
        self.wait(lambda: self.find("status").text == "Saved")

    def chosen(self) -> int:
        chosen: int = self.script(
            "Number((document.querySelector('[name=choice]:checked') || {}).value || 0)"
        )
        return chosen

    def click_answer(self, choice: int) -> None:
        self.driver.find_element(By.CSS_SELECTOR, f"label:has(input[value='{choice}'])").click()

    def look(self, view: str) -> None:
        """Nothing sticks out sideways, no errors in the console; a screenshot on demand."""
        wide, window = self.script("[document.documentElement.scrollWidth, window.innerWidth]")
        assert wide <= window
        assert [line for line in self.driver.get_log("browser") if line["level"] != "INFO"] == []
        folder = os.environ.get("RAS_DIT_SCREENSHOTS")
        if folder:
            self.driver.save_screenshot(str(Path(folder) / f"{self.name}-{view}.png"))

    def participant(self) -> str:
        kept = self.script("Object.entries(localStorage)")
        return str(json.loads(kept[0][1])["participant"])

    def zoom_places(self) -> list[tuple[float, ...]]:
        """Where both enlarged images are within their panes, and how large."""
        code = """['zoom-left', 'zoom-right'].map((id) => {
            const image = document.getElementById(id).getBoundingClientRect();
            const pane = document.getElementById(id).parentElement.getBoundingClientRect();
            return [image.x - pane.x, image.y - pane.y, image.width, image.height];
        })"""
        return [tuple(round(value, 2) for value in place) for place in self.script(code)]
