"""The exported page in a real browser, from the disk: answered, saved, merged."""

from __future__ import annotations

from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from browsers import DESKTOP, PHONE, Page, browser, needs_chromium
from ras_dit.study.analyse import analyse_study
from ras_dit.study.assignment import assignment
from ras_dit.study.export import export_study
from ras_dit.study.folder import KEY, read_key
from studies import small_study
from test_study_export import read_codes

pytestmark = needs_chromium


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_the_export_works_offline_and_is_merged(size: tuple[int, int], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    manifest = small_study(folder, 4)
    file = tmp_path / "page" / "study.html"
    codes = read_codes(export_study(folder, folder / KEY, file, 2))
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    with browser(size, tmp_path / "profile", downloads) as driver:
        page = Page(driver, f"offline-{size[0]}")
        page.open(file.as_uri())
        page.find("agree").click()
        page.find("code").send_keys("0000-1111-2222-3333")
        page.find("start").click()
        assert "does not belong to this page" in page.find("start-error").text
        page.find("code").clear()
        page.find("code").send_keys(codes[1].lower())
        page.look("1-welcome")
        page.find("start").click()
        for position, choice in enumerate((1, 4), 1):
            page.at(position)
            page.press(str(choice), Keys.ARROW_RIGHT)
        page.at(3)
        page.driver.refresh()
        page.at(3)
        page.look("2-question")
        for position, choice in ((3, 3), (4, 5)):
            page.at(position)
            page.press(str(choice), Keys.ARROW_RIGHT)
        page.wait(lambda: page.view() == "done")
        page.look("3-done")
        page.find("download").click()
        name = f"answers-{manifest.study[:8]}-2.json"
        page.wait((downloads / name).exists)
        assert (
            page.script("document.getElementById('copy').value") == (downloads / name).read_text()
        )
    analysis = analyse_study(folder, answer_files=[downloads / name])
    key = read_key(folder / KEY, manifest.study)
    levels = [0] * 5
    shown = assignment(codes[1], manifest.questions)
    for item, choice in zip(shown, (1, 4, 3, 5), strict=True):
        levels[(choice if key.images[item.left] == "a" else 6 - choice) - 1] += 1
    assert analysis.overall.levels == tuple(levels)
    assert analysis.collection.refused == ()
