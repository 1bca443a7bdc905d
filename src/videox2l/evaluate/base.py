"""What a benchmark, a method and a result are: the interfaces of the evaluation.

```
benchmark -> samples -> per video: encode once -> per method: prepare -> per question: ask -> row
rows -> summary (accuracy with intervals, paired tests) -> report
```
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from videox2l.errors import SettingsError

if TYPE_CHECKING:
    from videox2l.evaluate.encode import EncodedVideo
    from videox2l.units import Cue
    from videox2l.video import FrameSource


@dataclass(frozen=True)
class Sample:
    """One question of a benchmark.

    `id` is unique within the benchmark. `video`: samples with the same video share an ingest, and stand together.
    `question`: the text that is asked, as the benchmark's own prompt has it. `choices` and `truth` in the benchmark's
    own terms; `kind`: task or category, for tables. `moments`: seconds (start, end) of all that the question needs,
    empty where unknown. `cluster`: what shares its luck and is resampled as a whole, by default the video. `group`:
    samples of one group count as one question, right if all of them are (circular scoring), by default the sample
    alone. `labels`: further facts for tables, such as `{"duration": "short"}`. `query`: what selectors read, where the
    prompt has more than a question, such as instructions or subtitles; by default the question. `candidates`: the
    answer is the likeliest of these; empty: it is written freely.
    """

    id: str
    video: str
    question: str
    truth: str
    kind: str
    choices: tuple[str, ...] = ()
    moments: tuple[tuple[float, float], ...] = ()
    needs: tuple[tuple[tuple[float, float], ...], ...] = ()
    cluster: str = ""
    group: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    query: str = ""
    candidates: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "cluster", self.cluster or self.video)
        object.__setattr__(self, "group", self.group or self.id)
        object.__setattr__(self, "needs", self.needs or tuple((moment,) for moment in self.moments))


@dataclass(frozen=True)
class BenchmarkOptions:
    """What the command line says about a benchmark; a benchmark uses what applies to it and refuses the rest.

    `data`: its folder as downloaded. `questions`: at most so many, None for all. `frames`: sampled frames per video (at
    most, for files). `fps`: frames sampled per second of a file. `tasks`: kinds to keep, empty for all. `subtitles`:
    put them into the prompt as the benchmark's own protocol does. `density`: askable facts in 8 frames of generated
    videos, each seen `redundancy` times; 0: a few needles anywhere. `pages` of a text film. `max_new_tokens`:
    length of answers, if not the benchmark's. `strict`: a video or question that cannot be used ends the run, instead
    of being counted unanswered.
    """

    data: Path | None = None
    split: str | None = None
    seed: int = 0
    questions: int | None = None
    frames: int | None = None
    fps: float | None = None
    tasks: tuple[str, ...] = ()
    subtitles: bool = False
    density: int = 0
    redundancy: int = 1
    pages: int | None = None
    max_new_tokens: int | None = None
    strict: bool = False


class Benchmark(Protocol):
    """Videos, questions and a scoring rule."""

    name: str
    max_new_tokens: int

    def settings(self) -> dict[str, Any]:
        """Return, as plain JSON values, all that decides what is asked: two runs with equal settings ask the same."""

    def check(self) -> None:
        """Raise SettingsError or VideoError that names every missing file or field, before anything is run."""

    def samples(self) -> Sequence[Sample]:
        """Return the samples, those of one video next to one another; the same ones in every call."""

    def open(self, video: str) -> AbstractContextManager[FrameSource]:
        """Open the frames of a video."""

    def subtitles(self, video: str) -> Sequence[Cue]:
        """Return the subtitles of a video, which selectors may search."""

    def prompt(self, sample: Sample, pts: Sequence[float]) -> str:
        """Return the text that is asked, now that the times of the sampled frames are known (seconds).

        Mostly `sample.question`; protocols with subtitles put those of the sampled frames in front of it.
        """

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return how right a prediction is, 0 to 1; None where a judge that is not here would be needed."""

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the benchmark's own figures of the rows of one method at one budget, such as its official average.

        Empty where the mean over questions (`group`s) is all there is.
        """


@runtime_checkable
class Ranked(Protocol):
    """A benchmark that counts recall over the order of the scores, not over what was re-loaded."""

    def recalls(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return figures of the rows of one cell that take the place of `recall` in its summary, or stand beside it."""


@dataclass(frozen=True)
class MethodOutput:
    """What a method answered, and at what cost.

    Bytes are of KVs: `bytes_attended` by the question's first pass, its own tokens left out; `bytes_kept` between
    questions, wherever they lie; `bytes_device`: the part of these that has to stay on the device; `bytes_reloaded`:
    brought to the device for this question; `bytes_selected`: read to choose them. `flops_ingest`: of the language
    model, for the video. None where it is not known. `tokens`: columns attended, mean over layers. `seconds` by stage
    (select, reload, prefill, decode). `scores` of chunks, where there are any; `plan`: which part of the video was kept
    or re-loaded, as plain JSON values; `reloaded`: seconds (start, end) that the question sees in detail, None where
    the method chooses nothing.
    """

    text: str
    tokens: float
    bytes_attended: int
    bytes_kept: int
    bytes_device: int
    bytes_reloaded: int = 0
    bytes_selected: int | None = 0
    flops_ingest: int | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    scores: Sequence[float] | None = None
    plan: Any = None
    reloaded: Sequence[tuple[float, float]] | None = None

    @classmethod
    def nothing(cls) -> MethodOutput:
        """Return the output for a question that could not be answered."""
        return cls("", 0.0, 0, 0, 0)


class VideoSession(Protocol):
    """A method that has read one video."""

    def ask(self, sample: Sample) -> MethodOutput:
        """Answer one question. The order of questions makes no difference."""


class Method(Protocol):
    """A way of making KVs of a video small enough.

    `at_budget`: its attended bytes follow the budget (the others are reference rows). `uses_question`: what is kept
    or seen depends on the question. `reusable`: what is kept serves further questions without reading the video
    again. `about`: one line with the paper.
    """

    @property
    def name(self) -> str: ...  # noqa: D102

    @property
    def about(self) -> str: ...  # noqa: D102

    @property
    def at_budget(self) -> bool: ...  # noqa: D102

    @property
    def uses_question(self) -> bool: ...  # noqa: D102

    @property
    def reusable(self) -> bool: ...  # noqa: D102

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Read a video; `budget` is the share of full KV (prefix included) that a question may attend to."""


@dataclass(frozen=True)
class Row:
    """One line of `samples.jsonl`: one question, one method, one budget.

    `right` is None where the benchmark could not score. `recall`: share of what the sample needs that was re-loaded.
    `flops_ingest` of the language model for the video, `flops_question` of it for this question (selection included),
    `bytes_selected` read by selection alone. `manifest`: SHA-256 of which frames of what were sampled. `error`: why the
    question could not be answered, which counts as wrong and has no costs; empty for all others.
    """

    benchmark: str
    id: str
    video: str
    cluster: str
    group: str
    kind: str
    labels: Mapping[str, str]
    method: str
    budget: str
    question: str
    truth: str
    prediction: str
    right: float | None
    recall: float | None
    tokens: float
    bytes_attended: int
    bytes_full: int
    bytes_kept: int
    bytes_device: int
    bytes_reloaded: int
    bytes_selected: int | None
    flops_ingest: int | None
    flops_question: int | None
    seconds: Mapping[str, float]
    scores: Sequence[float] | None
    plan: Any
    manifest: str
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return the row as plain JSON values."""
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Row:
        """Read a row; raises KeyError or TypeError for one that lacks fields."""
        names = [field.name for field in dataclasses.fields(cls)]
        return cls(**{name: values[name] for name in names if name in values or name != "error"})


def parse_budget(text: str) -> Fraction:
    """Read a share of full KV such as '1/8' or '0.125'."""
    try:
        share = Fraction(text.strip())
    except (ValueError, ZeroDivisionError):
        raise SettingsError(f"budget '{text}' is no share of full KV: write such as 1/8") from None
    if not 0 < share <= 1:
        raise SettingsError(f"budget {text} is not possible: use more than 0 and at most 1")
    return share
