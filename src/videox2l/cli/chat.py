"""The command `x2l chat`: a dialogue about a memory, typed or piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from typing import Annotated

import typer

from videox2l.cli.options import (
    EscalateBelow,
    EscalateFrom,
    MemoryArg,
    Model,
    Report,
    Verbose,
    check_there,
    command,
    escalation,
    load_model,
)
from videox2l.errors import SettingsError
from videox2l.options import AskOptions, LoadOptions


@command
def chat(
    memory: MemoryArg,
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
        str | None,
        typer.Option(
            "--video", help="With --report: the video, for its pictures and for links to moments.", metavar="FILE"
        ),
    ] = None,
    loading: LoadOptions,
    verbose: Verbose = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object per answer, each on a line.")] = False,
) -> None:
    """Talk about a video: each question sees the dialogue so far. One question a line; an empty input ends it."""
    check_there(memory, memory=True)
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
    elif pictures is not None:
        raise SettingsError("--video goes with --report: give both")
    opened = open_memory(memory)
    if pictures is not None:
        takeaway.find_video(opened, pictures)  # another file shows before the dialogue
    x2l = load_model(model, loading, screen)
    dialogue = x2l.chat(opened, earlier="recompute" if recompute else "keep")
    screen.memory(opened.summary())
    answers = []
    for question in _questions():
        screen.question(question, echo=not sys.stdin.isatty())
        try:
            answer = dialogue.ask(question, asking, on_text=screen.piece)
        except SettingsError as error:
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
