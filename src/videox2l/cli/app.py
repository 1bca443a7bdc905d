"""The `x2l` command: arguments in, pipeline calls, tables out. torch and transformers are imported inside commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from videox2l.cli import chat, evaluate, ingest, memory, models, serve
from videox2l.cli.options import (
    AsJson,
    EscalateBelow,
    EscalateFrom,
    Model,
    Verbose,
    command,
    escalation,
    load_model,
    user_errors,
)
from videox2l.errors import SettingsError
from videox2l.options import AskOptions, IngestOptions, LoadOptions
from videox2l.version import __version__

app = typer.Typer(
    help="Ask long videos many questions: ingest once, keep two levels of KVs, re-load the chunks that matter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


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
    questions: Annotated[list[str], typer.Argument(help="One or more questions.", metavar="QUESTION...")],
    model: Model = "demo",
    *,
    asking: AskOptions,
    escalate_below: EscalateBelow = None,
    escalate_from: EscalateFrom = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the time line of each answer into this file: .png, .pdf, .svg, ...", metavar="FILE"),
    ] = None,
    pictures: Annotated[
        str | None,
        typer.Option(
            "--video",
            help="With --plot: take pictures from this video instead of the small ones in the memory.",
            metavar="FILE",
        ),
    ] = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Keep the memory in this folder; ask it later in place of the video. Goes on where it stopped."
        ),
    ] = None,
    ingesting: IngestOptions,
    loading: LoadOptions,
    verbose: Verbose = False,
    as_json: AsJson = False,
    given: set[str],
) -> None:
    """Ingest a video once and answer questions about it.

    Each answer comes with the moments that it re-loaded and what it cost.
    """
    from videox2l.cli.console import Screen
    from videox2l.cli.remote import server_client

    screen = Screen(quiet=as_json, verbose=verbose)
    server = server_client()
    if server is not None:
        local: dict[str, object] = {"--save": save, "--plot": plot, "--video": pictures}
        local |= {"--escalate-below": escalate_below, "--escalate-from": escalate_from}
        ingest.check_remote(given, {flag: value is not None for flag, value in local.items()})
        memory_id = server.memory_of(video, ingesting, screen)
        summary = server.summary(memory_id)
        screen.memory(summary)
        wanted = None if model == "demo" else model
        replies = [server.ask(memory_id, question, wanted, asking, screen) for question in questions]
        if as_json:
            screen.json({"answers": replies, "memory": summary})
        return
    from videox2l.memory import Memory
    from videox2l.memory.disk.folder import is_memory
    from videox2l.memory.disk.writer import check_target
    from videox2l.select import budget_for, selector_by_name

    # Whatever can be wrong is found before the hours of an ingest, not after them.
    selector = selector_by_name(asking.selector)
    budget_for(asking.reload, asking.pinned, asking.excluded)
    escalate = escalation(asking.escalate, escalate_below, escalate_from)
    asking = AskOptions.from_keywords(asking, {"selector": selector, "escalate": escalate})
    if save is not None:
        check_target(save)
    _check_plot(plot, pictures)
    if is_memory(video):
        ingest.check_unused(given, video)
        opened = Memory.load(video)
        if save is not None:
            opened.save(save)
        x2l = load_model(model, loading, screen)
        opened.check_model(x2l.identity)  # before anything of an answer is printed
    else:
        x2l, opened = ingest.read_video(video, model, loading, ingesting, screen, store=save, questions=questions)
    screen.memory(opened.summary(), saved=save)
    answers = []
    for number, question in enumerate(questions, 1):
        screen.question(question)
        answers.append(x2l.ask(opened, question, asking, on_text=screen.piece))
        screen.answer(answers[-1])
        for seconds in asking.why:
            screen.why(answers[-1].why(seconds).lines())
        if plot is not None:
            target = plot.with_stem(f"{plot.stem}-{number}") if len(questions) > 1 else plot
            screen.plot(answers[-1], target, opened, pictures)
    if as_json:
        values = [{**answer.to_dict(), "why": [asdict(answer.why(at)) for at in asking.why]} for answer in answers]
        screen.json({"answers": values, "memory": opened.summary()})


def _check_plot(plot: Path | None, pictures: str | None) -> None:
    if plot is not None:
        from videox2l.plot import check_plot

        check_plot(plot)
    elif pictures is not None:
        raise SettingsError("--video goes with --plot: name the picture to draw too")


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
