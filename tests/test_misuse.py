"""Wrong types and values for every public function: an error of ours in one line, never one from inside."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from videox2l import ArraySource, Escalation, Memory, VideoX2L, X2LError
from videox2l.options import AskKeywords, IngestKeywords, LoadKeywords, LoadOptions

WRONG: list[Any] = [
    None, True, -1, 10**9, 2**70, 10**400, -0.5, float("nan"), float("inf"), "", "  ", "nil", "a\0b", "\ud800", b"x",
    [], [1], [None], ["x"], ("a", "b"), {}, {"a": 1}, object(), object, np.int64(3), np.zeros(3), torch.tensor(3),
    lambda: 1, 1j,
]  # fmt: skip


def source() -> ArraySource:
    return ArraySource(np.full((4, 32, 32, 3), 90, np.uint8), fps=1.0)


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_pretrained("demo")


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L) -> Memory:
    return x2l.ingest(source(), chunk_frames=4)


def ours(call: Callable[[Any], object], skip: Callable[[Any], bool] = lambda _: False) -> None:
    for value in WRONG:
        if skip(value):
            continue
        message = "-"
        try:
            call(value)
        except X2LError as error:
            message = str(error)
        except Exception as error:
            raise AssertionError(f"{value!r:.60}: {type(error).__name__}: {error}") from error
        assert len(message.splitlines()) == 1, repr(value)[:80]


@pytest.mark.parametrize("name", sorted(AskKeywords.__annotations__))
def test_options_of_ask(x2l: VideoX2L, memory: Memory, name: str) -> None:
    ours(lambda value: x2l.ask(memory, "what ?", **{"max_new_tokens": 2, name: value}))


def named(value: Any) -> bool:
    """Whether a text would be looked up on a hub."""
    return isinstance(value, str)


@pytest.mark.parametrize("name", sorted(IngestKeywords.__annotations__))
def test_options_of_ingest(x2l: VideoX2L, name: str) -> None:
    ours(
        lambda value: x2l.ingest(source(), **{name: value}),
        named if name in ("embedder", "transcribe") else lambda _: False,
    )


@pytest.mark.parametrize("name", sorted(LoadKeywords.__annotations__))
def test_options_of_loading(name: str) -> None:
    """Made here; a model is loaded only where the value itself is looked at then."""
    ours(lambda value: LoadOptions(**{name: value}))
    if name == "device":
        ours(lambda value: VideoX2L.from_pretrained("demo", device=value), lambda value: value is None)


def test_arguments(x2l: VideoX2L, memory: Memory, tmp_path: Path) -> None:
    two = {"max_new_tokens": 2}
    calls: dict[str, Callable[[Any], object]] = {
        "video": x2l.ingest,
        "options": lambda value: x2l.ingest(source(), value),
        "progress": lambda value: x2l.ingest(source(), progress=value if not callable(value) else 3),
        "appended to": lambda value: x2l.append(value, source()),
        "appended": lambda value: x2l.append(memory, value),
        "fps": lambda value: x2l.append(memory, tmp_path / "none.mp4", fps=value),
        "sampling": lambda value: x2l.append(memory, tmp_path / "none.mp4", sampling=value),
        "asked": lambda value: x2l.ask(value, "what ?"),
        "question": lambda value: x2l.ask(memory, value, **two),
        "history": lambda value: x2l.ask(memory, "what ?", history=value, **two),
        "on_text": lambda value: x2l.ask(memory, "what ?", on_text=value if not callable(value) else 3, **two),
        "questions": lambda value: x2l.ask_many(value, **two),
        "pair": lambda value: x2l.ask_many([(value, value)], **two),
        "batch": lambda value: x2l.ask_many([(memory, "what ?")], batch=value, **two),
        "library": lambda value: x2l.ask_library(value, "what ?"),
        "searching": lambda value: x2l.ask_library(tmp_path, "what ?", searching=value),
        "library's question": lambda value: x2l.ask_library(tmp_path, value),
        "chat": x2l.chat,
        "earlier": lambda value: x2l.chat(memory, earlier=value),
        "chat's question": lambda value: x2l.chat(memory).ask(value, **two),
        "names": lambda value: x2l.open([memory, memory], value),
        "loaded": Memory.load,
        "escalation": Escalation,
        "why": x2l.ask(memory, "what ?", **two).why,
    }
    for name, call in calls.items():
        with contextlib.suppress(X2LError):
            call(None)
        try:
            ours(call)
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error
    for name, call in {
        "model": VideoX2L.from_pretrained,
        "store": lambda value: x2l.ingest(source(), store=value),
        "saved": memory.save,
    }.items():  # other texts are names of hubs and folders
        try:
            ours(call, lambda value: isinstance(value, str) and value not in ("", "a\0b", "\ud800"))
        except AssertionError as error:
            raise AssertionError(f"{name}: {error}") from error


def test_moments_of_why_are_times(x2l: VideoX2L, memory: Memory) -> None:
    answer = x2l.ask(memory, "what ?", max_new_tokens=2)
    assert answer.why("00:01") == answer.why(1.0)


def test_append_takes_the_path_of_a_memory(x2l: VideoX2L, tmp_path: Path) -> None:
    x2l.ingest(source(), store=tmp_path / "one")
    grown = x2l.append(str(tmp_path / "one"), source())
    assert len(grown) == len(Memory.load(tmp_path / "one")) == 2
