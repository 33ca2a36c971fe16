"""The whole study as a participant in a real browser: mouse and keyboard, desktop and phone."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from selenium.webdriver import ActionChains, Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from browsers import DESKTOP, PHONE, Page, browser, needs_chromium
from ras_dit.cli import main
from ras_dit.embedded import MODEL_DIR
from ras_dit.study.assignment import assignment
from ras_dit.study.folder import ANSWERS, read_manifest
from ras_dit.study.store import AnswerStore
from studies import ServerProcess, served, small_study

pytestmark = needs_chromium
COUNT = 14


@pytest.fixture(scope="module")
def study_folder(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of the embedded model, or of a small one where that has no weights yet."""
    out = tmp_path_factory.mktemp("browser") / "study"
    words = ["--a", "dense", "--b", "0.25", "--steps", "4", "--device", "cpu", "--out", str(out)]
    if (MODEL_DIR / "model_index.json").is_file():
        words += ["--size", "128x128"]
    else:
        prompts = out.parent / "prompts.txt"
        prompts.write_text("\n".join(f"fox {'x' * number}" for number in range(1, COUNT + 1)))
        words += ["--model", str(model_folder), "--prompts", str(prompts)]
        words += ["--max-sequence-length", "32"]
    assert main(["study", "build", *words]) == 0
    return out


@pytest.fixture(scope="module")
def address(study_folder: Path) -> Iterator[str]:
    """The study, served."""
    with served(study_folder, rate=1000.0) as found:
        yield found


@pytest.fixture(scope="module")
def desktop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser on a desktop."""
    with browser(DESKTOP, tmp_path_factory.mktemp("desktop")) as driver:
        yield driver


@pytest.fixture(scope="module")
def phone(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """A browser on a phone."""
    with browser(PHONE, tmp_path_factory.mktemp("phone")) as driver:
        yield driver


def choices_in_store(folder: Path, participant: str) -> list[int | None]:
    """The stored choices of a participant in the order of the questions."""
    manifest = read_manifest(folder)
    with closing(AnswerStore(folder / ANSWERS, manifest.study)) as store:
        seed = store.seed(participant)
        assert seed is not None
        choices = store.choices(participant)
        return [choices.get(shown.question) for shown in assignment(seed, manifest.questions)]


PLAN = [1, 2, 3, 4, 5, 4, 3, 2, 1, 5, 3, 3, 2, 4]


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_whole_study_by_mouse(
    device: str, address: str, study_folder: Path, request: pytest.FixtureRequest
) -> None:
    page = Page(request.getfixturevalue(device), f"{device}-mouse")
    page.open(address)
    assert page.view() == "welcome"
    page.look("1-welcome")
    page.find("start").click()
    assert "tick the box" in page.find("start-error").text
    page.find("agree").click()
    page.find("start").click()
    page.at(1)
    page.look("2-question")
    page.find("next").click()
    assert "choose one of the five" in page.find("question-error").text
    for position, choice in enumerate(PLAN, 1):
        page.at(position)
        assert page.chosen() == 0
        page.click_answer(choice)
        page.saved()
        if position == 3:
            page.look("3-chosen")
            page.driver.find_element(By.CSS_SELECTOR, ".picture").click()
            before = page.zoom_places()
            for _ in range(3):
                page.find("zoom-in").click()
            pane = page.driver.find_element(By.CSS_SELECTOR, ".pane")
            ActionChains(page.driver).drag_and_drop_by_offset(pane, 40, 30).perform()
            left, right = page.zoom_places()
            assert left == right != before[0]
            assert left[2] > 3 * before[0][2]
            page.look("4-zoom")
            page.find("zoom-close").click()
        if position == 7:
            # In the middle: a reload, then the browser's own back button, then ours.
            page.driver.refresh()
            page.at(7)
            assert page.chosen() == choice
            page.find("back").click()
            page.at(6)
            assert page.chosen() == PLAN[5]
            page.driver.back()
            page.at(7)
        page.find("next").click()
    page.wait(lambda: page.view() == "done")
    assert "All 14 answers are stored" in page.find("done-text").text
    page.look("5-done")
    participant = page.participant()
    assert choices_in_store(study_folder, participant) == PLAN
    # A change of mind overwrites.
    page.find("review").click()
    page.at(COUNT)
    page.click_answer(1)
    page.saved()
    assert choices_in_store(study_folder, participant) == [*PLAN[:-1], 1]
    page.find("next").click()
    page.wait(lambda: page.view() == "done")
    page.find("another").click()
    assert page.view() == "welcome"


@pytest.mark.parametrize("device", ["desktop", "phone"])
def test_whole_study_by_keyboard(
    device: str, address: str, study_folder: Path, request: pytest.FixtureRequest
) -> None:
    page = Page(request.getfixturevalue(device), f"{device}-keyboard")
    page.open(address)
    page.press(Keys.TAB, Keys.SPACE, Keys.TAB, Keys.ENTER)
    page.at(1)
    assert page.script("document.activeElement.id") == "prompt"
    page.press(Keys.ARROW_RIGHT)
    assert "choose one of the five" in page.find("question-error").text
    for position, choice in enumerate(PLAN, 1):
        page.at(position)
        if position == 2:
            # As people do who know radio buttons: to the group by Tab, then with the arrows.
            page.press(Keys.TAB, Keys.TAB, Keys.TAB, Keys.SPACE, Keys.ARROW_DOWN)
            assert page.chosen() == 2
            page.look("1-focus")
            page.press(Keys.ARROW_LEFT)
            page.at(1)
            page.press(Keys.ARROW_RIGHT)
            page.at(2)
        else:
            page.press(str(choice))
        assert page.chosen() == choice
        if position == 4:
            page.press("z")
            page.wait(lambda: page.script("document.getElementById('zoom').open"))
            page.press("+", "+", "+", Keys.ARROW_RIGHT, Keys.ARROW_DOWN, "5")
            left, right = page.zoom_places()
            assert left == right
            assert left[0] < 0
            page.press("z")
            assert page.script("document.getElementById('zoom').open") is False
            page.press("z", Keys.ESCAPE)
            assert page.script("document.getElementById('zoom').open") is False
            assert page.chosen() == choice
        page.saved()
        if position == 9:
            page.driver.refresh()
            page.at(9)
        page.press(Keys.ENTER if position % 2 else Keys.ARROW_RIGHT)
    page.wait(lambda: page.view() == "done")
    assert choices_in_store(study_folder, page.participant()) == PLAN
    page.press(Keys.ARROW_LEFT)
    page.at(COUNT)


def test_everything_has_a_name_and_enough_contrast(address: str, desktop: Chrome) -> None:
    page = Page(desktop, "names")
    page.open(address)
    unnamed = page.script("""[...document.querySelectorAll(
        'button, input, textarea, img, progress, dialog')]
        .filter((e) => !(e.getAttribute('aria-label') || e.alt || e.textContent.trim()
            || (e.labels && [...e.labels].some((label) => label.textContent.trim()))))
        .map((e) => e.outerHTML)""")
    assert unnamed == []
    assert page.script("document.documentElement.lang") == "en"
    faint = page.script("""[...document.querySelectorAll(
        'p, li, label, button, kbd, h1, h2, legend, span, a')]
        .filter((e) => e.textContent.trim() && !e.disabled).map((e) => {
            const parse = (colour) => colour.match(/[\\d.]+/g).map(Number);
            let behind = e;
            while (parse(getComputedStyle(behind).backgroundColor)[3] === 0) {
                if (behind === document.documentElement) break;
                behind = behind.parentElement;
            }
            const light = (colour) => parse(colour).slice(0, 3).map((v) => v / 255)
                .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
                .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
            const ground = getComputedStyle(behind).backgroundColor;
            const pair = [light(getComputedStyle(e).color), light(ground)];
            return [(Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05), e.outerHTML];
        }).filter(([ratio]) => ratio < 4.5)""")
    assert faint == []


def test_html_in_prompts_is_text(tmp_path: Path, desktop: Chrome) -> None:
    folder = tmp_path / "study"
    small_study(folder, 1)
    data = json.loads((folder / "manifest.json").read_text())
    hostile = "<img src=x onerror=\"document.title='broken'\"><b>bold</b>"
    data["questions"][0]["prompt"] = data["title"] = data["consent"][0] = hostile
    (folder / "manifest.json").write_text(json.dumps(data))
    with served(folder) as address:
        page = Page(desktop, "hostile")
        page.open(address)
        assert page.find("title").text == hostile
        page.find("agree").click()
        page.find("start").click()
        page.at(1)
        assert page.find("prompt").text == hostile
        assert page.script("document.querySelectorAll('b').length") == 0
        assert page.script("document.title") == hostile


def test_answers_wait_for_a_server_that_was_killed(tmp_path: Path, desktop: Chrome) -> None:
    folder = tmp_path / "study"
    small_study(folder, 3)
    server = ServerProcess(folder)
    try:
        page = Page(desktop, "killed")
        page.open(server.address)
        page.find("agree").click()
        page.find("start").click()
        page.at(1)
        page.press("2")
        page.saved()
        page.press(Keys.ARROW_RIGHT)
        page.at(2)
        server.kill()
        page.press("4")
        page.wait(lambda: "Trying again" in page.find("status").text)
        page.press(Keys.ARROW_RIGHT)
        page.press("5")
        server = ServerProcess(folder, server.port)
        page.saved()
        participant = page.participant()
        assert choices_in_store(folder, participant) == [2, 4, 5]
        # It complained while the server was away, and rightly.
        page.driver.get_log("browser")
    finally:
        server.kill()


def test_a_study_set_up_anew_starts_anew(tmp_path: Path, desktop: Chrome) -> None:
    folder = tmp_path / "study"
    small_study(folder, 2)
    with served(folder) as address:
        page = Page(desktop, "anew")
        page.open(address)
        page.find("agree").click()
        page.find("start").click()
        page.at(1)
        with closing(sqlite3.connect(folder / ANSWERS)) as database:
            database.execute("DELETE FROM participants")
            database.commit()
        page.driver.refresh()
        page.wait(lambda: page.view() == "welcome")
        page.driver.get_log("browser")
