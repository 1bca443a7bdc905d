"""The command `x2l chat`: a dialogue about a memory, typed or piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videox2l.cli.options import (
    EscalateBelow,
    EscalateFrom,
    Model,
    Report,
    Verbose,
    check_there,
    command,
    escalation,
    load_model,
)
from videox2l.errors import SettingsError, VideoError
from videox2l.options import AskOptions, LoadOptions

if TYPE_CHECKING:
    from videox2l.memory import Memory


@command
def chat(
    memories: Annotated[
        list[str],
        typer.Argument(help="Memories: folders, or URLs such as s3://...; several are asked as one.", metavar="MEMORY"),
    ],
    model: Model = "demo",
    *,
    asking: AskOptions,
    escalate_below: EscalateBelow = None,
    escalate_from: EscalateFrom = None,
    recompute: Annotated[
        bool,
        typer.Option(
            "--recompute", help="Read the whole dialogue again for each question, instead of keeping its KVs."
        ),
    ] = False,
    report: Report = None,
    pictures: Annotated[
        list[str] | None,
        typer.Option(
            "--video",
            help="With --report: the video, for its pictures and links to moments. Repeatable, for several memories.",
            metavar="FILE",
        ),
    ] = None,
    loading: LoadOptions,
    verbose: Verbose = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer, each on a line.")] = False,
) -> None:
    """Talk about a video, or several: each question sees the dialogue so far. One a line; an empty input ends it."""
    check_there(*memories, memory=True)
    from videox2l import takeaway
    from videox2l.cli.console import Screen, open_memory
    from videox2l.select import budget_for, selector_by_name

    screen = Screen(quiet=as_json, verbose=verbose)
    selector = selector_by_name(asking.selector)
    budget_for(asking.reload, asking.pinned, asking.excluded)
    escalate = escalation(asking.escalate, escalate_below, escalate_from)
    asking = AskOptions.from_keywords(asking, {"selector": selector, "escalate": escalate})
    if report is not None:
        takeaway.check_report(report)
    elif pictures:
        raise SettingsError("--video goes with --report: give both")
    parts = [open_memory(memory) for memory in memories]
    check_pictures(dict(zip(memories, parts, strict=True)), pictures or [])  # another file shows before the dialogue
    x2l = load_model(model, loading, screen)
    opened = x2l.open(parts, memories)
    dialogue = x2l.chat(opened, earlier="recompute" if recompute else "keep")
    for part in parts:
        screen.memory(part.summary())
    answers = []
    for question in _questions():
        screen.question(question, echo=not sys.stdin.isatty())
        try:
            answer = dialogue.ask(question, asking, on_text=screen.piece)
        except SettingsError as error:
            screen.piece("")  # which of the questions it is about
            screen.line("")
            sys.stderr.write(f"error: {error}\n")
            continue
        screen.answer(answer)
        answers.append(answer)
        if report is not None:  # after each answer, so that a dialogue that breaks off is there
            takeaway.write_report(answers, report, opened, pictures)
        if as_json:
            sys.stdout.write(json.dumps(answer.to_dict(), ensure_ascii=False) + "\n")
            sys.stdout.flush()


def check_pictures(memories: Mapping[str, Memory], named: Sequence[str]) -> None:
    """Raise VideoError for a file that none of the memories was made of."""
    from videox2l import takeaway

    if len(memories) == 1 and named:
        takeaway.find_videos(memories, named)
    for file in named:
        if len(memories) > 1 and not takeaway.fitting_videos(memories, [file]):
            raise VideoError(f"'{Path(file).name}' is not a video that one of these memories was made of: leave it out")


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
