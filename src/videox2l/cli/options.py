"""What the commands of the `x2l` command line share: options, loading a model, and how errors are told."""

from __future__ import annotations

import contextlib
import json
import os
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videox2l.errors import MemoryWarning, ModelWarning, SettingsError, VideoWarning, X2LError

if TYPE_CHECKING:
    from videox2l.ask.escalation import Escalation
    from videox2l.cli.console import Screen
    from videox2l.pipeline import VideoX2L

Model = Annotated[
    str, typer.Option(help='"demo", "demo-xl", a local directory, or a Hugging Face hub id.', metavar="demo|ID|DIR")
]
Reload = Annotated[
    str,
    typer.Option(
        help="What to re-load per question: a number of chunks, all, none, tokens:N (split by score), bytes:200M, "
        "mass:0.9 (of the scores) or latency:0.5s; after a comma also max:N (with mass and latency), ends (first and "
        "last chunk), neighbours:N."
    ),
]
Device = Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1, ... [default: cuda where there is one]")]
Dtype = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
DeviceMap = Annotated[
    str | None,
    typer.Option(help='Spread the model over devices: "auto", or JSON of modules and devices. Needs accelerate.'),
]
Quantize = Annotated[str | None, typer.Option(help="Weights in 4bit or 8bit. Needs bitsandbytes.")]
Revision = Annotated[str | None, typer.Option(help="Branch, tag or commit of a hub repository.")]
Check = Annotated[
    bool, typer.Option("--check/--no-check", help="Compare a model with the stock one when it is first loaded.")
]
Fps = Annotated[float | None, typer.Option(help="Frames sampled per second of video. [default: 1]")]
MaxFrames = Annotated[int | None, typer.Option(help="Sample at most this many frames: fps is lowered until they fit.")]
Start = Annotated[float | None, typer.Option(help="Read from this second on.")]
End = Annotated[float | None, typer.Option(help="Read up to this second.")]
SamplingMode = Annotated[str, typer.Option(help="auto, exact (decode every frame) or fast.")]
Ratios = Annotated[str, typer.Option(help="Compression ratio of each level, finest first.")]
CompressorName = Annotated[
    str | None, typer.Option(help="keydiff, snap, uniform, pool or summary. [default: the model's, mostly keydiff]")
]
History = Annotated[str, typer.Option(help="What a chunk sees of earlier ones: H, L, recent:N, own or fused.")]
LTier = Annotated[
    str, typer.Option(help="stored keeps L; lazy keeps visual tokens and makes L when first wanted; none keeps H.")
]
LBits = Annotated[int | None, typer.Option(help="Keep L in 8 or 4 bits. [default: the model's own dtype]")]
HBits = Annotated[int | None, typer.Option(help="Keep H in 8 or 4 bits. [default: the model's own dtype]")]
ChunkFrames = Annotated[int | None, typer.Option(help="Sampled frames per chunk. [default: the model's, mostly 8]")]
MaxPixels = Annotated[int | None, typer.Option(help="Pixels per frame at most, where the model resizes to a budget.")]
Subtitles = Annotated[
    str | None,
    typer.Option(help='An SRT or VTT file, or "embedded" for a text track of the video.', metavar="FILE|embedded"),
]
SelectorName = Annotated[
    str,
    typer.Option(
        help="What scores the chunks: keys, attention, embedding (see --embedder), embed-dot, text (of subtitles), "
        "uniform, random, manual:A-B, or several as fuse:keys+text."
    ),
]
Pin = Annotated[list[str] | None, typer.Option(help="Always re-load this time range; repeatable.", metavar="A-B")]
Exclude = Annotated[list[str] | None, typer.Option(help="Never re-load this time range; repeatable.", metavar="A-B")]
Escalate = Annotated[
    bool, typer.Option("--escalate", help="Begin with one chunk; re-load more, up to --reload, only while unsure.")
]
EscalateBelow = Annotated[
    float | None,
    typer.Option(
        help="With --escalate: sure below this mean entropy of the answer's tokens. [default: 0.1]", metavar="NATS"
    ),
]
EscalateFrom = Annotated[
    int | None,
    typer.Option(help="With --escalate: chunks to begin with; 0 begins from H. [default: 1]", metavar="CHUNKS"),
]
ReselectEvery = Annotated[
    int | None, typer.Option(help="Choose the chunks again after every so many tokens of the answer.", metavar="TOKENS")
]
Plot = Annotated[
    Path | None,
    typer.Option(help="Draw the time line of each answer into this file: .png, .pdf, .svg, ...", metavar="FILE"),
]
Video = Annotated[
    str | None,
    typer.Option(
        "--video",
        help="With --plot: take pictures from this video instead of the small ones in the memory.",
        metavar="FILE",
    ),
]
WhyTimes = Annotated[
    list[str] | None,
    typer.Option("--why", help="Explain the score of the moment at this time; repeatable.", metavar="TIME"),
]
MaxNewTokens = Annotated[int, typer.Option(help="Length limit of an answer.")]
Temperature = Annotated[float, typer.Option(help="0 is greedy.")]
TopP = Annotated[float, typer.Option(help="Nucleus sampling, with a temperature above 0.")]
Seed = Annotated[int, typer.Option(help="Seed of sampling.")]
AsOf = Annotated[str | None, typer.Option(help="See only what is over at this time, such as 12:30.", metavar="TIME")]
Within = Annotated[str | None, typer.Option(help="See only this time range.", metavar="A-B")]
WithSubtitles = Annotated[
    bool, typer.Option("--subtitles", help="Put the subtitles of the re-loaded chunks in front of the question.")
]
Embedder = Annotated[
    str | None,
    typer.Option(help="Embed frames with this dual encoder (CLIP, SigLIP), for selector embedding.", metavar="ID|DIR"),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def load_from_options(
    model: str,
    device: str | None,
    dtype: str,
    max_pixels: int | None,
    screen: Screen,
    *,
    device_map: str | None = None,
    quantize: str | None = None,
    revision: str | None = None,
    check: bool = True,
) -> VideoX2L:
    """Load a model behind a spinner."""
    placed = placement(device_map)
    with screen.waiting(f"loading {model}"):
        from transformers.utils import logging

        from videox2l.pipeline import VideoX2L

        logging.disable_progress_bar()
        return VideoX2L.from_pretrained(
            model,
            device=device,
            dtype=dtype,
            device_map=placed,
            quantize=quantize,
            revision=revision,
            max_pixels=max_pixels,
            check=check,
        )


def placement(device_map: str | None) -> Any:
    """Read the option --device-map: a word, or JSON of modules and devices."""
    return json_value(device_map, "device-map") if device_map is not None and device_map.startswith("{") else device_map


def json_value(text: str, what: str) -> Any:
    """Read the JSON text of the option `what`."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{what}: '{text}' is no JSON: {error}") from None


def number(text: str, what: str) -> float:
    """Read a number of the option `what`."""
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{what}: '{text}' is no number; write such as 2,32") from None


def escalation(wanted: bool, below: float | None, start: int | None) -> bool | Escalation:
    """Return what --escalate, --escalate-below and --escalate-from ask for."""
    from videox2l.ask.escalation import Escalation

    for name, value in (("below", below), ("from", start)):
        if value is not None and not wanted:
            raise SettingsError(f"--escalate-{name} goes with --escalate: give both")
    plain = Escalation()
    return wanted and Escalation(plain.below if below is None else below, plain.start if start is None else start)


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Turn errors that a user can mend into one line on stderr and exit status 1; warnings into one line each."""

    def show(message: Warning | str, *_: object, **__: object) -> None:
        sys.stderr.write(f"warning: {message}\n")

    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of libraries; a user cannot act on them
            warnings.simplefilter("always", VideoWarning)
            warnings.simplefilter("always", MemoryWarning)
            warnings.simplefilter("always", ModelWarning)
            warnings.showwarning = show
            yield
    except X2LError as error:
        sys.stderr.write(f"error: {error}\n")
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        raise typer.Exit(130) from None
