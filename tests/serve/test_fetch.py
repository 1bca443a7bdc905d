"""Downloads go to public addresses of allowed hosts, at every step, and end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from videox2l.serve.errors import APIError
from videox2l.serve.fetch import Fetcher, is_public

pytestmark = pytest.mark.slow

PUBLIC = "93.184.216.34"


def fetcher(answer, addresses=(PUBLIC,), hosts=("videos.example",), limit=1000):
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return answer(request)

    found = Fetcher(hosts, limit, resolve=lambda *_: list(addresses), transport=httpx.MockTransport(handle))
    return found, seen


def test_the_address_that_was_checked_is_connected_to(tmp_path: Path) -> None:
    found, seen = fetcher(lambda _: httpx.Response(200, content=iter([b"vid", b"eo"])))
    found.fetch("https://videos.example/a.mp4?x=1", tmp_path / "v")
    assert (tmp_path / "v").read_bytes() == b"video"
    assert str(seen[0].url) == f"https://{PUBLIC}/a.mp4?x=1"
    assert seen[0].headers["host"] == "videos.example"
    assert seen[0].extensions["sni_hostname"] == "videos.example"


@pytest.mark.parametrize(
    "address",
    ["127.0.0.1", "10.1.2.3", "192.168.1.1", "169.254.169.254", "100.64.0.1", "0.0.0.0", "::1", "fe80::1", "fd00::1",
     "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1", "not an address"],
)  # fmt: skip
def test_addresses_that_are_not_public_are_refused(address: str, tmp_path: Path) -> None:
    assert not is_public(address)
    found, seen = fetcher(lambda _: httpx.Response(200), addresses=(PUBLIC, address))
    with pytest.raises(APIError, match="not public"):
        found.fetch("https://videos.example/a.mp4", tmp_path / "v")
    assert not seen


@pytest.mark.parametrize(
    ("target", "status"),
    [
        ("https://169.254.169.254/latest", 403),
        ("http://videos.example/", 400),
        ("https://other.example/", 403),
        ("file:///etc", 400),
    ],
)
def test_redirects_are_checked_like_the_first_address(target: str, status: int, tmp_path: Path) -> None:
    found, seen = fetcher(lambda _: httpx.Response(302, headers={"location": target}))
    with pytest.raises(APIError) as caught:
        found.fetch("https://videos.example/a.mp4", tmp_path / "v")
    assert caught.value.status == status
    assert len(seen) == 1


def test_endless_redirects_and_downloads_end(tmp_path: Path) -> None:
    found, seen = fetcher(lambda _: httpx.Response(302, headers={"location": "/again"}))
    with pytest.raises(APIError, match="redirects more than"):
        found.fetch("https://videos.example/a.mp4", tmp_path / "v")
    assert len(seen) == 6
    found, _ = fetcher(lambda _: httpx.Response(200, content=iter([bytes(1001)])))
    with pytest.raises(APIError, match="more than 1000 bytes"):
        found.fetch("https://videos.example/a.mp4", tmp_path / "v")


def test_a_name_whose_address_changes_is_refused_when_it_does(tmp_path: Path) -> None:
    addresses = iter([[PUBLIC], ["127.0.0.1"]])
    transport = httpx.MockTransport(lambda _: httpx.Response(302, headers={"location": "/next"}))
    found = Fetcher(["videos.example"], 1000, resolve=lambda *_: next(addresses), transport=transport)
    with pytest.raises(APIError, match="not public"):
        found.fetch("https://videos.example/a.mp4", tmp_path / "v")


def test_a_server_that_sends_a_byte_at_a_time_is_given_up(tmp_path: Path) -> None:
    sent = []

    def drip() -> Iterator[bytes]:
        for _ in range(1000):
            sent.append(time.sleep(0.01))
            yield b"v"

    found, _ = fetcher(lambda _: httpx.Response(200, content=drip()))
    found.seconds = 0.05
    with pytest.raises(APIError, match="fetching took longer"):
        found.fetch("https://videos.example/a.mp4", tmp_path / "v")
    assert len(sent) < 1000
