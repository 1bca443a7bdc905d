"""LoadOptions, IngestOptions, AskOptions, SamplingParams: the only place of defaults, checks and help texts.

The Python API takes them whole or as keywords, the command line makes its flags from them, and so do evaluation and the
plugin for lmms-eval. Times are seconds or text such as "12:30"; they are numbers once an object is made.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import os
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypedDict

from videox2l.errors import SettingsError
from videox2l.units import Cue, as_range, as_time, as_times, parse_bytes

TimeRange = tuple[float, float]
DEFAULT_SELECTOR = "exact"
L_TIERS = ("stored", "lazy", "none")
SAMPLING_MODES = ("auto", "exact", "fast")
BITS = (8, 4)
_QUESTION = "{question}"


def option(default: Any, help: str, **cli: Any) -> Any:  # noqa: A002
    """Return a dataclass field with its help text.

    `cli` is for the command line: `flag` where it is not the field's name, `metavar`, `type` (text unless the default
    says otherwise), `show` for the default as it is told, `hidden=True` for a field that has no flag, `reads="json"`
    for one whose flag names a file of it.
    """
    return dataclasses.field(default=default, metadata={"help": help, **cli})


class OptionSet:
    """What the option classes share: made from keywords, with an error that names the nearest option there is."""

    @classmethod
    def from_keywords(cls, options: Self | None = None, keywords: Mapping[str, Any] | None = None) -> Self:
        """Return `options`, or the defaults, with `keywords` in their place. Raises SettingsError."""
        keywords = keywords or {}
        known = [field.name for field in dataclasses.fields(cls)]  # type: ignore[arg-type]
        for name in keywords:
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1)
                hint = f": did you mean {near[0]}?" if near else f": there are {', '.join(known)}"
                raise SettingsError(f"option '{name}' is not known{hint}")
        if options is None:
            return cls(**keywords)
        if not isinstance(options, cls):
            raise SettingsError(f"options must be {cls.__name__}, got {type(options).__name__}")
        return dataclasses.replace(options, **keywords) if keywords else options  # type: ignore[type-var]

    def _set(self, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)

    def _check_number(self, name: str, low: float, *, whole: bool = True, high: float | None = None) -> None:
        value = getattr(self, name)
        if value is None and _default(self, name) is None:
            return
        kinds = int if whole else (int, float)
        wrong = isinstance(value, bool) or not isinstance(value, kinds) or not abs(value) < 2**64  # NaN is not below
        if wrong or value < low or (high is not None and value > high):
            kind = "a whole number" if whole else "a number"
            upper = "" if high is None else f" and at most {high:g}"
            raise SettingsError(f"{name} must be {kind} of {low:g} or more{upper}, got {value!r}")

    def _check_text(self, name: str) -> None:
        value = getattr(self, name)
        if value is None and _default(self, name) is None:
            return
        check_text(value, name)
        if not value.strip():
            raise SettingsError(f"{name} must be text that is not empty, got {value!r}: leave it out for none")

    def _check_flag(self, name: str) -> None:
        value = getattr(self, name)
        if not isinstance(value, bool):
            raise SettingsError(f"{name} must be True or False, got {value!r:.80}")

    def _check_choice(self, name: str, choices: Sequence[Any], optional: bool = False) -> None:
        value = getattr(self, name)
        known_value = isinstance(value, (str, int)) and value in choices
        if not known_value and not (optional and value is None):
            known = ", ".join(str(choice) for choice in choices)
            raise SettingsError(f"{name} must be one of {known}, got {value!r}")


def _default(options: OptionSet, name: str) -> Any:
    return next(field.default for field in dataclasses.fields(options) if field.name == name)  # type: ignore[arg-type]


def check_text(value: Any, name: str) -> None:
    """Raise SettingsError for what is no text that can be written as UTF-8."""
    if not isinstance(value, str):
        raise SettingsError(f"{name} must be text, got {value!r:.80}")
    if any("\ud800" <= letter <= "\udfff" for letter in value):
        raise SettingsError(f"{name} holds half of a character (a lone surrogate), which is no text: {value!r:.80}")


def check_path(value: Any, name: str) -> None:
    """Raise SettingsError for what no file or folder can be called. Names in odd encodings are fine."""
    if not isinstance(value, (str, os.PathLike)) or not isinstance(os.fspath(value), str) or not os.fspath(value):
        raise SettingsError(f"{name} must be a path or URL, got {value!r:.80}")
    try:
        wrong = b"\0" in os.fsencode(value)
    except UnicodeEncodeError:
        wrong = True
    if wrong:
        raise SettingsError(f"{name} must be a path or URL, got {value!r:.80}: no file can have this name")


def check_target_file(path: str | Path, endings: Sequence[str], what: str) -> Path:
    """Return the path of a file of such an ending that can be written. Raises SettingsError."""
    check_path(path, what)
    target = Path(path)
    if target.suffix.lower() not in endings:
        raise SettingsError(f"cannot write {what} to '{target}': end its name in {', '.join(endings)}")
    if not target.parent.is_dir():
        raise SettingsError(f"cannot write '{target}': the folder '{target.parent}' does not exist")
    try:
        if target.exists():
            with target.open("ab"):
                pass
        else:
            tempfile.TemporaryFile(dir=target.parent).close()
    except OSError as error:
        raise SettingsError(f"cannot write '{target}': {error.strerror}; name another place") from None
    return target


def check_callable(value: Any, name: str) -> None:
    """Raise SettingsError for what is neither None nor can be called."""
    if value is not None and not callable(value):
        raise SettingsError(f"{name} must be a function or None, got {value!r:.80}")


def check_methods(value: Any, name: str, methods: Sequence[str], cure: str) -> None:
    """Raise SettingsError for an object that lacks what is called; a class in place of an object, too."""
    if isinstance(value, type) or not all(hasattr(value, method) for method in methods):
        raise SettingsError(f"{name} must be {cure}, got {value!r:.80}")


_ONE_SAMPLING = "at lists the times of all frames, which does not go with {}: leave one of them out"

DETAIL = {"low": 128 * 28 * 28, "medium": 384 * 28 * 28, "high": 768 * 28 * 28}
"""Pixels of a frame at most, by a word: 128, 384 and 768 patches of 28 x 28."""


@dataclass(frozen=True, kw_only=True)
class LoadOptions(OptionSet):
    """How a model is loaded; see `VideoX2L.from_pretrained`."""

    device: str | None = option(None, "cpu, cuda, cuda:1, ...", show="cuda where there is one")
    dtype: str = option("auto", "auto (of the checkpoint; float32 on the CPU), float32, bfloat16 or float16.")
    device_map: Any = option(
        None, 'Spread the model over devices: "auto", or JSON of modules and devices. Needs accelerate.', type=str
    )
    quantize: Any = option(None, "Weights in 4bit or 8bit. Needs bitsandbytes.", type=str)
    revision: str | None = option(None, "Branch, tag or commit of a hub repository.")
    max_pixels: int | None = option(
        None, "Pixels per frame at most, where the model resizes to a budget: fewer pixels, fewer tokens.", type=int
    )
    detail: str | None = option(
        None,
        "A word for --max-pixels: low (100352), medium (301056) or high (602112), however long the video.",
        show="the model's own; of long videos a share of its budget",
    )
    check: bool = option(True, "Compare a model with the stock one when it is first loaded.")

    def __post_init__(self) -> None:
        self._check_number("max_pixels", 1)
        for name in ("device", "dtype", "revision", "detail"):
            self._check_text(name)
        self._check_flag("check")
        if self.quantize is not None and not isinstance(self.quantize, str):
            check_methods(self.quantize, "quantize", ["quant_method"], "4bit, 8bit or a quantization config")
        kind = type(self.device_map)  # also a torch.device, or the number of a GPU; this module knows no torch
        known_kind = kind.__name__ == "device" or (issubclass(kind, (str, Mapping, int)) and kind is not bool)
        if self.device_map is not None and not (known_kind and self.device_map not in ("", {})):
            raise SettingsError(f"device_map must be a word such as auto, or a map of modules, got {self.device_map!r}")
        if self.detail is None:
            return
        if self.detail not in DETAIL:
            raise SettingsError(f"detail={self.detail!r} is not known: use {', '.join(DETAIL)}")
        if self.max_pixels not in (None, DETAIL[self.detail]):
            raise SettingsError(
                f"detail='{self.detail}' is a word for max_pixels={DETAIL[self.detail]}: give one of both"
            )
        self._set("max_pixels", DETAIL[self.detail])


@dataclass(frozen=True, kw_only=True)
class IngestOptions(OptionSet):
    """How a video is sampled and compressed; see `VideoX2L.ingest`. Raises SettingsError for what cannot work."""

    fps: float | None = option(1.0, "Frames sampled per second of video; native takes every frame.", type=str)
    max_frames: int | None = option(None, "Sample at most this many frames: fps is lowered until they fit.", type=int)
    start: float | None = option(None, "Read from this time on, such as 90 or 1:30.", metavar="TIME", type=str)
    end: float | None = option(None, "Read up to this time.", metavar="TIME", type=str)
    at: tuple[float, ...] | None = option(
        None,
        "In place of --fps: exactly the frames that are shown at these times, such as 0:05,0:12.5,1:03, or those of a "
        "file, one a line.",
        metavar="TIMES|FILE",
        type=str,
        reads="times",
    )
    sampling: str = option("auto", "auto, exact (decode every frame) or fast (key frames where near enough).")
    ratios: tuple[float, ...] = option(
        (2, 32), "Compression ratio of each level, finest (L) first; the last is H.", type=str, show="2,32"
    )
    compressor: Any = option(
        None, "keydiff, echo, snap, uniform, pool or summary.", type=str, show="the model's, mostly keydiff"
    )
    history: str = option("H", "What a chunk sees of earlier ones: H, L, recent:N, own or fused.")
    l_tier: str = option(
        "stored", "stored keeps L; lazy keeps visual tokens and makes L when first wanted; none keeps H alone."
    )
    l_bits: int | None = option(None, "Keep L in 8 or 4 bits.", type=int, show="the model's own dtype")
    h_bits: int | None = option(None, "Keep H in 8 or 4 bits.", type=int, show="the model's own dtype")
    chunk_frames: int | None = option(
        None, "Sampled frames per chunk, the unit of selection.", type=int, show="the model's, mostly 8"
    )
    window_chunks: int | None = option(
        None,
        "Chunks that the decoder reads in one forward; each sees those before it in its window in full.",
        type=int,
        show="1; on CUDA as many as make about 2,000 tokens, of a live video 1",
    )
    embedder: Any = option(
        None, "Embed frames with this dual encoder (CLIP, SigLIP), for selector embedding.", metavar="ID|DIR", type=str
    )
    subtitles: str | Path | Sequence[Cue] = option(
        (), 'An SRT or VTT file, or "embedded" for a text track of the video.', metavar="FILE|embedded", type=str
    )
    transcribe: Any = option(
        None,
        "Write down what is said, as subtitles, with this Whisper model: base, large-v3, ..., a folder or a hub id. "
        "Needs faster-whisper.",
        metavar="MODEL",
        type=str,
    )
    language: str | None = option(None, "With --transcribe: the language, such as en.", show="found in the sound")
    audio_track: int = option(1, "With --transcribe: which sound track, counted from 1.")
    system: str | None = option(
        None, "The system text of the prompt. It stands before the video: a memory keeps it.", metavar="TEXT"
    )
    live: bool = option(False, "More will be appended: no chunk is treated as the last of the video.", hidden=True)

    @classmethod
    def from_keywords(cls, options: Self | None = None, keywords: Mapping[str, Any] | None = None) -> Self:
        """Return `options`, or the defaults, with `keywords` in their place. Raises SettingsError."""
        if keywords and keywords.get("at") is not None and "fps" in keywords:  # a default cannot be told from a wish
            raise SettingsError(_ONE_SAMPLING.format("fps"))
        return super().from_keywords(options, keywords)

    def __post_init__(self) -> None:
        fps: Any = self.fps
        if isinstance(fps, str):
            self._set("fps", None if fps == "native" else _number(fps, "fps"))
        self._set("start", as_time(self.start, "start"))
        self._set("end", as_time(self.end, "end"))
        self._set("at", as_times(self.at, "at"))
        self._set("ratios", _ratios(self.ratios))
        self._check_choice("sampling", SAMPLING_MODES)
        self._check_choice("l_tier", L_TIERS)
        self._check_choice("l_bits", BITS, optional=True)
        self._check_choice("h_bits", BITS, optional=True)
        self._check_number("max_frames", 1)
        self._check_number("chunk_frames", 1)
        self._check_number("window_chunks", 1)
        self._check_number("audio_track", 1)
        self._check_text("system")
        self._check_text("history")
        self._check_text("language")
        self._check_flag("live")
        if self.compressor is not None and not isinstance(self.compressor, str):
            check_methods(self.compressor, "compressor", ["compress", "compact"], "a name or a Compressor")
        if self.embedder is not None and not isinstance(self.embedder, str):
            check_methods(self.embedder, "embedder", ["identity", "of_chunk"], "a folder, a hub id or a DualEncoder")
        if self.transcribe is not None and not isinstance(self.transcribe, (str, Path)):
            check_methods(self.transcribe, "transcribe", ["name", "words"], "the name of a model or a Transcriber")
        self._check_subtitles()
        if self.transcribe is not None and self.subtitles not in ((), []):
            raise SettingsError("subtitles and transcribe both make the subtitles of a memory: use one of them")
        if self.fps is not None:
            self._check_number("fps", 0, whole=False)
            if self.fps == 0:
                raise SettingsError("fps must be above 0, got 0; None takes every frame")
        if self.start is not None and self.end is not None and self.end <= self.start:
            raise SettingsError(f"end must be above start={self.start:g} s, got {self.end:g} s")
        if self.at is not None:
            self._check_one_sampling()
        if self.l_tier == "lazy" and self.compressor is not None and not isinstance(self.compressor, str):
            raise SettingsError("l_tier='lazy' needs a compressor by name: levels are made later, maybe elsewhere")
        if self.l_tier == "none":
            self._set("ratios", self.ratios[-1:])

    def _check_one_sampling(self) -> None:
        """Raise SettingsError where times are listed, and something else says which frames to take, too."""
        others = {name: getattr(self, name) is not None for name in ("max_frames", "start", "end")}
        others |= {"fps": self.fps != _default(self, "fps"), "sampling=fast": self.sampling == "fast"}
        for name in others:
            if others[name]:
                raise SettingsError(_ONE_SAMPLING.format(name))

    def _check_subtitles(self) -> None:
        cues = self.subtitles
        if isinstance(cues, (str, Path)):
            check_path(cues, "subtitles")
        elif not isinstance(cues, (list, tuple)) or not all(isinstance(cue, Cue) for cue in cues):
            raise SettingsError(f"subtitles must be a file, embedded, or a list of cues, got {cues!r:.80}")


@dataclass(frozen=True, kw_only=True)
class SamplingParams(OptionSet):
    """How the next token is chosen. `temperature=0` is greedy; otherwise it is drawn from `seed`.

    None leaves a setting to the checkpoint's generation config. Penalties and suppressed tokens of that config hold for
    greedy decoding too, as in transformers' `generate`; its `do_sample` and `temperature` do not.
    """

    max_new_tokens: int = option(128, "Length limit of an answer, in tokens.")
    temperature: float = option(0.0, "0 is greedy.")
    top_p: float | None = option(
        None, "Nucleus sampling, with a temperature above 0.", type=float, show="the model's, else 1"
    )
    top_k: int | None = option(
        None, "Draw from so many tokens at most, with a temperature above 0; 0 is all.", type=int, show="the model's"
    )
    min_p: float | None = option(
        None, "Leave out tokens below this share of the likeliest one.", type=float, show="the model's, else 0"
    )
    repetition_penalty: float | None = option(
        None, "Above 1: tokens that stand in prompt or answer become less likely.", type=float, show="the model's"
    )
    presence_penalty: float | None = option(
        None, "Subtracted from the logits of tokens that the answer holds.", type=float, show="the model's, else 0"
    )
    seed: int = option(0, "Seed of sampling.")
    logprobs: int | None = option(
        None, "Tell the log probability of each token, and of so many likely ones in its place (0 to 20).", type=int
    )
    stop: tuple[str, ...] = option((), "End the answer before this text; repeatable.", metavar="TEXT", type=list[str])

    def __post_init__(self) -> None:
        stop: Any = self.stop
        self._set("stop", (stop,) if isinstance(stop, str) else tuple(_several(stop, "stop")))
        if not all(isinstance(text, str) and text for text in self.stop):
            raise SettingsError(f"stop must be texts that are not empty, got {list(self.stop)!r}")
        self._check_number("max_new_tokens", 1, high=1_000_000)
        self._check_number("temperature", 0, whole=False, high=1000)
        self._check_number("top_p", 0, whole=False, high=1)
        if self.top_p == 0:
            raise SettingsError("top_p must be above 0 and at most 1, got 0")
        self._check_number("top_k", 0)
        self._check_number("min_p", 0, whole=False, high=1)
        self._check_number("repetition_penalty", 1e-3, whole=False)
        self._check_number("presence_penalty", -2, whole=False, high=2)
        self._check_number("seed", 0, high=2**63 - 1)
        self._check_number("logprobs", 0, high=20)


@dataclass(frozen=True, kw_only=True)
class AskOptions(SamplingParams):
    """What is re-loaded for a question, and how its answer is decoded; see `VideoX2L.ask`."""

    reload: Any = option(
        3,
        "What to re-load per question: a number of chunks, all, none, tokens:N (split by score), bytes:200M, "
        "mass:0.9 (of the scores) or latency:0.5s; after a comma also max:N (with mass and latency), ends (first and "
        "last chunk), neighbours:N.",
        type=str,
    )
    selector: Any = option(
        DEFAULT_SELECTOR,
        "What scores the chunks: exact, keys, attention, embedding (see --embedder), embed-dot, text (of subtitles), "
        "uniform, random, manual:A-B, or several as fuse:keys+text.",
        type=str,
    )
    pinned: tuple[TimeRange, ...] = option(
        (), "Always re-load this time range; repeatable.", flag="--pin", metavar="A-B", type=list[str]
    )
    excluded: tuple[TimeRange, ...] = option(
        (), "Never re-load this time range; repeatable.", flag="--exclude", metavar="A-B", type=list[str]
    )
    as_of: float | None = option(None, "See only what is over at this time, such as 12:30.", metavar="TIME", type=str)
    within: TimeRange | None = option(None, "See only this time range.", metavar="A-B", type=str)
    said: str | None = option(None, "See only moments whose subtitles hold this text.", metavar="TEXT")
    subtitles: bool = option(
        False, "Put the subtitles of the re-loaded chunks in front of the question.", flag="--with-subtitles"
    )
    escalate: Any = option(
        False, "Begin with one chunk; re-load more, up to --reload, only while unsure.", type=bool, flag="--escalate"
    )
    reselect_every: int | None = option(
        None, "Choose the chunks again after every so many tokens of the answer.", metavar="TOKENS", type=int
    )
    system: str | None = option(None, "The system text that the memory must have been made with.", hidden=True)
    turns: tuple[tuple[str, str], ...] = option(
        (),
        "Examples to stand before the question: a JSON list of messages, user and assistant in turn.",
        metavar="FILE",
        type=str,
        reads="json",
    )
    prompt_template: str | None = option(
        None, "The text that is asked, with {question} in it; selectors read the question alone.", metavar="TEXT"
    )
    choices: tuple[str, ...] = option(
        (),
        "Weigh these answers instead of writing one: with commas, or a JSON list.",
        metavar="A,B,C",
        type=str,
    )
    calibrate: bool = option(False, "With --choices: take the one that gains most from the video.")
    json_schema: Mapping[str, Any] | None = option(
        None, "Answer with JSON of the schema in this file. Needs llguidance.", metavar="FILE", type=str, reads="json"
    )
    abstain: float | None = option(
        None,
        "Answer that the video does not show it where the answer's tokens surprise the model by more than this on "
        "average. The threshold belongs to a model (docs/asking.md).",
        metavar="NATS",
        type=float,
    )
    why: tuple[float, ...] = option(
        (), "Explain the score of the moment at this time; repeatable.", metavar="TIME", type=list[str]
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._set("pinned", tuple(as_range(part, "pinned") for part in _several(self.pinned, "pinned")))
        self._set("excluded", tuple(as_range(part, "excluded") for part in _several(self.excluded, "excluded")))
        self._set("as_of", as_time(self.as_of, "as_of"))
        self._set("within", None if self.within is None else as_range(self.within, "within"))
        self._set("why", tuple(as_time(part, "why") for part in _several(self.why, "why")))
        self._set("turns", _turns(self.turns))
        self._check_number("abstain", 0, whole=False)
        self._check_text("system")
        self._check_text("prompt_template")
        if self.prompt_template is not None and self.prompt_template.count(_QUESTION) != 1:
            raise SettingsError(f"prompt_template must hold {_QUESTION} once, got {self.prompt_template!r}")
        self._check_text("said")
        self._check_flag("subtitles")
        self._check_flag("calibrate")
        if not isinstance(self.selector, str):
            check_methods(self.selector, "selector", ["score"], "a name such as exact, or a Selector")
        self._check_number("reselect_every", 1)
        if self.reselect_every is not None and self.escalate:
            raise SettingsError("reselect_every and escalate both change what is re-loaded: use one of them")

        self._set("choices", _choices(self.choices))
        if self.calibrate and not self.choices:
            raise SettingsError("calibrate goes with choices: give both")
        if self.json_schema is not None and not isinstance(self.json_schema, Mapping):
            raise SettingsError(f"json_schema must be a JSON object, got {self.json_schema!r:.60}")
        for name in ("choices", "json_schema"):
            wrong: dict[str, Any] = {"stop": self.stop, "reselect_every": self.reselect_every}
            if name == "json_schema":
                wrong |= {"abstain": self.abstain is not None}
            else:
                wrong |= {"escalate": self.escalate, "temperature": self.temperature, "json_schema": self.json_schema}
            if getattr(self, name) not in ((), None) and any(wrong.values()):
                raise SettingsError(f"{name} and {next(w for w in wrong if wrong[w])} do not go together: use one")

    def worded(self, question: str) -> str:
        """Return the text that is asked for a question: with what the prompt template puts around it."""
        return question if self.prompt_template is None else self.prompt_template.replace(_QUESTION, question)


@dataclass(frozen=True, kw_only=True)
class LibraryOptions(OptionSet):
    """How the memories of a library are searched; see `VideoX2L.ask_library`."""

    search: Any = option(
        "exact:nothing",
        "With --library, what finds its moments: exact:nothing, keys, embedding, embed-dot, text, or several as "
        "fuse:exact:nothing+text.",
        type=str,
    )
    videos: int = option(2, "With --library, answer from at most so many memories.")
    moments: int = option(10, "With --library, tell so many of the moments that were found.")

    def __post_init__(self) -> None:
        self._check_number("videos", 1)
        self._check_number("moments", 1)


@dataclass(frozen=True, kw_only=True)
class ScaleOptions(OptionSet):
    """How many videos are ingested by a Ray cluster; see `videox2l.scale.ingest_many`."""

    ray: str = option(
        "local",
        "With --library, the Ray cluster that ingests: HOST:PORT, auto (the one of this machine), or local.",
        metavar="ADDRESS",
    )
    workers: int | None = option(
        None, "With --library, models at once.", type=int, show="as many as the GPUs take, or one per machine"
    )
    gpus: float = option(0.0, "With --library, GPUs per worker; 0.5 lets two share one.")
    retries: int = option(2, "With --library, try what failed so many times more.")

    def __post_init__(self) -> None:
        self._check_number("workers", 1)
        self._check_number("gpus", 0, whole=False)
        self._check_number("retries", 0)
        if not self.ray:
            raise SettingsError("ray must be an address such as 10.0.0.1:6379, auto or local, got ''")


@dataclass(frozen=True, kw_only=True)
class ServeOptions(OptionSet):
    """How models and memories are served over HTTP; see docs/serving.md. Sizes are bytes or text such as "2G"."""

    library: str | Path = option("library", "Folder of memories and uploaded videos; made where there is none.")
    host: str = option("127.0.0.1", "Address to listen at. Beyond this machine only with --api-key-file.")
    port: int = option(8000, "Port; 0 takes a free one.")
    api_key_file: str | Path | None = option(
        None, "Hashed keys with scopes (make them with --add-key). Without it only this machine is served.", type=str
    )
    allow_files: tuple[str, ...] = option(
        (), "Folder of which file:// videos may be read; repeatable.", metavar="DIR", type=list[str]
    )
    allow_hosts: tuple[str, ...] = option(
        (), "Host from which https:// videos may be fetched; repeatable.", metavar="HOST", type=list[str]
    )
    max_upload: Any = option("4G", "Bytes of an uploaded or fetched video at most.", metavar="SIZE")
    quota: Any = option(None, "Bytes that the library may take; nothing is added beyond.", metavar="SIZE", type=str)
    queue: int = option(64, "Questions that may wait; more are refused with 429.")
    device_kv: Any = option("8G", "Bytes that H of all memories may take on the device.", metavar="SIZE")
    batch: int = option(8, "Questions that are answered together, a token of each at a time.")
    timeout: float = option(300.0, "Seconds in which a question must be answered, waiting included.")
    max_answer: int = option(4096, "Tokens that an answer may be asked to have at most.")
    log_format: str = option("text", "How standard error is written: text or json, a line for each event.")
    demo: bool = option(False, "Render a video of the demo world and ingest it first.")
    ray: str | None = option(
        None,
        "Ray cluster whose machines hold the model: HOST:PORT, auto (the one of this machine), or local. All of them "
        "must see the library and the model under the same paths.",
        metavar="ADDRESS",
    )
    replicas: str = option("1", "With --ray, models at once; or as many as questions need.", metavar="N|MIN:MAX")
    gpus: float = option(0.0, "With --ray, GPUs per replica; 0.5 lets two share one.")

    def __post_init__(self) -> None:
        if re.match(r"\w{2,}:/", str(self.library)):
            raise SettingsError(f"library must be a folder, got '{self.library}': copy its memories into a folder")
        self._set("library", Path(self.library))
        low, high = self.replica_bounds()
        if not 1 <= low <= high:
            raise SettingsError(f"replicas must be such as 2 or 1:4, got {self.replicas!r}")
        self._check_number("gpus", 0, whole=False)
        if self.ray is None and (self.replicas, self.gpus) != ("1", 0):
            raise SettingsError("replicas and gpus go with a Ray cluster: give ray too, such as local")
        self._set("max_upload", _size(self.max_upload, "max_upload"))
        self._set("device_kv", _size(self.device_kv, "device_kv"))
        self._set("quota", None if self.quota is None else _size(self.quota, "quota"))
        if self.log_format not in ("text", "json"):
            raise SettingsError(f"log_format must be text or json, got {self.log_format!r}")
        self._check_number("port", 0, high=65535)
        self._check_number("queue", 1)
        self._check_number("batch", 1)
        self._check_number("max_answer", 1, high=1_000_000)
        self._check_number("timeout", 0.1, whole=False)

    def replica_bounds(self) -> tuple[int, int]:
        """Return the least and the most replicas that `replicas` means; (0, 0) where it is not understood."""
        found = re.fullmatch(r"(\d{1,6})(?::(\d{1,6}))?", str(self.replicas))
        return (0, 0) if found is None else (int(found[1]), int(found[2] or found[1]))


class LoadKeywords(TypedDict, total=False):
    """The fields of `LoadOptions`, as keywords."""

    device: str | None
    dtype: str
    device_map: Any
    quantize: Any
    revision: str | None
    max_pixels: int | None
    detail: str | None
    check: bool


class IngestKeywords(TypedDict, total=False):
    """The fields of `IngestOptions`, as keywords."""

    fps: float | None
    max_frames: int | None
    start: float | str | None
    end: float | str | None
    at: Sequence[float | str] | str | None
    sampling: str
    ratios: Sequence[float] | str
    compressor: Any
    history: str
    l_tier: str
    l_bits: int | None
    h_bits: int | None
    chunk_frames: int | None
    window_chunks: int | None
    embedder: Any
    subtitles: str | Path | Sequence[Cue]
    transcribe: Any
    language: str | None
    audio_track: int
    system: str | None
    live: bool


class AskKeywords(TypedDict, total=False):
    """The fields of `AskOptions`, as keywords."""

    reload: Any
    selector: Any
    pinned: Sequence[TimeRange | str]
    excluded: Sequence[TimeRange | str]
    as_of: float | str | None
    within: TimeRange | str | None
    said: str | None
    subtitles: bool
    escalate: Any
    reselect_every: int | None
    system: str | None
    turns: Sequence[tuple[str, str] | Mapping[str, Any]]
    prompt_template: str | None
    choices: Sequence[str] | str
    calibrate: bool
    json_schema: Mapping[str, Any] | None
    abstain: float | None
    why: Sequence[float | str]
    max_new_tokens: int
    temperature: float
    top_p: float | None
    top_k: int | None
    min_p: float | None
    repetition_penalty: float | None
    presence_penalty: float | None
    seed: int
    logprobs: int | None
    stop: Sequence[str] | str


def _size(value: Any, name: str) -> int:
    return parse_bytes(value, name) if isinstance(value, str) else int(value)


def _number(text: str, name: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise SettingsError(f"{name} must be a number, got '{text}'") from None


def _several(values: Any, name: str) -> Sequence[Any]:
    if isinstance(values, str) or not isinstance(values, (list, tuple)):
        raise SettingsError(f"{name} must be a list, got {values!r}; write {name}=[{values!r}]")
    if any(value is None for value in values):
        raise SettingsError(f"{name} must be a list without None, got {values!r:.80}")
    return values


def _turns(turns: Any) -> tuple[tuple[str, str], ...]:
    """Read pairs of question and answer, or chat messages: a user's and an assistant's in turn."""
    parts, flat = _several(turns, "turns"), list[Any]()
    for number, part in enumerate(parts):
        if isinstance(part, Mapping):
            wanted = "assistant" if len(flat) % 2 else "user"
            if part.get("role") == "system":
                raise SettingsError(f"turns[{number}] is a system message: give its text as system when ingesting")
            if part.get("role") != wanted:
                raise SettingsError(f"turns[{number}] must have role {wanted!r}, got {part.get('role')!r}")
            flat.append(part.get("content"))
        else:
            flat += part if isinstance(part, (list, tuple)) and len(part) == 2 else [None]
        if not all(isinstance(text, str) and text.strip() for text in flat):
            raise SettingsError(f"turns[{number}] must be a message with a text, or question and answer, got {part!r}")
    if len(flat) % 2:
        raise SettingsError(f"turns[{len(parts) - 1}] is a question without an answer: ask it, or answer it")
    return tuple(zip(flat[::2], flat[1::2], strict=True))


def _choices(choices: Any) -> tuple[str, ...]:
    if isinstance(choices, str):
        choices = [text.strip() for text in choices.split(",")]
    found = tuple(_several(choices, "choices"))
    if not all(isinstance(text, str) and text.strip() for text in found):
        raise SettingsError(f"choices must be texts that are not empty, got {list(found)!r}")
    if len(found) == 1 or len(set(found)) != len(found):
        raise SettingsError(f"choices must be two or more different texts, got {', '.join(found)}")
    return found


def _ratios(ratios: Any) -> tuple[float, ...]:
    parts = ratios.split(",") if isinstance(ratios, str) else ratios
    if not isinstance(parts, (list, tuple)) or not parts:
        raise SettingsError(f"ratios must be one or more numbers, finest first, such as 2,32; got {ratios!r}")
    found = tuple(_number(part, "ratios") if isinstance(part, str) else part for part in parts)
    for ratio in found:
        if isinstance(ratio, bool) or not isinstance(ratio, (int, float)) or not 1 <= ratio < math.inf:
            raise SettingsError(f"ratios must be numbers of 1 or more, got {ratio!r}")
    if list(found) != sorted(set(found)):
        raise SettingsError(f"ratios must rise, finest first, such as 2,32; got {', '.join(f'{r:g}' for r in found)}")
    return tuple(float(ratio) for ratio in found)
