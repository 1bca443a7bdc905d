"""The command `x2l chat`: a dialogue about a memory, typed or piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from videox2l.cli.options import (
    AsOf,
    Check,
    Device,
    DeviceMap,
    Dtype,
    Escalate,
    EscalateBelow,
    EscalateFrom,
    Exclude,
    MaxNewTokens,
    MaxPixels,
    Model,
    Pin,
    Quantize,
    Reload,
    ReselectEvery,
    Revision,
    Seed,
    SelectorName,
    Temperature,
    TopP,
    Within,
    WithSubtitles,
    escalation,
    load_from_options,
    user_errors,
)
from videox2l.errors import MemoryFileError, SettingsError

if TYPE_CHECKING:
    from videox2l.ask.options import AskKeywords


def chat(
    memory: Annotated[str, typer.Argument(help="A memory: a folder, or a URL such as s3://...", metavar="MEMORY")],
    model: Model = "demo",
    reload: Reload = "3",
    selector: SelectorName = "keys",
    pin: Pin = None,
    exclude: Exclude = None,
    escalate: Escalate = False,
    escalate_below: EscalateBelow = None,
    escalate_from: EscalateFrom = None,
    reselect_every: ReselectEvery = None,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Read the whole dialogue again for each question, instead of keeping its KVs."
        ),
    ] = False,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    as_of: AsOf = None,
    within: Within = None,
    subtitles: WithSubtitles = False,
    max_pixels: MaxPixels = None,
    device: Device = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    revision: Revision = None,
    check: Check = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer, each on a line.")] = False,
) -> None:
    """Talk about a video: each question sees the dialogue so far. One question a line; an empty input ends it."""
    with user_errors():
        from videox2l.units import parse_range, parse_time

        pinned, excluded = [parse_range(text) for text in pin or ()], [parse_range(text) for text in exclude or ()]
        until, span = as_of and parse_time(as_of), within and parse_range(within)
        from videox2l.ask.options import resolve_options
        from videox2l.cli.console import Screen
        from videox2l.memory import Memory
        from videox2l.memory.disk.folder import is_memory
        from videox2l.select import selector_by_name

        screen = Screen(quiet=as_json)
        wish: AskKeywords = {
            "reload": reload,
            "selector": selector_by_name(selector),
            "pinned": pinned,
            "excluded": excluded,
            "subtitles": subtitles,
            "escalate": escalation(escalate, escalate_below, escalate_from),
            "reselect_every": reselect_every,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "on_text": screen.piece,
        }
        resolve_options(**wish)
        if not is_memory(memory):
            raise MemoryFileError(f"'{memory}' holds no memory: make one of a video with x2l ingest VIDEO {memory}")
        opened = Memory.load(memory)
        x2l = load_from_options(
            model,
            device,
            dtype,
            max_pixels,
            screen,
            device_map=device_map,
            quantize=quantize,
            revision=revision,
            check=check,
        )
        dialogue = x2l.chat(opened, earlier="recompute" if recompute else "keep")
        screen.memory(opened)
        for question in _questions():
            screen.question(question, echo=not sys.stdin.isatty())
            try:
                answer = dialogue.ask(question, as_of=until or None, within=span or None, **wish)
            except SettingsError as error:
                screen.line("")
                sys.stderr.write(f"error: {error}\n")
                continue
            screen.answer(answer)
            if as_json:
                sys.stdout.write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")
                sys.stdout.flush()


def _questions() -> Iterator[str]:
    """Yield the questions: typed behind a prompt, or the lines of stdin."""
    if not sys.stdin.isatty():
        yield from (line.strip() for line in sys.stdin if line.strip())
        return
    while True:
        try:
            line = input("\n> ").strip()
        except EOFError:
            return
        if not line:
            return
        yield line
