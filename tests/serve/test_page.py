"""The page in a real browser."""

from __future__ import annotations

import csv
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serve.conftest import Served, start

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = ("no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-background-networking", "disable-sync")
QUESTION = "which digit does the blue cross carry ?"
UNKNOWN = "what digit appears with the red star ?"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(BROWSER is None, reason="no chromium on this machine: the page is not tried"),
]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with pytest.importorskip("playwright.sync_api").sync_playwright() as playwright:
        made = playwright.chromium.launch(executable_path=BROWSER, args=[f"--{flag}" for flag in QUIET])
        yield made
        made.close()


class Pages:
    """Opens pages; `problems` are the errors that their scripts raised."""

    def __init__(self, browser: Any) -> None:
        self._browser, self.problems = browser, list[str]()

    def __call__(self, width: int = 1280, height: int = 900, **more: Any) -> Any:
        page = self._browser.new_page(viewport={"width": width, "height": height}, **more)
        page.set_default_timeout(20_000)
        page.on("pageerror", lambda error: self.problems.append(str(error)))
        return page


@pytest.fixture
def pages(browser: Any) -> Iterator[Pages]:
    made = Pages(browser)
    yield made
    for context in browser.contexts:
        context.close()
    assert made.problems == []


@pytest.fixture(scope="module")
def second(served: Served, demo: str, clip: Path) -> str:
    """A memory beside the one of the demo video, with the same settings."""
    made = httpx.post(f"{served.url}/v1/memories", json={"url": clip.as_uri()}).json()["id"]
    assert served.memory(made)["state"] == "complete"
    return str(made)


def ask(page: Any, question: str = QUESTION, number: int = 1) -> Any:
    """Ask on a page; return the card of the answer, which is the one of this number."""
    page.fill("#question", question)
    page.press("#question", "Enter")
    card = page.locator(f"article:nth-of-type({number})")
    card.locator(".cost", has_text="in detail").wait_for()
    return card


def tick(page: Any, served: Served, first: str, other: str) -> None:
    page.goto(f"{served.url}/#m={first}")
    page.locator("#timeline button").nth(3).wait_for()
    page.locator(f"[data-key='ask {other}']").check()
    page.locator("#about", has_text="About 2 videos: demo.mp4, clip.mp4.").wait_for()


@pytest.mark.parametrize(("width", "height"), [(1280, 900), (390, 844)])
def test_upload_ask_seek_pin_and_ask_again(served: Served, clip: Path, pages: Pages, width: int, height: int) -> None:
    page = pages(width, height)
    page.goto(served.url)
    page.set_input_files("#file", str(clip))
    page.locator("#library button[aria-current=true]", has_text="clip.mp4").wait_for()
    page.locator("#timeline button").nth(7).wait_for()
    page.locator("#library progress").wait_for(state="detached")
    card = ask(page)
    assert card.locator(".answer").inner_text().strip()
    chips = card.locator(".chip").count()
    told = card.locator(".cost").inner_text()
    assert re.fullmatch(rf"read {chips} of 8 moments in detail; [\d.]+ % of the video's tokens; [\d.]+ s; .*", told)
    card.locator(".chip").first.click()
    assert "&t=" in page.url
    page.locator("#timeline button:not(.fine)").first.click()
    page.click("#pin")
    assert page.locator("#timeline button.pinned").count() == 1
    page.click("#again")
    page.locator("article:nth-of-type(2) .chip").first.wait_for()
    assert page.locator("#timeline button.pinned.fine").count() == 1
    page.click("#why")
    assert page.locator("article:nth-of-type(3) .why li").first.inner_text().endswith("re-loaded (pinned)")
    page.reload()
    page.locator("article .chip").first.wait_for()  # the dialogue is still there, with its moments
    assert page.locator("article").count() == 1  # what was asked again took the place of what was there
    assert page.locator("#timeline button.fine").count() == chips + 1
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("#problem").is_hidden()


def test_several_videos_at_once(served: Served, demo: str, second: str, pages: Pages) -> None:
    page, sent = pages(), list[dict[str, Any]]()
    page.on("request", lambda request: request.post_data_json and sent.append(request.post_data_json))
    tick(page, served, demo, second)
    assert "pins" not in page.locator("#hint").inner_text()
    assert page.locator("#pin").is_hidden()  # times would be those of each video
    card = ask(page)
    asked = next(body for body in sent if "x2l" in body)["x2l"]
    truth = httpx.post(
        f"{served.url}/v1/chat/completions", json={"messages": [{"role": "user", "content": QUESTION}], "x2l": asked}
    ).json()
    assert asked["memories"] == [demo, second]
    assert card.locator(".answer").inner_text() == truth["choices"][0]["message"]["content"]
    wanted = [moment for moment in truth["x2l"]["answer"]["evidence"] if moment["reloaded"]]
    names = {demo: "demo.mp4", second: "clip.mp4"}
    assert [chip.split()[0] for chip in card.locator(".chip").all_inner_texts()] == [names[m["memory"]] for m in wanted]
    assert "of the videos' tokens" in card.locator(".cost").inner_text()
    place = next(i for i, moment in enumerate(wanted) if moment["memory"] == second)
    card.locator(".chip").nth(place).click()  # of the other video: player and time line are that one's
    page.locator("#title", has_text="clip.mp4").wait_for()
    page.locator(f"#timeline button[data-chunk='{wanted[place]['chunk']}'][aria-pressed=true]").wait_for()
    assert page.locator("#timeline button").count() == 8
    assert page.locator("#timeline button.fine").count() == sum(moment["memory"] == second for moment in wanted)
    page.wait_for_function(
        f"Math.abs(player.currentTime - {wanted[place]['start']}) < 0.01 && player.currentSrc.includes('{second}')"
    )
    assert page.url.endswith(f"#m={second}&t={wanted[place]['start']:.0f}&also={demo}")
    ask(page, "what is in the video ?", 2)  # a dialogue
    assert [message["role"] for message in sent[-1]["messages"]] == ["user", "assistant", "user"]
    page.reload()
    page.locator("#about", has_text="About 2 videos: demo.mp4, clip.mp4.").wait_for()
    assert page.locator("article .chip b").count() >= 2
    page.click("#alone")
    page.locator("#about").wait_for(state="hidden")
    assert page.locator("article").count() == 0  # another dialogue
    assert page.locator("#library input:checked").count() == 1
    page.locator("#library input:checked").click()
    assert page.locator("#library input:checked").count() == 1  # one is always asked about


def test_choices_and_what_is_not_shown(served: Served, demo: str, pages: Pages) -> None:
    page = pages()
    page.goto(f"{served.url}/#m={demo}")
    page.click("#more summary")
    page.fill("#choices", "2, 6, 9")
    card = ask(page)
    texts = [row.split("\n") for row in card.locator(".choices li").all_inner_texts()]
    assert [text for text, _ in texts] == ["2", "6", "9"]
    assert card.locator(".choices .best").inner_text().startswith(card.locator(".answer").inner_text())
    wide = card.locator(".bar").evaluate_all("bars => bars.map((bar) => bar.getBoundingClientRect().width)")
    best = [row.startswith(card.locator(".answer").inner_text()) for row, _ in texts].index(True)
    assert max(wide) == wide[best]
    page.fill("#choices", "")
    page.fill("#abstain", "0.00001")
    card = ask(page, UNKNOWN, 2)
    assert card.locator(".answer").inner_text() == "The video does not show this."
    assert "Too unsure to be an answer" in card.locator(".aside").inner_text()
    assert re.search(r"[\d.]+ % sure of each token$", card.locator(".cost").inner_text())
    page.fill("#abstain", "")
    assert ask(page, UNKNOWN, 3).locator(".answer").inner_text() != "The video does not show this."
    page.fill("#choices", "2")
    page.fill("#question", QUESTION)
    page.click("#send")
    page.locator("#problem", has_text="choices must be two or more different texts").wait_for()


def test_what_is_taken_away(served: Served, demo: str, second: str, pages: Pages) -> None:
    page = pages()

    def taken(kind: str) -> tuple[str, str]:
        with page.expect_download() as coming:
            page.click(f"#take [data-format={kind}]")
        return coming.value.suggested_filename, coming.value.path().read_text(encoding="utf-8")

    page.goto(f"{served.url}/#m={demo}")
    assert page.locator("#take").is_hidden()
    chips = ask(page).locator(".chip").count()
    name, report = taken("html")
    assert (name, report.count("<img"), QUESTION in report) == ("demo.html", chips, True)
    assert "<h1>demo.mp4</h1>" in report
    assert f"href='{served.url}/#m={demo}&amp;t=" in report
    assert not re.search(r"src='(?!data:)", report)
    name, srt = taken("srt")
    assert (name, srt.count(" --> ")) == ("demo.srt", chips)
    tick(page, served, demo, second)
    chips = ask(page).locator(".chip").count()
    name, report = taken("html")
    assert (name, report.count("<img"), report.count("<svg")) == ("videos.html", chips, 2)
    for memory in (demo, second):
        assert f"href='{served.url}/#m={memory}&amp;t=" in report
    rows = list(csv.DictReader(taken("csv")[1].splitlines()))
    assert {row["video"] for row in rows} == {"demo.mp4", "clip.mp4"}
    assert taken("srt")[1].count(" --> ") == sum(row["video"] == "demo.mp4" for row in rows)  # of the one in the player


def test_holes_and_what_is_not_read(served: Served, demo: str, pages: Pages) -> None:
    """450 moments of an hour, with holes in the middle and at the end of what was read, on a narrow screen."""
    starts = [8 * i + (120 if i >= 60 else 0) for i in range(450)]
    chunks = [{"chunk": i, "start": t, "end": t + 8, "frames": 8, "tokens": 9} for i, t in enumerate(starts)]
    end = chunks[-1]["end"]
    told = {
        "id": demo,
        "duration": end + 900,
        "holes": [[480, 600], [end, end + 60]],
        "complete": False,
        "chunks": chunks,
    }
    page = pages(390, 844)
    page.route("**/timeline", lambda route: route.fulfill(json=told))
    page.goto(f"{served.url}/#m={demo}&t=3000")
    page.locator("#timeline button").nth(449).wait_for()
    assert page.locator("#when").inner_text() == "50:00 to 50:08"
    labels = page.locator("#timeline span").evaluate_all("spans => spans.map((span) => span.ariaLabel)")
    assert labels == [
        "nothing could be read from 08:00 to 10:00",
        "nothing could be read from 1:02:00 to 1:03:00",
        "not read from 1:03:00 to 1:17:00",
    ]
    legend = ["gist", "read in detail", "pinned", "excluded", "nothing there", "not read"]
    assert page.locator("#legend > span").all_inner_texts() == legend
    sizes = page.evaluate("[timeline.scrollWidth - timeline.clientWidth, document.documentElement.scrollWidth]")
    assert sizes == [0, 390]


def test_links_to_moments_and_keys(served: Served, demo: str, pages: Pages) -> None:
    page = pages()
    page.goto(f"{served.url}/#m={demo}&t=75")
    page.locator("#when", has_text="01:12 to 01:20").wait_for()
    page.wait_for_function("player.currentTime === 75")
    page.evaluate("location.hash = '#m=' + new URLSearchParams(location.hash.slice(1)).get('m') + '&t=20'")
    page.locator("#when", has_text="00:16 to 00:24").wait_for()
    assert page.locator("#timeline button[tabindex='0']").count() == 1  # not a stop for each moment
    page.locator("#timeline button[tabindex='0']").focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("Enter")
    last = page.locator("#timeline button").count() - 1
    page.locator(f"#timeline button[data-chunk='{last - 1}'][aria-pressed=true]").wait_for()
    page.keyboard.press("p")
    assert page.locator("#timeline button.pinned").get_attribute("data-chunk") == str(last - 1)
    page.keyboard.press("x")
    assert page.locator("#timeline button.pinned").count() == 0
    assert "excluded" in page.locator("#timeline button.excluded").get_attribute("aria-label")
    page.locator("#earlier").click()
    page.locator(f"#timeline button[data-chunk='{last - 2}'][aria-pressed=true]").wait_for()
    page.keyboard.press("/")
    page.keyboard.type("px?")  # words, where a field has the focus
    assert page.input_value("#question") == "px?"
    assert page.locator("#timeline button.pinned").count() == 0
    page.goto("about:blank")
    page.goto(f"{served.url}/#m=nothing")
    page.locator("#problem", has_text="there is no memory 'nothing'").wait_for()


def broken(reply: dict[str, Any] | None) -> Any:
    """Return a handler that gives this reply, or none."""
    return lambda route: route.abort() if reply is None else route.fulfill(**reply)


def test_errors_are_words(served: Served, demo: str, pages: Pages) -> None:
    page = pages()
    page.goto(f"{served.url}/#m={demo}")
    page.locator("#timeline button").nth(3).wait_for()
    answers = "**/v1/chat/completions"
    cut = 'data: {"choices": [{"delta": {"content": "9"}}]}\n\n'
    full = {"error": {"message": "64 questions wait already, which is the limit: try again in 3 s"}}
    for number, (reply, told) in enumerate(
        [
            (None, "The server cannot be reached"),
            ({"status": 429, "json": full}, "try again in 3 s"),
            ({"body": cut, "content_type": "text/event-stream"}, "The connection broke before the answer was there"),
            ({"status": 502, "body": "<h1>Bad Gateway</h1>"}, "The server answered 502."),
        ],
        1,
    ):
        page.route(answers, broken(reply))
        page.fill("#question", QUESTION)
        page.click("#send")
        page.locator("#problem", has_text=told).wait_for()
        assert page.locator(f"article:nth-of-type({number}) .cost").inner_text() == "no answer"
        assert page.input_value("#question") == QUESTION  # to be sent again
        page.unroute(answers)
        page.click("#problem button")
    page.click("#send")
    page.locator("article .chip").first.wait_for()
    assert page.locator("#problem").is_hidden()
    page.route("**/video", lambda route: route.fulfill(body=b"no video", content_type="video/mp4"))
    page.reload()
    page.locator("#novideo", has_text="This browser cannot play this video").wait_for()


def test_a_file_that_is_no_video(served: Served, demo: str, tmp_path: Path, pages: Pages) -> None:
    (tmp_path / "broken.mp4").write_bytes(b"this is no video" * 100)
    page = pages()
    page.goto(served.url)
    page.set_input_files("#file", str(tmp_path / "broken.mp4"))
    page.locator("#note", has_text="It could not be read: 'broken.mp4' is not a video that can be read").wait_for()
    assert page.locator("#ask").is_hidden()
    broken = page.locator("#library li", has_text="could not be read")
    assert broken.locator("input").is_disabled()
    page.locator(f"[data-key='ask {demo}']").click()  # what cannot be asked is not asked about with it
    page.locator("#title", has_text="demo.mp4").wait_for()
    assert page.locator("#about").is_hidden()
    assert page.locator("#ask").is_visible()
    name = page.evaluate("document.querySelector('#library [data-key^=ask]:disabled').dataset.key").split()[1]
    assert httpx.delete(f"{served.url}/v1/memories/{name}").json()["deleted"]


def test_an_answer_is_stopped(served: Served, demo: str, pages: Pages) -> None:
    page = pages()
    page.goto(f"{served.url}/#m={demo}")
    page.locator("#timeline button").nth(3).wait_for()
    page.route("**/v1/chat/completions", lambda route: None)  # never answered
    page.fill("#question", QUESTION)
    page.click("#send")
    page.locator("#send", has_text="Stop").click()
    page.locator("article .cost", has_text="stopped").wait_for()
    assert page.locator("#send").inner_text() == "Ask"
    assert page.locator("#problem").is_hidden()


def test_a_key_is_asked_for(tmp_path: Path, pages: Pages) -> None:
    from videox2l.serve.keys import add_key

    key = add_key(tmp_path / "keys", "anna:ask,ingest")
    server = start(tmp_path / "library", "--demo", "--api-key-file", str(tmp_path / "keys"))
    page = pages()
    page.goto(server.url)
    page.fill("#key", "wrong")
    page.click("#login button")
    page.locator("#problem", has_text="no valid API key").wait_for()
    page.fill("#key", key)
    page.click("#login button")
    page.locator("#model", has_text="model demo").wait_for()
    assert page.locator("#login").is_hidden()
    assert page.locator("#problem").is_hidden()
    assert key not in json.dumps(page.context.storage_state())
    server.stop()


CONTRAST = """
() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
  const parts = [0.2126, 0.7152, 0.0722];
  const light = (color) => parts.reduce((sum, part, i) => sum + part * linear(color[i] / 255), 0.05);
  const back = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const color = rgb(getComputedStyle(at).backgroundColor);
      if (color.length === 3 || color[3] === 1) return color;
    }
  };
  const found = { words: 99, bars: 99, edges: 99, unnamed: [] };
  const compare = (kind, text, behind) => {
    const [low, high] = [light(rgb(text)), light(back(behind))].sort((a, b) => a - b);
    found[kind] = Math.min(found[kind], high / low);
  };
  for (const element of document.querySelectorAll("body *")) {
    if (!element.checkVisibility() || element.matches("script, :disabled, .hidden")) continue;
    const style = getComputedStyle(element), text = element.textContent.trim();
    if ([...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim()))
      compare("words", style.color, element);
    if (element.matches("#timeline button")) compare("bars", style.backgroundColor, element.parentElement);
    if (element.matches("input:not([type=file], [type=checkbox])"))
      compare("edges", style.borderTopColor, element.parentElement);
    const named = element.ariaLabel || text || element.labels?.length || element.hasAttribute("aria-labelledby");
    if (element.matches("button, input, video, [role=group], section, aside") && !named)
      found.unnamed.push(element.outerHTML);
  }
  return found;
}
"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_contrast_and_names(served: Served, demo: str, second: str, pages: Pages, scheme: str) -> None:
    """By the formula of WCAG 2: words 4.5, what carries meaning 3; all that can be used has a name."""
    page = pages(color_scheme=scheme)
    tick(page, served, demo, second)
    ask(page).locator(".chip").first.click()
    page.click("#more summary")
    found = page.evaluate(CONTRAST)
    assert found["words"] >= 4.5
    assert min(found["bars"], found["edges"]) >= 3
    assert found["unnamed"] == []
    page.evaluate("document.querySelector('h2').style.color = getComputedStyle(document.body).backgroundColor")
    page.evaluate("document.querySelector('#earlier').removeAttribute('aria-label')")
    page.evaluate("document.querySelector('#earlier').textContent = ''")
    worse = page.evaluate(CONTRAST)
    assert worse["words"] < 4.5
    assert len(worse["unnamed"]) == 1
