"""What all public benchmarks share: annotations and videos in a folder, and telling what is missing before a run."""

from __future__ import annotations

import hashlib
import json
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError, VideoError, VideoWarning
from videox2l.evaluate.base import BenchmarkOptions, Row, Sample
from videox2l.units import Cue
from videox2l.video import FrameSampling, FrameSource, open_video
from videox2l.video.decode import first_frame
from videox2l.video.files import admit

_OF_VIDEOS = ("videos", "pictures in video files (cut short or damaged)")
SHOWN = 5
"""So many missing things are named; the others are counted."""


@dataclass
class Problems:
    """What is missing or wrong, by kind: `{"videos": ["data/a.mp4", ...]}`."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, name: str) -> None:
        """Note one thing, once."""
        names = self.found.setdefault(kind, [])
        if name not in names:
            names.append(name)

    def sentences(self) -> Iterator[str]:
        """Yield one part of a message per kind: how many, and the first few by name."""
        for kind, names in self.found.items():
            more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
            yield f"{len(names)} {kind}: {', '.join(names[:SHOWN])}{more}"


@dataclass(frozen=True)
class Loaded:
    """Annotations as read: samples (before any is left out), where each video should be, and problems of fields."""

    samples: Sequence[Sample]
    paths: Mapping[str, Path | None]
    problems: Problems
    digest: str


class FileBenchmark:
    """A benchmark in a folder. Subclasses read their annotations and score; all else is here.

    `splits`: names that `--split` may have. `archives`: patterns of the files in which videos are downloaded, with what
    to do about them. `places`: folders in which videos may lie, below the root.
    """

    name: str
    max_new_tokens = 16
    splits: tuple[str, ...] = ()
    archives: tuple[tuple[str, str], ...] = ()
    has_subtitles = False

    def __init__(self, options: BenchmarkOptions) -> None:
        if options.data is None:
            raise SettingsError(
                f"{self.name} needs --data: the folder into which it was downloaded (docs/benchmarks.md)"
            )
        if options.split is not None and options.split not in self.splits:
            known = ", ".join(self.splits) or "no splits"
            raise SettingsError(f"split '{options.split}' is not known: {self.name} has {known}")
        if options.subtitles and not self.has_subtitles:
            raise SettingsError(f"{self.name} comes without subtitles: leave out --subtitles")
        if not options.data.is_dir():
            raise SettingsError(
                f"'{options.data}' is no folder: --data takes the one into which {self.name} was downloaded"
            )
        self.options = options
        self.root = options.data
        fps = 1.0 if options.fps is None and options.frames is None else options.fps
        self.sampling = FrameSampling(fps=fps, max_frames=options.frames)
        self._lines: tuple[str, Sequence[Cue]] | None = None
        self._checked = False

    def load(self) -> Loaded:
        """Read the annotations. Raises SettingsError where there are none."""
        raise NotImplementedError

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return how right a prediction is; None where a judge would be needed."""
        raise NotImplementedError

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the official figures."""
        raise NotImplementedError

    def prompt(self, sample: Sample, pts: Sequence[float]) -> str:
        """Return the question as it is."""
        return sample.question

    def subtitles(self, video: str) -> Sequence[Cue]:
        """Return the lines of a video where they are wanted; those of the video asked for last are held."""
        if not self.options.subtitles:
            return ()
        if self._lines is None or self._lines[0] != video:
            self._lines = video, self.read_lines(video)
        return self._lines[1]

    def read_lines(self, video: str) -> Sequence[Cue]:
        """Read the subtitles of a video. Raises SettingsError, VideoError."""
        raise NotImplementedError

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked: annotations by their hash, options; not where they lie."""
        return {
            "annotations": self._loaded.digest,
            "split": self.options.split,
            "seed": self.options.seed,
            "questions": self.options.questions,
            "tasks": list(self.options.tasks),
            "fps": self.sampling.fps,
            "frames": self.sampling.max_frames,
            "subtitles": self.options.subtitles,
        }

    def check(self) -> None:
        """Raise SettingsError that names every field and file that is missing for the samples that are wanted.

        Videos are opened, so that half a download is found too.
        """
        if self._checked:
            return
        problems = Problems({kind: list(names) for kind, names in self._loaded.problems.found.items()})
        for sample in self.samples():
            self.check_sample(sample, problems)
        for video in dict.fromkeys(sample.video for sample in self.samples()):
            self._check_video(video, problems)
        unusable = [names for kind, names in problems.found.items() if kind in _OF_VIDEOS]
        count = len({sample.video for sample in self.samples()})
        if not self.options.strict and 0 < sum(map(len, unusable)) < count:
            told = "; ".join(problems.sentences())
            warnings.warn(
                f"{self.name}: {told}: their questions are counted as unanswered (--strict stops instead)",
                VideoWarning,
                stacklevel=2,
            )
            problems = Problems({kind: names for kind, names in problems.found.items() if kind not in _OF_VIDEOS})
        if problems.found:
            told = "; missing ".join(problems.sentences())
            raise SettingsError(f"{self.name} in '{self.root}': missing {told}{self._packed()}")
        if not self.samples():
            raise SettingsError(f"{self.name} in '{self.root}' has no questions that are wanted")
        self._checked = True

    def check_sample(self, sample: Sample, problems: Problems) -> None:
        """Note what is missing of one sample besides its video."""

    def _check_video(self, video: str, problems: Problems) -> None:
        path = self._loaded.paths[video]
        if path is None:
            problems.add(_OF_VIDEOS[0], video)
            return
        try:
            first_frame(admit(path))
        except VideoError:
            problems.add(_OF_VIDEOS[1], video)

    def _packed(self) -> str:
        """Say what to do about archives that were downloaded and not unpacked."""
        hints = []
        for pattern, action in self.archives:
            found = sorted(path.name for path in self.root.glob(pattern))
            if found:
                hints.append(
                    f"{found[0]}{f' and {len(found) - 1} more' if len(found) > 1 else ''} lie there packed: {action}"
                )
        return f". {'; '.join(hints)}" if hints else ""

    @cached_property
    def _loaded(self) -> Loaded:
        return self.load()

    def samples(self) -> Sequence[Sample]:
        """Return the samples that are wanted, those of one video together."""
        return self._wanted

    @cached_property
    def _wanted(self) -> list[Sample]:
        samples = list(self._loaded.samples)
        if self.options.tasks:
            known = {name for sample in samples for name in (sample.kind, *sample.labels.values())}
            strange = [name for name in self.options.tasks if name not in known]
            if strange:
                raise SettingsError(
                    f"task '{strange[0]}' is not known: {self.name} has {', '.join(sorted(known)[:40])}"
                )
            samples = [s for s in samples if {s.kind, *s.labels.values()} & set(self.options.tasks)]
        if self.options.questions is not None:
            samples = some(samples, self.options.questions, self.options.seed)
        together: dict[str, list[Sample]] = {}
        for sample in samples:
            together.setdefault(sample.video, []).append(sample)
        return [sample for group in together.values() for sample in group]

    def open(self, video: str) -> AbstractContextManager[FrameSource]:
        """Open a video file."""
        path = self._loaded.paths[video]
        if path is None:
            raise SettingsError(f"{self.name}: video {video} is missing in '{self.root}'")
        return open_video(path, self.sampling)

    def place(self, *candidates: str) -> Path | None:
        """Return the first of these files below the root that is there, or None; annotations cannot lead out of it."""
        inside = [name for name in candidates if ".." not in Path(name).parts and not Path(name).is_absolute()]
        return next((self.root / name for name in inside if (self.root / name).is_file()), None)


def some(samples: Sequence[Sample], limit: int, seed: int) -> list[Sample]:
    """Return at most `limit` samples of videos drawn at random, groups whole, in the order in which they were."""
    videos = sorted({sample.video for sample in samples})
    random.Random(seed).shuffle(videos)
    rank = {video: number for number, video in enumerate(videos)}
    groups: dict[str, list[Sample]] = {}
    for sample in sorted(samples, key=lambda sample: rank[sample.video]):
        groups.setdefault(sample.group, []).append(sample)
    kept: set[str] = set()
    room = limit
    for group in groups.values():
        if len(group) <= room:
            room -= len(group)
            kept.update(sample.id for sample in group)
    return [sample for sample in samples if sample.id in kept]


def read_list(path: Path) -> list[dict[str, Any]]:
    """Read a JSON list of objects, or one object per line. Raises SettingsError that names the line."""
    text = path.read_text(encoding="utf-8")
    if text.lstrip().startswith("["):
        try:
            found = json.loads(text)
        except ValueError as error:
            raise SettingsError(f"'{path}' is no JSON: {error}") from None
    else:
        found = []
        for number, line in enumerate(text.splitlines(), 1):
            if line.strip():
                try:
                    found.append(json.loads(line))
                except ValueError as error:
                    raise SettingsError(f"'{path}' line {number} is no JSON: {error}") from None
    if not isinstance(found, list) or not all(isinstance(record, dict) for record in found):
        raise SettingsError(f"'{path}' is no list of records")
    return found


def read_parquet(path: Path) -> list[dict[str, Any]]:
    """Read the rows of a parquet file. Raises SettingsError when pyarrow is missing or the file cannot be read."""
    try:
        from pyarrow import ArrowException, parquet
    except ImportError:
        raise SettingsError(f"'{path.name}' is a parquet file: pip install 'videox2l[eval]'") from None
    try:
        rows: list[dict[str, Any]] = parquet.read_table(path).to_pylist()
    except (ArrowException, OSError) as error:
        raise SettingsError(f"'{path}' is no parquet file that can be read: {error}") from None
    return rows


def digest_of(paths: Sequence[Path]) -> str:
    """Return one SHA-256 over the names and contents of annotation files."""
    found = hashlib.sha256()
    for path in paths:
        found.update(f"{path.name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return found.hexdigest()


def lacking(record: Mapping[str, Any], fields: Sequence[str]) -> list[str]:
    """Return the names of fields that a record lacks or that are empty."""
    return [name for name in fields if record.get(name) is None or record[name] in ("", [])]


def percent(outcomes: Sequence[float]) -> float:
    """Return 100 times the mean; 0 without outcomes."""
    return 100 * sum(outcomes) / len(outcomes) if outcomes else 0.0


VIDEOMME_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
"""The official script lists four more, which its missing commas join into two that no reply contains."""

LONGVIDEOBENCH_PREFIXES = (
    *VIDEOMME_PREFIXES,
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def letters(count: int) -> str:
    """Return the letters of so many options."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def first_letter(reply: str, options: str, prefixes: tuple[str, ...]) -> str:
    """Return the first of the capital letters `options` anywhere in a reply, `prefixes` taken out wherever they stand.

    The rule of Video-MME (`evaluation/eval_your_results.py`) and of LongVideoBench's author (in lmms-eval).
    """
    for prefix in prefixes:
        reply = reply.replace(prefix, "")
    found = re.search(f"[{options}]", reply)
    return found[0] if found else ""


def before_bracket(reply: str, options: str) -> str:
    """Return what stands before the first closing bracket, if that is the letter of an option and nothing else.

    The rule of MLVU (`choice_bench.py`). There the model goes on behind an opening bracket; here it may write its own.
    """
    said = reply.strip().partition(")")[0].removeprefix("(").strip()
    return said if len(said) == 1 and said in options else ""


def earliest_in_alphabet(reply: str, options: str) -> str:
    """Return the first of `options`, in the order of the alphabet, that a reply has before its first full stop.

    The rule of VNBench (`evaluation/eval.py`).
    """
    said = reply.partition(".")[0]
    return next((letter for letter in options if letter in said), "")


def first_character(reply: str, options: str) -> str:
    """Return the first character, after what stands in brackets is taken out of them, if it is the letter of an option.

    The rule of LVBench (`lvbench/utils/answer_util.py`).
    """
    said = reply.strip().partition(")")[0].strip()
    if "(" in said:
        said = said.split("(")[1].strip()
    return said[:1] if said[:1] and said[:1] in options else ""
