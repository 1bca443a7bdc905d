"""Multiple-choice benchmarks that a YAML file describes: fields, places of videos, prompt, and scoring rule."""

from __future__ import annotations

import csv
import dataclasses
import string
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, Row, Sample
from videox2l.evaluate.benchmarks.files import (
    VIDEOMME_PREFIXES,
    FileBenchmark,
    Loaded,
    Problems,
    before_bracket,
    digest_of,
    earliest_in_alphabet,
    first_character,
    first_letter,
    lacking,
    letters,
    percent,
    read_list,
    read_parquet,
)
from videox2l.options import OptionSet
from videox2l.units import parse_range

SCORING: dict[str, Callable[[str, str], str]] = {
    "first letter": lambda reply, options: first_letter(reply, options, VIDEOMME_PREFIXES),
    "first character": first_character,
    "before bracket": before_bracket,
    "earliest letter": earliest_in_alphabet,
}
"""Name of a rule -> the option that a reply names, by the rules of Video-MME, LVBench, MLVU and VNBench."""
ANSWERS = ("letter", "text", "index")
OVER = ("questions", "kinds")
_DERIVED = ("number", "options", "video", "base", "stem")
_FORMATTER = string.Formatter()


@dataclass(frozen=True, kw_only=True)
class Description(OptionSet):
    """What a YAML file says about a benchmark.

    Texts are templates: `{name}` is a field of a record, `{type:.3}` its first three characters; `{number}` the
    record's number. In all but `video`, which names the video: `{video}` that name, `{base}` and `{stem}` its file
    name with and without its ending, `{options}` the options as listed. `annotations`: patterns of files: JSON,
    JSON lines, parquet or CSV. `records`: the field that holds a list of records, whose fields are joined with
    those around them. `places`: where a video may lie. `options`: a field with a list, a list of fields, or letters
    such as "ABCD" where the question lists them itself; `option`: how one is listed. `answer`: the field of the
    right one, which is its `letter`, its `text`, or its `index` from 0. `group` and `tries`: records of one group
    count as one question, right if all are, and there are so many. `cluster`: what shares its luck, with
    `cluster_without` taken off its end. `moments`: a field with a time range, or with seconds of which each is a
    moment of one second. `scoring`: a rule of `SCORING`. Kinds and labels are figures, each by its value; by
    `over`, one is the mean over questions, or over kinds. `archives`: patterns of files that have to be
    unpacked, with what to do.
    """

    name: str = ""
    annotations: tuple[str, ...] = ()
    records: str = ""
    id: str = "{number}"
    video: str = ""
    places: tuple[str, ...] = ()
    question: str = ""
    query: str = ""
    options: Any = ()
    option: str = "{letter}. {option}"
    answer: str = ""
    answer_is: str = "letter"
    kind: str = "all"
    labels: Mapping[str, str] = field(default_factory=dict)
    group: str = ""
    tries: int | None = None
    cluster: str = ""
    cluster_without: str = ""
    moments: str = ""
    scoring: str = "first letter"
    over: str = "questions"
    max_new_tokens: int = 16
    archives: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("annotations", "places"):
            value = getattr(self, name)
            self._set(name, (value,) if isinstance(value, str) else tuple(value or ()))
        for name in ("name", "annotations", "video", "places", "question", "options", "answer"):
            if not getattr(self, name):
                raise SettingsError(f"{name} is missing: every description has one")
        self._check_choice("answer_is", ANSWERS)
        self._check_choice("scoring", tuple(SCORING))
        self._check_choice("over", OVER)
        self._check_number("max_new_tokens", 1)
        self._check_number("tries", 1)
        if self.answer_is != "letter" and self.listed:
            raise SettingsError(f"answer_is: {self.answer_is} needs options of the records, got {self.options!r}")
        for text in (self.video, *self.templates):
            names_in(text)
        wrong = [name for name in names_in(self.option) if name not in ("letter", "option")]
        if wrong:
            raise SettingsError(f"option may hold {{letter}} and {{option}}, got {{{wrong[0]}}}")

    @property
    def listed(self) -> str:
        """The letters of options that the question lists itself; empty where the records have the options."""
        return self.options if isinstance(self.options, str) and self.options == letters(len(self.options)) else ""

    @property
    def templates(self) -> list[str]:
        """All texts with fields of a record in them but `video`."""
        texts = [self.id, *self.places, self.question, self.query, self.kind, self.group, self.cluster]
        return [*texts, self.cluster_without, *self.labels.values()]

    @property
    def fields(self) -> list[str]:
        """The fields that every record must have."""
        names = [name for text in self.templates for name in names_in(text) if name not in _DERIVED]
        names += [name for name in names_in(self.video) if name != "number"]
        options = [] if self.listed else [self.options] if isinstance(self.options, str) else list(self.options)
        return list(dict.fromkeys([*names, *options, self.answer]))

    def options_of(self, record: Mapping[str, Any]) -> tuple[str, ...]:
        """Return the options of a record."""
        if self.listed:
            return tuple(self.listed)
        several = record[self.options] if isinstance(self.options, str) else [record[name] for name in self.options]
        return tuple(map(str, several))

    def right(self, record: Mapping[str, Any], options: Sequence[str]) -> str | None:
        """Return the letter of the right option, or None where it is none of them."""
        answer, known = record[self.answer], letters(len(options))
        if self.answer_is == "letter":
            return str(answer) if str(answer) in tuple(known) else None
        at = options.index(str(answer)) if self.answer_is == "text" and str(answer) in options else answer
        return known[at] if isinstance(at, int) and 0 <= at < len(known) else None


def names_in(template: str) -> list[str]:
    """Return the fields in a template. Raises SettingsError for one that is none."""
    try:
        names = [name for _, name, _, _ in _FORMATTER.parse(template) if name is not None]
    except (ValueError, TypeError) as error:
        raise SettingsError(f"{template!r} is no template: {error}") from None
    if not all(name.isidentifier() for name in names):
        raise SettingsError(f"{template!r} is no template: write {{field}}, the name of a field of the records")
    return names


def fill(template: str, record: Mapping[str, Any]) -> str:
    """Return a template with the fields of a record in it, as text."""
    parts = _FORMATTER.parse(template)
    return "".join(f"{text}{format(str(record[name]), spec or '') if name else ''}" for text, name, spec, _ in parts)


def read_description(path: Path) -> Description:
    """Read a YAML file. Raises SettingsError that names the file and what is wrong in it."""
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError, yaml.YAMLError) as error:
        raise SettingsError(f"'{path}' cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise SettingsError(f"'{path}' is no description: it holds no fields")
    try:
        return Description.from_keywords(None, values)
    except (SettingsError, TypeError, AttributeError) as error:
        raise SettingsError(f"'{path}': {error}") from None


class Described(FileBenchmark):
    """A benchmark that a description makes; the rest is what all public benchmarks share."""

    def __init__(self, description: Description, options: BenchmarkOptions) -> None:
        self.told = description
        self.name, self.max_new_tokens = description.name, description.max_new_tokens
        self.archives = tuple(description.archives.items())
        super().__init__(options)

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked, the description too."""
        return {**super().settings(), "description": dataclasses.asdict(self.told)}

    def load(self) -> Loaded:
        """Read the annotations."""
        told = self.told
        files = list(dict.fromkeys(file for pattern in told.annotations for file in sorted(self.root.glob(pattern))))
        if not files:
            raise SettingsError(f"'{self.root}' holds no {self.name}: {', '.join(told.annotations)} is not there")
        samples: list[Sample] = []
        problems, paths = Problems(), dict[str, Path | None]()
        for number, record in enumerate(self._records(files)):
            missing = lacking(record, told.fields)
            if missing:
                problems.add("fields", f"{', '.join(missing)} of record {number}")
                continue
            options = told.options_of(record)
            right = told.right(record, options)
            if right is None:
                problems.add("answers among the options", f"record {number}")
                continue
            sample = self._sample({**record, "number": number}, options, right, paths)
            samples.append(sample)
        self._check_groups(samples, problems)
        return Loaded(samples, paths, problems, digest_of(files))

    def _records(self, files: Sequence[Path]) -> list[dict[str, Any]]:
        found = [record for file in files for record in read_records(file)]
        name = self.told.records
        if not name:
            return found
        for number, outer in enumerate(found):
            if not isinstance(outer.get(name), list) or not all(isinstance(inner, dict) for inner in outer[name]):
                raise SettingsError(f"{self.name}: field '{name}' of record {number} is no list of records")
        return [{**outer, **inner} for outer in found for inner in outer[name]]

    def _sample(
        self, record: dict[str, Any], options: tuple[str, ...], right: str, paths: dict[str, Path | None]
    ) -> Sample:
        told = self.told
        lines = [
            fill(told.option, {"letter": letter, "option": option})
            for letter, option in zip(letters(len(options)), options, strict=True)
        ]
        video = fill(told.video, record).lstrip("./")
        place = PurePosixPath(video)
        known = {**record, "options": "\n".join(lines), "video": video, "base": place.name, "stem": place.stem}
        if video not in paths:
            paths[video] = self.place(*(fill(text, known).lstrip("./") for text in told.places))
        return Sample(
            id=fill(told.id, known),
            video=video,
            question=fill(told.question, known),
            truth=right,
            kind=fill(told.kind, known),
            choices=options,
            query=fill(told.query, known),
            moments=moments_of(record.get(told.moments)),
            cluster=fill(told.cluster, known).removesuffix(fill(told.cluster_without, known)),
            group=fill(told.group, known),
            labels={name: fill(text, known) for name, text in told.labels.items()},
        )

    def _check_groups(self, samples: Sequence[Sample], problems: Problems) -> None:
        ids, groups = set[str](), dict[str, int]()
        for sample in samples:
            if sample.id in ids:
                problems.add("ids of their own", sample.id)
            ids.add(sample.id)
            groups[sample.group] = groups.get(sample.group, 0) + 1
        for group, count in groups.items():
            if self.told.tries is not None and count != self.told.tries:
                problems.add("tries", f"{self.told.tries - count} of {group}")

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the right letter; groups are joined by what counts them."""
        return float(SCORING[self.told.scoring](prediction, letters(len(sample.choices))) == sample.truth)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return percentages by kind, by each label, and overall; a group is right where all of it is."""
        right: dict[tuple[str, ...], dict[str, list[float]]] = {}
        for row in rows:
            key = (row.kind, *(row.labels[name] for name in self.told.labels))
            right.setdefault(key, {}).setdefault(row.group, []).append(row.right or 0.0)
        outcomes = {key: [min(found) for found in groups.values()] for key, groups in right.items()}
        figures = dict[str, float]()
        for place in range(0 if names_in(self.told.kind) else 1, 1 + len(self.told.labels)):
            for value in sorted({key[place] for key in outcomes}):
                figures[value] = self._mean({key: found for key, found in outcomes.items() if key[place] == value})
        return {**figures, "overall": self._mean(outcomes)}

    def _mean(self, outcomes: Mapping[tuple[str, ...], Sequence[float]]) -> float:
        if self.told.over == "questions":
            return percent([one for found in outcomes.values() for one in found])
        kinds: dict[str, list[float]] = {}
        for key, found in outcomes.items():
            kinds.setdefault(key[0], []).extend(found)
        return sum(map(percent, kinds.values())) / len(kinds) if kinds else 0.0


def read_records(path: Path) -> list[dict[str, Any]]:
    """Read a file of records: parquet, CSV with a header, JSON or JSON lines. Raises SettingsError."""
    if path.suffix == ".parquet":
        return read_parquet(path)
    if path.suffix == ".csv":
        with path.open(encoding="utf-8-sig", newline="") as file:
            return list(csv.DictReader(file))
    return read_list(path)


def moments_of(times: Any) -> tuple[tuple[float, float], ...]:
    """Return "12:30-12:45" as a moment, seconds as one of a second each; what is neither is no moment."""
    if isinstance(times, str):
        try:
            return (parse_range(times),)
        except SettingsError:
            return ()
    if not isinstance(times, list) or not all(isinstance(time, (int, float)) for time in times):
        return ()
    return tuple((float(time), float(time) + 1.0) for time in times)
