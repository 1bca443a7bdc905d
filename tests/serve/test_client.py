"""The command line as the client of a server: it says what the local one says, without a model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from tests.serve.conftest import Served
from videox2l.cli.app import app

pytestmark = pytest.mark.slow

QUESTION = "which digit does the blue cross carry ?"
_ALONE = """
import sys
from videox2l.cli.app import app
app(sys.argv[1:], standalone_mode=False)
heavy = {"torch", "transformers"} & set(sys.modules)
assert not heavy, heavy
"""


def x2l(*args: object, env: dict[str, str] | None = None) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args], env=env)


def timeless(text: str) -> str:
    """Without the seconds that were measured."""
    return re.sub(r"\d+\.\d\d( s\b|\))|(select|reload|prefill|decode) \d+\.\d\d", "_", text)


def plain(value: Any) -> Any:
    """JSON without the seconds that were measured."""
    if isinstance(value, dict):
        return {key: plain(part) for key, part in value.items() if not (key == "seconds" and isinstance(part, dict))}
    return [plain(part) for part in value] if isinstance(value, list) else value


def library(served: Served) -> set[str]:
    return {memory["id"] for memory in httpx.get(f"{served.url}/v1/memories").json()["data"]}


@pytest.mark.parametrize("more", [(), ("-v", "--why", "0:10", "--reload", 1), ("--escalate", "-v")])
def test_it_prints_what_the_local_command_prints(served: Served, demo: str, more: tuple[object, ...]) -> None:
    args = (QUESTION, "what is in the video ?", "--max-new-tokens", 6, *more)
    local = x2l("ask", served.library / demo, *args)
    remote = x2l("--server", served.url, "ask", demo, *args)
    assert (local.exit_code, remote.exit_code) == (0, 0), remote.output
    assert timeless(remote.stdout) == timeless(local.stdout)
    assert "re-loaded" in remote.stdout
    local = x2l("ask", served.library / demo, *args, "--json")
    remote = x2l("ask", f"memory:{demo}", *args, "--json", env={"X2L_SERVER": served.url})
    assert plain(json.loads(remote.stdout)) == plain(json.loads(local.stdout))


def test_neither_torch_nor_transformers_is_imported(served: Served, demo: str, clip: Path) -> None:
    for command in (["ask", demo, QUESTION], ["memory", "ls"], ["ingest", str(clip)]):
        args = [sys.executable, "-c", _ALONE, "--server", served.url, *command]
        done = subprocess.run(args, capture_output=True, text=True, env=os.environ, timeout=120, check=False)
        assert (done.returncode, done.stderr) == (0, "")
    local = [sys.executable, "-c", _ALONE, "ask", str(served.library / demo), QUESTION]
    assert (
        "AssertionError: {'t" in subprocess.run(local, capture_output=True, text=True, timeout=120, check=False).stderr
    )


def test_a_video_is_sent_once_and_ingested_with_the_options(served: Served, clip: Path) -> None:
    options = ("--fps", 2, "--ratios", "2,16", "--chunk-frames", 4)
    before = library(served)
    first = x2l("--server", served.url, "ingest", clip, *options, "--json")
    assert first.exit_code == 0, first.output
    made = json.loads(first.stdout)
    assert made["levels"] == {"L": 2.0, "H": 16.0}
    assert made["complete"]
    (name,) = library(served) - before
    files = httpx.get(f"{served.url}/v1/files").json()["data"]
    asked = x2l("--server", served.url, "ask", clip, QUESTION, *options, "--json")
    assert json.loads(asked.stdout)["memory"] == made
    assert httpx.get(f"{served.url}/v1/files").json()["data"] == files
    # a question to "all" takes memories of one kind only, and says which two differ
    body = {"messages": [{"role": "user", "content": QUESTION}], "x2l": {"memories": "all"}}
    mixed = httpx.post(f"{served.url}/v1/chat/completions", json=body, timeout=60)
    assert mixed.status_code == 400
    assert name in mixed.text
    assert x2l("--server", served.url, "memory", "rm", name).exit_code == 0
    listed = json.loads(x2l("--server", served.url, "memory", "ls", "--json").stdout)
    local = json.loads(x2l("memory", "ls", served.library, "--json").stdout)
    assert [{**entry, "path": Path(entry["path"]).name} for entry in local] == listed
    text = x2l("memory", "ls", env={"X2L_SERVER": served.url}).stdout
    assert text == x2l("memory", "ls", served.library).stdout


@pytest.mark.parametrize(
    ("args", "status", "told"),
    [
        (("ask", "nothing", QUESTION), 1, "there is no memory 'nothing'"),
        (("ask", "DEMO", QUESTION, "--selector", "oracle"), 2, "oracle"),
        (("ask", "DEMO", QUESTION, "--fps", 3), 2, "fps: no effect"),
        (("ask", "DEMO", QUESTION, "--model", "gpt"), 1, "not served"),
        (("ask", "DEMO", QUESTION, "--device", "cpu"), 2, "--device: not with --server"),
        (("ask", "DEMO", QUESTION, "--save", "x"), 2, "--save: not with --server"),
        (("ask", "https://videos.example/a.mp4", QUESTION), 1, "--allow-hosts videos.example"),
        (("memory", "rm", "nothing"), 1, "there is no memory 'nothing'"),
    ],
)
def test_errors_are_one_line(served: Served, demo: str, args: tuple[object, ...], status: int, told: str) -> None:
    done = x2l("--server", served.url, *(demo if arg == "DEMO" else arg for arg in args))
    assert (done.exit_code, done.stderr.count("\n")) == (status, 1), done.output
    assert told in done.stderr
    assert done.stderr.startswith("error: ")


def test_no_server_and_no_key(tmp_path: Path) -> None:
    done = x2l("--server", "http://127.0.0.1:9", "memory", "ls")
    assert (done.exit_code, done.stderr.count("\n")) == (1, 1)
    assert "cannot be reached" in done.stderr
    done = x2l("--server", "127.0.0.1", "memory", "ls")
    assert done.exit_code == 2
    done = x2l("--server", "http://127.0.0.1:9", "--api-key-file", tmp_path / "none", "memory", "ls")
    assert "cannot read a key" in done.stderr


def test_a_report_from_the_server(served: Served, demo: str, tmp_path: Path) -> None:
    """The page of the command line as a client; its moments are places on the server's page."""
    page = tmp_path / "a.html"
    args = ("--server", served.url, "ask", demo, QUESTION, "what is in the video ?", "--reload", 1, "--report", page)
    done = x2l(*args, "--json")
    assert done.exit_code == 0, done.output
    answers, text = json.loads(done.stdout)["answers"], page.read_text()
    moments = [moment for answer in answers for moment in answer["evidence"] if moment["reloaded"]]
    assert text.count("<h2>") == len(moments) == 2
    for moment in moments:
        assert f"<a href='{served.url}/#m={demo}&amp;t={moment['start']:.3f}'>" in text
    assert x2l(*args[:-1], tmp_path / "a.txt").exit_code == 2
    for wrong in ([{}], [{**answers[0], "evidence": [{**answers[0]["evidence"][0], "start": "<script>"}]}]):
        reply = httpx.post(f"{served.url}/v1/memories/{demo}/report", json={"answers": wrong})
        assert (reply.status_code, "<script>" in reply.text) == (400, False)


def test_reports_of_several_memories_and_lists(served: Served, demo: str, clip: Path) -> None:
    """All formats, of one memory and of several; what is no answer, or no memory of the client, is refused."""
    made = httpx.post(f"{served.url}/v1/memories", json={"url": clip.as_uri()}).json()["id"]
    assert served.memory(made)["state"] == "complete"
    told = [{"role": "user", "content": QUESTION}]
    both = {"messages": told, "x2l": {"memories": [demo, made], "detail": True}}
    ours = httpx.post(f"{served.url}/v1/chat/completions", json=both, timeout=60).json()["x2l"]
    assert (ours["memories"], ours["incomplete"], set(ours["covers"])) == ([demo, made], False, {demo, made})
    answer = ours["answer"]
    moments = [moment for moment in answer["evidence"] if moment["reloaded"]]
    assert {moment["memory"] for moment in moments} == {demo, made}

    def report(path: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{served.url}/v1/{path}", json={"answers": [answer], **body})

    html = report("report", memories=[demo, made])
    assert html.headers["content-disposition"] == 'attachment; filename="report.html"'
    assert "<h1>demo.mp4, clip.mp4</h1>" in html.text
    for moment in moments:
        assert f"{served.url}/#m={moment['memory']}&amp;t={moment['start']:.3f}'" in html.text
    table = report("report", memories=[demo, made], format="csv")
    assert table.headers["content-type"].startswith("text/csv")
    assert table.text.count("\n") == 1 + len(moments)
    here = [moment for moment in moments if moment["memory"] == made]
    for kind, marks in (
        ("srt", " --> "),
        ("vtt", " --> "),
        ("csv", "clip.mp4"),
        ("edl", "* COMMENT"),
        ("html", "<img"),
    ):
        assert report(f"memories/{made}/report", format=kind).text.count(marks) == len(here), kind
    assert report("report", memories=[made], format="srt").text.count(" --> ") == len(here)
    endless = {**answer, "evidence": [{**moments[0], "start": 1e400}]}
    for body, status, words in (
        ({"memories": [demo, made], "format": "srt"}, 400, "take .csv"),
        ({"memories": [demo, made], "format": "exe"}, 400, "format"),
        ({"memories": []}, 400, "memories"),
        ({"memories": [demo, "nothing"]}, 404, "there is no memory"),
        ({"memories": [demo, "../../etc"]}, 404, "there is no memory"),
        ({"memories": [demo, made], "answers": [{}]}, 400, "no answer"),
    ):
        reply = report("report", **body)  # type: ignore[arg-type]
        assert (reply.status_code, words in reply.text) == (status, True), reply.text
    data = json.dumps({"memories": [demo, made], "answers": [endless]})
    assert "Infinity" in data
    assert (
        httpx.post(f"{served.url}/v1/report", content=data, headers={"Content-Type": "application/json"}).status_code
        == 400
    )
