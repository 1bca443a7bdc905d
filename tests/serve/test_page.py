"""The page in a real browser."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.serve.conftest import Served

pytestmark = pytest.mark.slow

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-sync")


@pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page is not tried")
@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_upload_ask_seek_pin_and_ask_again(served: Served, clip: Path, width: int, height: int) -> None:
    playwright = pytest.importorskip("playwright.sync_api")
    problems: list[str] = []
    with playwright.sync_playwright() as p:
        browser = p.chromium.launch(executable_path=BROWSER, args=[f"--{flag}" for flag in QUIET])
        page = browser.new_page(viewport={"width": width, "height": height})
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.goto(served.url)
        page.set_input_files("#file", str(clip))
        page.locator("#library button[aria-current=true]").wait_for()
        page.locator("#timeline button").nth(7).wait_for()
        page.locator("#library progress").wait_for(state="detached")
        page.fill("#question", "which digit does the blue cross carry ?")
        page.press("#question", "Enter")
        page.locator(".chip").first.wait_for()
        assert page.locator("article .answer").inner_text().strip()
        page.locator(".chip").first.click()
        assert "&t=" in page.url
        page.locator("#timeline button:not(.fine)").first.click()
        page.click("#pin")
        assert page.locator("#timeline button.pinned").count() == 1
        page.click("#again")
        page.locator("article:nth-of-type(2) .chip").first.wait_for()
        assert page.locator("#timeline button.pinned.fine").count() == 1
        page.reload()
        page.locator("article").first.wait_for()  # the dialogue is still there
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("#problem").is_hidden()
        browser.close()
    assert problems == []
