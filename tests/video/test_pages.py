"""Videos of pages, with a stand-in for yt-dlp and a server on this machine."""

from __future__ import annotations

import functools
import http.server
import json
import re
import sys
import threading
import types
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from clips import MEDIA
from typer.testing import CliRunner

from videox2l import SettingsError, VideoError
from videox2l.cli.app import app
from videox2l.video.files import content_hash
from videox2l.video.pages import download_page, is_page

NASA = MEDIA / "nasa_13013.mp4"


class Server(http.server.ThreadingHTTPServer):
    """Serves a folder, and counts what was asked for."""

    def __init__(self, folder):
        self.asked = asked = []

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, *_):
                asked.append(self.path)

        super().__init__(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
        self.url = f"http://127.0.0.1:{self.server_port}"


@pytest.fixture
def web(tmp_path):
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "nasa.mp4").write_bytes(NASA.read_bytes())
    video = "<video src='nasa.mp4'></video>"
    (folder / "talk").write_text(f"<title>100% of a talk</title>{video}")
    (folder / "two").write_text(f"<title>Two</title>{video}{video}")
    (folder / "live").write_text(f"<title>Live</title><b>live</b>{video}")
    (folder / "words").write_text("<title>Words</title>")
    server = Server(folder)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield server
    server.shutdown()
    server.server_close()
    thread.join()


class DownloadError(Exception):
    pass


class YoutubeDL:
    """What the package uses of yt_dlp, as that behaves: a page, the videos in it, a file for each."""

    def __init__(self, options):
        assert options["noplaylist"]
        assert options["quiet"]
        self.options = options

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def extract_info(self, url, download):
        try:
            text = urllib.request.urlopen(url).read().decode()
        except urllib.error.HTTPError as error:
            raise DownloadError(f"\x1b[0;31mERROR:\x1b[0m [generic] {error.code}\nmore of it") from None
        sources, title = re.findall("src='(.*?)'", text), re.findall("<title>(.*?)<", text)[0]
        if not sources:
            raise DownloadError(f"ERROR: Unsupported URL: {url}")
        entries = [{"title": title, "id": f"{n}", "ext": "mp4"} for n, _ in enumerate(sources)]
        if download:
            assert self.options["format"].startswith("best[ext=mp4]")
            wanted = entries[: int(self.options["playlist_items"])]
            for entry, source in zip(wanted, sources, strict=False):
                template = self.options["outtmpl"]["default"].replace(".100B", "s").replace(".40B", "s")
                path = Path(template % entry)
                path.write_bytes(urllib.request.urlopen(url.rsplit("/", 1)[0] + "/" + source).read())
                entry["requested_downloads"] = [{"filepath": str(path)}]
        if len(entries) > 1:
            return {"_type": "playlist", "entries": iter(entries)}
        return {**entries[0], "is_live": "<b>live" in text}


@pytest.fixture
def yt_dlp(monkeypatch):
    module = types.ModuleType("yt_dlp")
    module.utils = types.ModuleType("yt_dlp.utils")
    module.utils.DownloadError, module.YoutubeDL = DownloadError, YoutubeDL
    monkeypatch.setitem(sys.modules, "yt_dlp", module)
    monkeypatch.setitem(sys.modules, "yt_dlp.utils", module.utils)


@pytest.mark.usefixtures("yt_dlp")
def test_a_page_is_downloaded_once_under_its_title(web, tmp_path):
    path = download_page(f"{web.url}/talk", tmp_path / "50%")
    assert path.name == "100% of a talk [0].mp4"
    assert content_hash(path) == content_hash(NASA)
    asked = len(web.asked)
    assert download_page(f"{web.url}/talk", tmp_path / "50%") == path
    assert len(web.asked) == asked
    path.unlink()  # a file that is gone is fetched again
    assert download_page(f"{web.url}/talk", tmp_path / "50%").is_file()
    assert len(web.asked) > asked


@pytest.mark.usefixtures("yt_dlp")
@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("two", "/two' names 2 videos: give the address of one of them"),
        ("live", "/live' is live: wait until it is over, or .* --follow"),
        ("words", r"no video can be downloaded from '.*/words': Unsupported URL: http.*/words$"),
        ("nowhere", r"no video can be downloaded from '.*/nowhere': \[generic\] 404$"),
    ],
)
def test_pages_that_are_not_one_video_are_refused_before_a_download(web, tmp_path, page, message):
    with pytest.raises(VideoError, match=message):
        download_page(f"{web.url}/{page}", tmp_path / "cache")
    assert "/nasa.mp4" not in web.asked
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_without_yt_dlp_the_cure_is_named(web, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "yt_dlp", None)  # as if it were not installed
    with pytest.raises(SettingsError, match=r"/talk' is no local file: with yt-dlp \(pip install yt-dlp\)"):
        download_page(f"{web.url}/talk", tmp_path)
    for command in (["ingest", f"{web.url}/talk", tmp_path / "a.x2l"], ["check", f"{web.url}/talk"]):
        done = CliRunner().invoke(app, [str(word) for word in command])
        assert done.exit_code == 2
        assert done.stderr.startswith("error: 'http://127.0.0.1")
        assert len(done.stderr.splitlines()) == 1
    assert web.asked == []


@pytest.mark.usefixtures("yt_dlp")
def test_a_page_is_ingested_and_checked(web, tmp_path, monkeypatch):
    monkeypatch.setenv("VIDEOX2L_CACHE", str(tmp_path / "cache"))
    words = ["ingest", f"{web.url}/talk", str(tmp_path / "a.x2l"), "--json"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    manifest = json.loads(done.stdout)["manifest"]
    assert (manifest["source"], manifest["sha256"]) == ("100% of a talk [0].mp4", content_hash(NASA))
    assert CliRunner().invoke(app, words).exit_code == 0  # the same file again: the memory is there
    done = CliRunner().invoke(app, ["check", f"{web.url}/talk"])
    assert done.exit_code == 0
    assert done.stdout.startswith(f"downloaded: {tmp_path / 'cache'}")
    assert web.asked.count("/nasa.mp4") == 1


def test_only_addresses_of_the_web_are_pages():
    assert is_page("https://example.org/talk")
    assert not any(map(is_page, ["talk.mp4", "s3://a/b", "rtsp://camera", "https", "file:///etc/passwd"]))
