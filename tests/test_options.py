"""Options have one source: the classes, their keywords, and the flags of every command agree."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_type_hints

import pytest
import typer.main
from typer.testing import CliRunner

from videox2l.cli.app import app
from videox2l.errors import SettingsError
from videox2l.options import (
    AskKeywords,
    AskOptions,
    IngestKeywords,
    IngestOptions,
    LoadKeywords,
    LoadOptions,
    SamplingParams,
)


@pytest.mark.parametrize(
    ("options", "keywords"), [(LoadOptions, LoadKeywords), (IngestOptions, IngestKeywords), (AskOptions, AskKeywords)]
)
def test_keywords_are_the_fields(options: Any, keywords: Any) -> None:
    assert set(get_type_hints(keywords)) == {field.name for field in dataclasses.fields(options)}
    assert all(field.metadata["help"] for field in dataclasses.fields(options))


def test_every_command_has_the_same_flag_for_a_field() -> None:
    commands = typer.main.get_command(app).commands  # type: ignore[attr-defined]
    helps: dict[str, set[str]] = {}
    for name in ("ask", "chat", "ingest", "plan", "doctor", "eval"):
        for parameter in commands[name].params:
            if "__" in parameter.name:
                helps.setdefault(parameter.opts[0], set()).add(parameter.help)
    assert {"--reload", "--ratios", "--device", "--pin", "--subtitles", "--with-subtitles"} <= set(helps)
    assert all(len(texts) == 1 for texts in helps.values())


def test_times_are_seconds_or_text() -> None:
    options = AskOptions(as_of="1:30", within=(1, "0:02"), pinned=["0:10-0:20", (3, 4)], why=["1:02", 5])
    assert (options.as_of, options.within, options.pinned) == (90.0, (1.0, 2.0), ((10.0, 20.0), (3.0, 4.0)))
    assert options.why == (62.0, 5.0)
    assert (IngestOptions(start="0:30", end=45).start, IngestOptions(ratios="2,32").ratios) == (30.0, (2.0, 32.0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: AskOptions.from_keywords(None, {"relaod": 3}), "'relaod' is not known: did you mean reload"),
        (lambda: AskOptions(as_of="soon"), "'soon' is no time"),
        (lambda: AskOptions(as_of=float("nan")), "as_of must be a time"),
        (lambda: AskOptions(within=(5, 5)), "within: time range 5-5 is empty"),
        (lambda: AskOptions(pinned="0:10-0:20"), "pinned must be a list"),
        (lambda: AskOptions(max_new_tokens=10**9), "max_new_tokens must be .* got 1000000000"),
        (lambda: AskOptions(max_new_tokens="8"), "max_new_tokens must be a whole number .* got '8'"),
        (lambda: SamplingParams(temperature=float("nan")), "temperature must be a number .* got nan"),
        (lambda: SamplingParams(seed=-1), "seed must be"),
        (lambda: IngestOptions(fps=0), "fps must be above 0"),
        (lambda: IngestOptions(ratios=[2, float("inf")]), "ratios must be numbers"),
        (lambda: IngestOptions(start=9, end=3), "end must be above start"),
        (lambda: LoadOptions(max_pixels=0), "max_pixels must be a whole number of 1 or more, got 0"),
        (lambda: LoadOptions(detail="huge"), "detail='huge' is not known: use low, medium, high"),
        (lambda: LoadOptions(detail="low", max_pixels=5), "detail='low' is a word for max_pixels=100352"),
    ],
)
def test_what_cannot_work_is_named(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


def test_detail_is_a_word_for_max_pixels() -> None:
    assert [LoadOptions(detail=word).max_pixels for word in ("low", "medium", "high")] == [100352, 301056, 602112]
    assert LoadOptions().max_pixels is None


def test_exit_status_tells_wrong_use_from_failure(tmp_path: Path) -> None:
    runner = CliRunner()
    assert runner.invoke(app, ["ask", "v.mp4", "hi", "--temperature", "-1"]).exit_code == 2
    assert runner.invoke(app, ["ask", "v.mp4", "hi", "--nonsense"]).exit_code == 2
    assert runner.invoke(app, ["ask", str(tmp_path / "none.mp4"), "hi"]).exit_code == 1
    assert runner.invoke(app, ["memory", "verify", str(tmp_path / "none")]).exit_code == 1


def test_small_models_run_on_one_thread_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    from videox2l.cli.console import Screen
    from videox2l.cli.options import load_model

    before = torch.get_num_threads()
    try:
        for told, threads in (("2", 2), (None, 1)):
            monkeypatch.setenv("OMP_NUM_THREADS", "2")
            if told is None:
                monkeypatch.delenv("OMP_NUM_THREADS")
            torch.set_num_threads(2)
            load_model("demo", LoadOptions(), Screen(quiet=True))
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)
