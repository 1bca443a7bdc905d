"""The `x2l` command: arguments in, pipeline calls, tables out. torch and transformers are imported inside commands."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videox2l.errors import SettingsError, VideoWarning, X2LError
from videox2l.version import __version__

if TYPE_CHECKING:
    from videox2l.console import Screen
    from videox2l.pipeline import VideoX2L

app = typer.Typer(
    help="Ask long videos many questions: ingest once, keep two levels of KVs, re-load the chunks that matter.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Model = Annotated[
    str, typer.Option(help='"demo", "demo-xl", a local directory, or a Hugging Face hub id.', metavar="demo|ID|DIR")
]
Reload = Annotated[str, typer.Option(help='How many chunks to re-load per question: a number, "all" or "none".')]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [default: cuda where there is one]")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]


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
    video: Annotated[str, typer.Argument(help="A video file, or a memory saved with --save.", metavar="VIDEO")],
    questions: Annotated[list[str], typer.Argument(help="One or more questions.", metavar="QUESTION...")],
    model: Model = "demo",
    fps: Annotated[float | None, typer.Option(help="Frames sampled per second of video. [default: 1]")] = None,
    max_frames: Annotated[
        int | None, typer.Option(help="Sample at most this many frames: fps is lowered until they fit.")
    ] = None,
    start: Annotated[float | None, typer.Option(help="Read from this second on.")] = None,
    end: Annotated[float | None, typer.Option(help="Read up to this second.")] = None,
    sampling: Annotated[str, typer.Option(help="auto, exact (decode every frame) or fast.")] = "auto",
    ratios: Annotated[str, typer.Option(help="Compression ratio of each level, finest first.")] = "2,32",
    compressor: Annotated[
        str | None, typer.Option(help="keydiff, snap, uniform, pool or summary. [default: the model's, mostly keydiff]")
    ] = None,
    history: Annotated[
        str, typer.Option(help="What a chunk sees of earlier ones: H, L, recent:N, own or fused.")
    ] = "H",
    l_tier: Annotated[
        str, typer.Option(help="stored keeps L; lazy keeps visual tokens and makes L when a question first wants it.")
    ] = "stored",
    chunk_frames: Annotated[
        int | None, typer.Option(help="Sampled frames per chunk. [default: the model's, mostly 8]")
    ] = None,
    max_pixels: Annotated[
        int | None, typer.Option(help="Pixels per frame at most, where the model resizes to a budget.")
    ] = None,
    reload: Reload = "3",
    selector: Annotated[str, typer.Option(help="What scores the chunks: attention or random.")] = "attention",
    pin: Annotated[
        list[str] | None, typer.Option(help="Always re-load this time range; repeatable.", metavar="A-B")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Never re-load this time range; repeatable.", metavar="A-B")
    ] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Length limit of an answer.")] = 128,
    temperature: Annotated[float, typer.Option(help="0 is greedy.")] = 0.0,
    top_p: Annotated[float, typer.Option(help="Nucleus sampling, with a temperature above 0.")] = 1.0,
    seed: Annotated[int, typer.Option(help="Seed of sampling.")] = 0,
    save: Annotated[
        Path | None, typer.Option(help="Keep the memory in this file; ask it later in place of the video.")
    ] = None,
    device: Device = None,
    dtype: Dtype = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")] = False,
) -> None:
    """Ingest a video once and answer questions about it.

    Each answer comes with the moments that it re-loaded and what it cost.
    """
    with _user_errors():
        from videox2l.times import parse_range

        parsed = tuple(_number(part, "ratios") for part in ratios.split(","))
        pinned, excluded = [parse_range(text) for text in pin or ()], [parse_range(text) for text in exclude or ()]
        if fps is None and max_frames is None:
            fps = 1.0
        from videox2l.console import Screen
        from videox2l.memory import Memory
        from videox2l.memory.store import check_target, is_memory
        from videox2l.select import budget_for, selector_by_name
        from videox2l.video import Sampling, open_video

        # Whatever can be wrong is found before the hours of an ingest, not after them.
        budget, oracle = budget_for(reload, pinned, excluded), selector_by_name(selector)
        if save is not None:
            check_target(save)

        screen = Screen(quiet=as_json)
        if is_memory(Path(video)):
            memory = Memory.load(video)
            x2l = _load(model, device, dtype, max_pixels, screen)
        else:
            frames = Sampling(fps=fps, max_frames=max_frames, start=start, end=end, mode=sampling)  # type: ignore[arg-type]
            with open_video(video, frames) as source:  # before the model: what is wrong with a video shows at once
                x2l = _load(model, device, dtype, max_pixels, screen)
                for question in questions:
                    x2l.backbone.suffix(question)
                with screen.ingest_bar(Path(video).name) as progress:
                    memory = x2l.ingest(
                        source,
                        ratios=parsed,
                        compressor=compressor,
                        history=history,
                        l_tier=l_tier,
                        chunk_frames=chunk_frames,
                        progress=progress,
                    )
        if save is not None:
            memory.save(save)
        screen.memory(memory, saved=save)
        answers = []
        for question in questions:
            screen.question(question)
            answer = x2l.ask(
                memory,
                question,
                reload=budget,
                selector=oracle,
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_p=top_p,
                seed=seed,
                on_text=screen.piece,
            )
            screen.answer(answer)
            answers.append(answer)
        if as_json:
            screen.json({"answers": [answer.to_dict() for answer in answers], "memory": memory.summary()})


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
    with _user_errors():
        from videox2l.demo.show import render_only, show

        if render is not None:
            render_only(render, truth, seed, minutes)
        elif truth is not None:
            raise SettingsError("--truth goes with --render: name the video file too")
        else:
            show(seed, minutes, reload)


def _load(model: str, device: str | None, dtype: str, max_pixels: int | None, screen: Screen) -> VideoX2L:
    with screen.waiting(f"loading {model}"):
        from transformers.utils import logging

        from videox2l.pipeline import VideoX2L

        logging.disable_progress_bar()
        return VideoX2L.from_pretrained(model, device=device, dtype=dtype, max_pixels=max_pixels)


def _number(text: str, what: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{what}: '{text}' is no number; write such as 2,32") from None


@contextlib.contextmanager
def _user_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line on stderr and exit status 1; warnings into one line each."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        sys.stderr.write(f"warning: {message}\n")

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries; a user cannot act on them
            warnings.simplefilter("always", VideoWarning)
            warnings.showwarning = show
            yield
    except X2LError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(130) from None


def main() -> None:
    """Run the command line."""
    app()


if __name__ == "__main__":
    main()
