"""The `x2l` command: arguments in, pipeline calls, tables out. torch and transformers are imported inside commands."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videox2l.cli import chat, evaluate, ingest, memory, models, serve
from videox2l.cli.library import ask_library, check_library_flags
from videox2l.cli.options import (
    AsJson,
    EscalateBelow,
    EscalateFrom,
    Model,
    Report,
    Verbose,
    check_there,
    command,
    escalation,
    load_model,
    user_errors,
)
from videox2l.errors import SettingsError
from videox2l.options import AskOptions, IngestOptions, LibraryOptions, LoadOptions
from videox2l.version import __version__

if TYPE_CHECKING:
    from videox2l.ask.answer import Answer, Why
    from videox2l.cli.console import Screen
    from videox2l.cli.remote import ServerClient
    from videox2l.memory import Memory
    from videox2l.pipeline import VideoX2L

app = typer.Typer(
    help="Ask long videos many questions: ingest once, keep two levels of KVs, re-load the chunks that matter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Plot = Annotated[
    Path | None,
    typer.Option(help="Draw the time line of each answer into this file: .png, .pdf, .svg, ...", metavar="FILE"),
]
Pictures = Annotated[
    list[str] | None,
    typer.Option(
        "--video",
        help="The video that the memory was made of: for --clips, and for pictures of --plot and --report that are "
        "larger than those in the memory. Repeatable, for several memories.",
        metavar="FILE",
    ),
]
Clips = Annotated[
    Path | None,
    typer.Option(help="Cut the re-loaded moments out of the video, into this folder.", metavar="DIR"),
]
ExportMoments = Annotated[
    Path | None,
    typer.Option(help="Write the re-loaded moments to this file: .srt, .vtt, .csv or .edl.", metavar="FILE"),
]
Library = Annotated[
    str | None,
    typer.Option(
        help="Find the videos in this folder or URL of memories: x2l ask --library DIR QUESTION...", metavar="DIR|URL"
    ),
]
Save = Annotated[
    str | None,
    typer.Option(
        help="Keep the memory in this folder or URL; ask it later in place of the video. Goes on where it stopped.",
        metavar="DIR|URL",
    ),
]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"videox2l {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
    server: Annotated[
        str | None,
        typer.Option(
            help="Use a running x2l serve: ask, ingest, memory ls and memory rm load no model then.",
            envvar="X2L_SERVER",
            metavar="URL",
        ),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="With --server: the file that holds the key.", metavar="FILE")
    ] = None,
) -> None:
    del version
    from videox2l.cli.remote import SERVER

    SERVER.set((server, api_key_file))


@app.command()
@command
def ask(
    video: Annotated[
        str, typer.Argument(help="A video file, or a memory: a folder or a URL such as s3://...", metavar="VIDEO")
    ],
    rest: Annotated[
        list[str] | None,
        typer.Argument(help="One or more questions; with -q more videos and memories instead.", metavar="QUESTION..."),
    ] = None,
    model: Model = "demo",
    *,
    asked: Annotated[
        list[str] | None,
        typer.Option(
            "--question", "-q", help="A question; all other arguments are videos and memories then, asked as one."
        ),
    ] = None,
    library: Library = None,
    searching: LibraryOptions,
    asking: AskOptions,
    escalate_below: EscalateBelow = None,
    escalate_from: EscalateFrom = None,
    plot: Plot = None,
    pictures: Pictures = None,
    clips: Clips = None,
    export_moments: ExportMoments = None,
    report: Report = None,
    save: Save = None,
    ingesting: IngestOptions,
    loading: LoadOptions,
    verbose: Verbose = False,
    as_json: AsJson = False,
    given: set[str],
) -> None:
    """Ingest a video once and answer questions about it, or about several: x2l ask A B -q QUESTION.

    Or find the video first, among all memories of a folder: x2l ask --library DIR QUESTION.

    Each answer comes with the moments that it re-loaded and what it cost.
    """
    from videox2l.cli.console import Screen
    from videox2l.cli.remote import server_client

    screen = Screen(quiet=as_json, verbose=verbose)
    asking = AskOptions.from_keywords(asking, {"system": ingesting.system})
    questions, videos = (asked, [video, *(rest or ())]) if asked else (rest or [], [video])
    alone: dict[str, Any] = {"--save": save, "--plot": plot}
    local = {**alone, "--why": asking.why, "--export-moments": export_moments, "--clips": clips, "--report": report}
    check_library_flags(given, library, [name for name, value in local.items() if value])
    if library is not None:
        escalate = escalation(asking.escalate, escalate_below, escalate_from)
        asking = AskOptions.from_keywords(asking, {"escalate": escalate})
        ask_library(library, [*videos, *questions], load_model(model, loading, screen), searching, asking, screen)
        return
    pictures = pictures or []
    _check_several(questions, videos, [name for name, value in alone.items() if value], pictures)
    if (server := server_client()) is not None:
        local |= {"--video": pictures or None, "--escalate-below": escalate_below, "--escalate-from": escalate_from}
        served = ("--why", "--report")
        ingest.check_remote(given, {flag: value is not None for flag, value in local.items() if flag not in served})
        _check_outputs(None, [], None, None, report, 1)
        _ask_server(server, videos, questions, None if model == "demo" else model, asking, ingesting, screen, report)
        return
    check_there(*videos)
    from videox2l.memory.disk.locks import check_store

    # Whatever can be wrong is found before the hours of an ingest, not after them.
    asking = _resolved(asking, escalate_below, escalate_from)
    if save is not None:
        check_store(save)
    _check_outputs(plot, pictures, clips, export_moments, report, len(videos))
    if clips is not None:
        _check_clips(videos, pictures)
    check = functools.partial(_check_questions, questions, asking)
    x2l, opened = ingest.open_videos(videos, model, loading, ingesting, screen, save=save, check=check, given=given)
    targets = _numbered(plot, len(questions))
    answers = [
        _ask_shown(x2l, opened, question, asking, screen, target, next(iter(pictures), None))
        for question, target in zip(questions, targets, strict=True)
    ]
    _take_away(answers, opened, screen, videos, pictures, clips=clips, moments=export_moments, report=report)
    if as_json:
        values = [{**answer.to_dict(), "why": _explained(answer, asking.why)} for answer in answers]
        screen.json({"answers": values, "memory": opened.summary()})


def _resolved(asking: AskOptions, below: float | None, start: int | None) -> AskOptions:
    """Return options with the selector and the escalation that they name. Raises SettingsError for what is none."""
    from videox2l.select import budget_for, selector_by_name

    selector = selector_by_name(asking.selector)
    budget_for(asking.reload, asking.pinned, asking.excluded)
    return AskOptions.from_keywords(
        asking, {"selector": selector, "escalate": escalation(asking.escalate, below, start)}
    )


def _numbered(file: Path | None, count: int) -> list[Path | None]:
    """Return a file for each of `count` answers: with their numbers in the names where there are several."""
    numbers = range(1, count + 1)
    return [file if file is None or count == 1 else file.with_stem(f"{file.stem}-{number}") for number in numbers]


def _ask_shown(
    x2l: VideoX2L,
    memory: Memory,
    question: str,
    asking: AskOptions,
    screen: Screen,
    plot: Path | None,
    pictures: str | None,
) -> Answer:
    """Answer a question; show the answer while it is written, and what was asked for besides."""
    screen.question(question)
    several = len(memory.by_name) > 1
    options = AskOptions.from_keywords(asking, {"why": ()}) if several else asking
    answer = x2l.ask(memory, question, options, on_text=screen.piece)
    screen.answer(answer)
    for name, why in _whys(answer, asking.why):
        screen.why([f"{name}:", *why.lines()] if several else why.lines())
    if plot is not None:
        screen.plot(answer, plot, memory, pictures)
    return answer


def _whys(answer: Answer, moments: Sequence[float]) -> list[tuple[str, Why]]:
    """Return what each moment was for an answer, with the name of its video: of several, in all that have it.

    Raises SettingsError where none has it.
    """
    names = list(dict.fromkeys(moment.memory for moment in answer.evidence))
    found: list[tuple[str, Why]] = []
    for seconds in moments:
        before = len(found)
        for number, name in enumerate(names, 1):
            try:
                found.append((name, answer.why(seconds, name)))
            except SettingsError:
                if number == len(names) and len(found) == before:
                    raise
    return found


def _explained(answer: Answer, moments: Sequence[float]) -> list[dict[str, Any]]:
    """Return `_whys` as plain JSON values."""
    return [{**asdict(why), **({"memory": name} if name else {})} for name, why in _whys(answer, moments)]


def _ask_server(
    server: ServerClient,
    videos: list[str],
    questions: list[str],
    model: str | None,
    asking: AskOptions,
    ingesting: IngestOptions,
    screen: Screen,
    report: Path | None,
) -> None:
    """Ask a running server about one video or memory."""
    if len(videos) > 1:
        raise SettingsError("--server asks about one video at a time: ask without it, or send x2l.memories yourself")
    memory_id = server.memory_of(videos[0], ingesting, screen)
    summary = server.summary(memory_id)
    screen.memory(summary)
    replies = [server.ask(memory_id, question, model, asking, screen) for question in questions]
    if report is not None:
        report.write_bytes(server.report(memory_id, replies))
    if screen.quiet:
        screen.json({"answers": replies, "memory": summary})


def _check_questions(questions: list[str], asking: AskOptions, x2l: VideoX2L) -> None:
    """Raise SettingsError or ModelError for what cannot be asked."""
    from videox2l.engine.schema import SchemaGrammar
    from videox2l.types import Turn

    for question in questions:
        x2l.backbone.suffix(asking.worded(question), [Turn(*turn) for turn in asking.turns])
    for text in asking.choices:
        x2l.backbone.reply(text)
    if asking.json_schema is not None:
        SchemaGrammar(asking.json_schema, x2l.backbone)


def _check_clips(videos: list[str], named: list[str]) -> None:
    """Raise SettingsError or VideoError where clips are wanted of memories whose videos are not there."""
    from videox2l import takeaway
    from videox2l.memory import Memory
    from videox2l.memory.disk.source import is_memory

    memories = {video: Memory.load(video) for video in videos if is_memory(video)}
    takeaway.find_videos(memories, named)
    if len(memories) == len(videos):
        chat.check_pictures(memories, named)


def _take_away(
    answers: list[Answer],
    memory: Memory,
    screen: Screen,
    videos: list[str],
    named: list[str],
    *,
    clips: Path | None,
    moments: Path | None,
    report: Path | None,
) -> None:
    """Write clips, lists of moments and a page of answers, those that are wanted."""
    from videox2l import takeaway
    from videox2l.memory.disk.source import is_memory

    files = [] if named and len(videos) == 1 else [video for video in videos if not is_memory(video)]
    if clips is not None:
        screen.clips(takeaway.save_clips(answers, memory, clips, [*named, *files]))
    if moments is not None:
        takeaway.write_moments(answers, moments, memory)
    if report is not None:
        takeaway.write_report(answers, report, memory, named, [*named, *files])


def _check_several(questions: list[str], videos: list[str], alone: list[str], pictures: list[str]) -> None:
    """Raise SettingsError where nothing is asked, or where `alone`, options for one video, stand with several."""
    if not questions:
        raise SettingsError("ask something: x2l ask VIDEO QUESTION, or x2l ask VIDEO VIDEO -q QUESTION")
    if len(videos) > 1 and alone:
        raise SettingsError(f"{', '.join(alone)} go with one video: leave them out, or ask about one at a time")
    if len(pictures) > len(videos):
        raise SettingsError(f"--video is given {len(pictures)} times: once for each of {len(videos)} is enough")


def _check_outputs(
    plot: Path | None, videos: list[str], clips: Path | None, moments: Path | None, report: Path | None, count: int
) -> None:
    """Raise SettingsError for a file that cannot be written, before the work."""
    if plot is not None:
        from videox2l.plot import check_plot

        check_plot(plot)
    if moments is not None:
        from videox2l.takeaway import check_moments

        check_moments(moments, count > 1)
    if report is not None:
        from videox2l.takeaway import check_report

        check_report(report)
    if videos and plot is None and clips is None and report is None:
        raise SettingsError("--video goes with --plot, --clips or --report: say what it is for")


@app.command()
def demo(
    render: Annotated[Path | None, typer.Option(help="Only write the video to this file (mp4).")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="With --render: write its questions, answers and times here (JSON).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which video; none of them was trained on.")] = 0,
    minutes: Annotated[float, typer.Option(help="Length of the video.")] = 3.0,
    reload: Annotated[str, typer.Option(help="What to re-load per question, as of x2l ask.")] = "3",
) -> None:
    """Render a video of a made-up world, ask the model that ships with the package about it, and check the answers."""
    with user_errors():
        from videox2l.cli.demo import render_only, show

        if render is not None:
            render_only(render, truth, seed, minutes)
        elif truth is not None:
            raise SettingsError("--truth goes with --render: name the video file too")
        else:
            show(seed, minutes, reload)


app.command("chat")(chat.chat)
app.command("ingest")(ingest.ingest)
app.command("serve")(serve.serve)
app.add_typer(memory.app, name="memory")
models.register(app)
evaluate.register(app)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
