"""The `x2l` command: arguments in, pipeline calls, tables out. torch and transformers are imported inside commands."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videox2l.cli import chat, evaluate, memory, models
from videox2l.cli.options import (
    AsJson,
    AsOf,
    Check,
    ChunkFrames,
    CompressorName,
    Device,
    DeviceMap,
    Dtype,
    Embedder,
    End,
    Escalate,
    EscalateBelow,
    EscalateFrom,
    Exclude,
    Fps,
    HBits,
    History,
    LBits,
    LTier,
    MaxFrames,
    MaxNewTokens,
    MaxPixels,
    Model,
    Pin,
    Plot,
    Quantize,
    Ratios,
    Reload,
    ReselectEvery,
    Revision,
    SamplingMode,
    Seed,
    SelectorName,
    Start,
    Subtitles,
    Temperature,
    TopP,
    Video,
    WhyTimes,
    Within,
    WithSubtitles,
    escalation,
    load_from_options,
    number,
    user_errors,
)
from videox2l.errors import SettingsError
from videox2l.version import __version__

if TYPE_CHECKING:
    from videox2l.ask.options import AskKeywords

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
) -> None:
    del version


@app.command()
def ask(
    video: Annotated[
        str, typer.Argument(help="A video file, or a memory: a folder or a URL such as s3://...", metavar="VIDEO")
    ],
    questions: Annotated[list[str], typer.Argument(help="One or more questions.", metavar="QUESTION...")],
    model: Model = "demo",
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    sampling: SamplingMode = "auto",
    ratios: Ratios = "2,32",
    compressor: CompressorName = None,
    history: History = "H",
    l_tier: LTier = "stored",
    l_bits: LBits = None,
    h_bits: HBits = None,
    chunk_frames: ChunkFrames = None,
    embedder: Embedder = None,
    max_pixels: MaxPixels = None,
    reload: Reload = "3",
    selector: SelectorName = "keys",
    pin: Pin = None,
    exclude: Exclude = None,
    escalate: Escalate = False,
    escalate_below: EscalateBelow = None,
    escalate_from: EscalateFrom = None,
    reselect_every: ReselectEvery = None,
    max_new_tokens: MaxNewTokens = 128,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    seed: Seed = 0,
    plot: Plot = None,
    pictures: Video = None,
    why: WhyTimes = None,
    save: Annotated[
        Path | None,
        typer.Option(
            help="Keep the memory in this folder; ask it later in place of the video. Goes on where it stopped."
        ),
    ] = None,
    as_of: AsOf = None,
    subtitles: WithSubtitles = False,
    subtitles_from: Subtitles = None,
    within: Within = None,
    device: Device = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    revision: Revision = None,
    check: Check = True,
    as_json: AsJson = False,
) -> None:
    """Ingest a video once and answer questions about it.

    Each answer comes with the moments that it re-loaded and what it cost.
    """
    with user_errors():
        from videox2l.units import parse_range, parse_time

        parsed = tuple(number(part, "ratios") for part in ratios.split(","))
        pinned, excluded = [parse_range(text) for text in pin or ()], [parse_range(text) for text in exclude or ()]
        moments = [parse_time(text) for text in why or ()]
        until, span = as_of and parse_time(as_of), within and parse_range(within)
        if fps is None and max_frames is None:
            fps = 1.0
        from videox2l.ask.options import resolve_options
        from videox2l.cli.console import Screen
        from videox2l.memory import Memory
        from videox2l.memory.disk.folder import is_memory
        from videox2l.memory.disk.writer import check_target
        from videox2l.plot import check_plot, draw
        from videox2l.select import selector_by_name
        from videox2l.video import FrameSampling, open_video
        from videox2l.video.subtitles import read_subtitles

        screen = Screen(quiet=as_json)
        # Whatever can be wrong is found before the hours of an ingest, not after them.
        wish: AskKeywords = {
            "reload": reload,
            "selector": selector_by_name(selector),
            "pinned": pinned,
            "excluded": excluded,
            "subtitles": subtitles,
            "escalate": escalation(escalate, escalate_below, escalate_from),
            "reselect_every": reselect_every,
            "why": moments,
            "max_new_tokens": max_new_tokens,
            "temperature": temperature,
            "top_p": top_p,
            "seed": seed,
            "on_text": screen.piece,
        }
        resolve_options(**wish)
        if save is not None:
            check_target(save)
        if plot is not None:
            check_plot(plot)
        elif pictures is not None:
            raise SettingsError("--video goes with --plot: name the picture to draw too")

        lines = read_subtitles(subtitles_from, video) if subtitles_from is not None else ()
        if is_memory(video):
            memory = Memory.load(video)
            if save is not None:
                memory.save(save)
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
            memory.check_model(x2l.identity)  # before anything of an answer is printed
        else:
            frames = FrameSampling(fps=fps, max_frames=max_frames, start=start, end=end, mode=sampling)  # type: ignore[arg-type]
            with open_video(video, frames) as source:  # before the model: what is wrong with a video shows at once
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
                for question in questions:
                    x2l.backbone.suffix(question)
                with screen.ingest_bar(Path(video).name) as progress:
                    memory = x2l.ingest(
                        source,
                        ratios=parsed,
                        compressor=compressor,
                        history=history,
                        l_tier=l_tier,
                        l_bits=l_bits,
                        h_bits=h_bits,
                        store=save,
                        subtitles=lines,
                        chunk_frames=chunk_frames,
                        embedder=embedder,
                        progress=progress,
                    )
        screen.memory(memory, saved=save)
        answers = []
        for question in questions:
            screen.question(question)
            answer = x2l.ask(memory, question, as_of=until or None, within=span or None, **wish)
            screen.answer(answer)
            for seconds in moments:
                screen.why(answer.why(seconds))
            answers.append(answer)
            if plot is not None:
                nth = f"-{len(answers)}" if len(questions) > 1 else ""
                target = plot.with_stem(plot.stem + nth)
                draw(answer, target, memory, pictures)
                screen.line(f"  time line: {target}")
        if as_json:
            found = [answer.to_dict() for answer in answers]
            for answer, values in zip(answers, found, strict=True):
                values["why"] = [asdict(answer.why(seconds)) for seconds in moments]
            screen.json({"answers": found, "memory": memory.summary()})


@app.command()
def demo(
    render: Annotated[Path | None, typer.Option(help="Only write the video to this file (mp4).")] = None,
    truth: Annotated[
        Path | None, typer.Option(help="With --render: write its questions, answers and times here (JSON).")
    ] = None,
    seed: Annotated[int, typer.Option(help="Which video; none of them was trained on.")] = 0,
    minutes: Annotated[float, typer.Option(help="Length of the video.")] = 3.0,
    reload: Reload = "3",
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


app.command()(chat.chat)
memory.register(app)
models.register(app)
evaluate.register(app)


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
