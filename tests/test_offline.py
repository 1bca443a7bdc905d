"""Models by names that nobody can look up: one line, from every place that takes one, without a second try."""

from __future__ import annotations

import socket
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from videox2l import ModelError, VideoX2L
from videox2l.engine import hub
from videox2l.evaluate.film_model import load_film_model
from videox2l.select.embedding import DualEncoder
from videox2l.video.speech import transcriber_of


class Recorder:
    """Stands for faster_whisper.WhisperModel where the hub cannot be reached."""

    asked: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, name: str, **options: Any) -> None:
        Recorder.asked = options
        raise OSError(f"no snapshot of {name}.\nMore lines,\nthat nobody wants.")


@pytest.fixture
def unreachable(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Any]:
    """A hub whose address nobody listens at; the connections that were tried."""
    tried: list[Any] = []
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    real = socket.socket.connect

    def connect(self: socket.socket, address: Any) -> None:
        tried.append(address)
        real(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setitem(sys.modules, "faster_whisper", types.SimpleNamespace(WhisperModel=Recorder))
    hub.online.cache_clear()
    yield tried
    hub.online.cache_clear()


PLACES: dict[str, Callable[[str], object]] = {
    "model": VideoX2L.from_pretrained,
    "embedder": DualEncoder.from_pretrained,
    "transcribe": lambda name: transcriber_of(name, "cpu", hub.online),
    "text decoder": load_film_model,
}


@pytest.mark.parametrize("place", PLACES)
def test_an_unknown_name_is_one_line_and_one_connection(place: str, unreachable: list[Any]) -> None:
    with pytest.raises(ModelError, match=r"owner/none.*cannot be reached") as caught:
        PLACES[place]("owner/none")
    assert len(str(caught.value).splitlines()) == 1
    assert len(unreachable) == 1
    if place == "transcribe":
        assert Recorder.asked["local_files_only"]


@pytest.mark.parametrize("name", ["./none", "too/many/parts/here", "a b", ""])
def test_an_embedder_that_is_no_hub_id(name: str, unreachable: list[Any]) -> None:
    with pytest.raises(ModelError) as caught:
        DualEncoder.from_pretrained(name)
    assert len(str(caught.value).splitlines()) == 1


def test_a_proxy_that_nobody_runs_is_offline(monkeypatch: pytest.MonkeyPatch, unreachable: list[Any]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as hub_itself, socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setattr(constants, "ENDPOINT", f"http://hub.invalid:{hub_itself.getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{free.getsockname()[1]}")
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{free.getsockname()[1]}")
        assert not hub.online()
        monkeypatch.setenv("http_proxy", f"127.0.0.1:{hub_itself.getsockname()[1]}")  # control: one that answers
        hub.online.cache_clear()
        assert hub.online()
