"""`film`: a film of pages of words, read by a trained text decoder: which page, and which number on it?"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import cached_property
from statistics import fmean
from typing import Any

import numpy as np

from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, Row, Sample
from videox2l.evaluate.film_model import LEAD, page_image
from videox2l.units import Cue
from videox2l.video import ArraySource, FrameSource

SPLITS = {"dev": 2, "heldout": 3}
PAGES = (2, 64)
FACTS = 6
PER_FILM = 5
RECALLED = (1, 3)
PLACES = {
    "harbor": "place where ships dock", "kitchen": "room where meals are cooked", "library": "place that lends books",
    "forest": "place full of trees", "school": "place where children learn", "hospital": "place where doctors work",
    "bakery": "shop that sells bread", "church": "place where people pray", "airport": "place where planes land",
    "farm": "place where cows are kept", "theater": "place where plays are shown", "bank": "place that keeps money",
    "desert": "dry land full of sand", "garage": "place where cars are repaired", "garden": "place where flowers grow",
    "prison": "place where criminals are locked up",
}  # fmt: skip
SIDES = ("", "northern ", "southern ", "eastern ")
COLORS = ("red", "blue", "green", "yellow", "black", "white")
THINGS = {
    "cup": "mug", "key": "lock opener", "boat": "vessel", "coat": "jacket", "stone": "rock", "car": "automobile",
    "lamp": "light", "bag": "sack", "picture": "painting", "box": "carton", "bike": "bicycle", "child": "kid",
}  # fmt: skip
KINDS = {"place": 0.3, "described": 0.2, "synonym": 0.15, "thing": 0.15, "two": 0.1, "none": 0.1}
"""A detail under a named place, under a described one, of a thing by another word; under a thing that no other page
shows; of two places; and whether something is there at all."""

Fact = tuple[str, str, int]
"""Color, thing, number."""


class Film:
    """Films of `pages` pages with six facts each; answers are the likeliest of the film's numbers, or yes and no.

    Split "dev" is for choosing, "heldout" for reporting. A page is a frame, a chunk, and a second.
    """

    name = "film"
    max_new_tokens = 4
    model = "smollm2"

    def __init__(self, options: BenchmarkOptions) -> None:
        self.split, self.seed = options.split or "dev", options.seed
        if self.split not in SPLITS:
            raise SettingsError(f"split '{self.split}' is not known: film has {', '.join(SPLITS)}")
        self.pages = options.pages or 12
        if not PAGES[0] <= self.pages <= PAGES[1]:
            raise SettingsError(f"pages must be {PAGES[0]} to {PAGES[1]}, got {self.pages}")
        self.questions = 60 if options.questions is None else options.questions
        if self.questions < 1:
            raise SettingsError(f"questions must be 1 or more, got {self.questions}")
        self.kinds = options.tasks or tuple(KINDS)
        unknown = [kind for kind in self.kinds if kind not in KINDS]
        if unknown:
            raise SettingsError(f"task '{unknown[0]}' is not known: film has {', '.join(KINDS)}")

    def settings(self) -> dict[str, Any]:
        """Return what decides which questions are asked."""
        return {
            "split": self.split, "seed": self.seed, "pages": self.pages, "questions": self.questions,
            "kinds": list(self.kinds), "facts": FACTS, "per_film": PER_FILM,
        }  # fmt: skip

    def check(self) -> None:
        """Nothing can be missing: everything is generated."""

    def script(self, number: int) -> list[tuple[str, str, list[Fact]]]:
        """Return the pages of a film: place, its description, facts."""
        rng = np.random.default_rng([SPLITS[self.split], self.seed, self.pages, number, 0xF11])
        named = [(side + place, side + told) for side in SIDES for place, told in PLACES.items()]
        first = [named[i] for i in rng.permutation(len(PLACES))]  # plain names before those with a side
        rest = [named[len(PLACES) + i] for i in rng.permutation(len(named) - len(PLACES))]
        things = [(color, thing) for color in COLORS for thing in THINGS]
        numbers = rng.permutation(np.tile(np.arange(10, 100), 5)[: max(90, FACTS * self.pages)])
        shown = []
        for page in range(self.pages):
            facts = [
                (*things[i], int(numbers[page * FACTS + k]))
                for k, i in enumerate(rng.permutation(len(things))[:FACTS].tolist())
            ]
            shown.append((*(first + rest)[page], facts))
        return [shown[i] for i in rng.permutation(self.pages)]

    def samples(self) -> Sequence[Sample]:
        """Return the questions, film after film."""
        return self._samples

    @cached_property
    def _samples(self) -> list[Sample]:
        found: list[Sample] = []
        weights = np.array([KINDS[kind] for kind in self.kinds])
        number = 0
        while len(found) < self.questions:
            rng = np.random.default_rng([SPLITS[self.split], self.seed, self.pages, number, 0xA5])
            pages = self.script(number)
            name = f"{self.split}-{self.seed}-{self.pages}-{number}"
            for i, kind in enumerate(rng.choice(self.kinds, PER_FILM, p=weights / weights.sum())):
                found.append(self._sample(str(kind), pages, rng, name, i))
            number += 1
        return found[: self.questions]

    def _sample(
        self, kind: str, pages: Sequence[tuple[str, str, list[Fact]]], rng: np.random.Generator, film: str, i: int
    ) -> Sample:
        at = int(rng.integers(len(pages)))
        place, told, facts = pages[at]
        color, thing, number = facts[int(rng.integers(FACTS))]
        candidates = tuple(sorted({str(n) for _, _, page in pages for _, _, n in page}))
        truth, needed = str(number), [at]
        text = f"In the scene in the {place}, which number does the {color} {thing} have?"
        if kind == "described":
            text = f"In the scene in the {told}, which number does the {color} {thing} have?"
        elif kind == "synonym":
            text = f"In the scene in the {place}, which number does the {color} {THINGS[thing]} have?"
        elif kind == "thing":
            shown = [(c, t) for _, _, page in pages for c, t, _ in page]
            single = [(k, f) for k, (_, _, page) in enumerate(pages) for f in page if shown.count(f[:2]) == 1]
            if single:
                at, (color, thing, number) = single[int(rng.integers(len(single)))]
                truth, needed = str(number), [at]
                text = f"Which number does the {color} {thing} have?"
            else:
                kind = "place"
        elif kind == "two":
            other = (at + 1 + int(rng.integers(len(pages) - 1))) % len(pages)
            far, _, more = pages[other]
            free = [f for f in more if f[2] != number]
            second = free[int(rng.integers(len(free)))]
            text = (
                f"Which number is greater, that of the {color} {thing} in the {place} or that of the {second[0]} "
                f"{second[1]} in the {far}?"
            )
            truth, needed = str(max(number, second[2])), [at, other]
            candidates = tuple(sorted({str(number), str(second[2])}))
        elif kind == "none":
            there = bool(rng.random() < 0.5)
            if not there:
                absent = [(c, t) for c in COLORS for t in THINGS if (c, t) not in [f[:2] for f in facts]]
                color, thing = absent[int(rng.integers(len(absent)))]
            text = f"Is there a {color} {thing} in the scene in the {place}? Answer yes or no."
            truth, candidates = "yes" if there else "no", ("yes", "no")
        moments = tuple((float(page), float(page + 1)) for page in sorted(needed))
        begins = {"two": "The greater number is", "none": "The answer is"}.get(kind, f"The {color} {thing} has number")
        labels = {"pages": " ".join(str(page) for page in needed), "begins": begins}
        return Sample(
            id=f"{film}-{i}", video=film, question=text, truth=truth, kind=kind, choices=candidates, moments=moments,
            labels=labels, candidates=candidates, query=text,
        )  # fmt: skip

    @contextlib.contextmanager
    def _frames(self, film: str) -> Iterator[FrameSource]:
        texts = [
            f"Scene in the {place}: " + " ".join(f"The {c} {t} has number {n}." for c, t, n in facts) + "\n"
            for place, _, facts in self.script(int(film.rpartition("-")[2]))
        ]
        width = max(len(text) for text in texts)
        yield ArraySource(np.stack([page_image(text, width) for text in texts]), name=film)

    def open(self, video: str) -> AbstractContextManager[FrameSource]:
        """Write the pages of a film."""
        return self._frames(video)

    def subtitles(self, video: str) -> Sequence[Cue]:
        """There are none."""
        return ()

    def prompt(self, sample: Sample, pts: Sequence[float]) -> str:
        """Return the question with the beginning of its answer."""
        return f"{sample.question}{LEAD}{sample.labels['begins']}"

    def score(self, sample: Sample, prediction: str) -> float | None:
        """Return 1 for the true answer."""
        return float(prediction.strip() == sample.truth)

    def metrics(self, rows: Sequence[Row]) -> dict[str, float]:
        """There are none besides the mean."""
        return {}

    def recalls(self, rows: Sequence[Row]) -> dict[str, float]:
        """Return the share of needed pages among the best 3 (`recall`) and at the top (`recall_1`) of the scores.

        At the top one page is enough, whatever the number of those that are needed. Empty without scores.
        """
        scored = [row for row in rows if row.scores is not None]
        return {
            "recall" if k == 3 else f"recall_{k}": fmean(_recall(row, k) for row in scored) for k in RECALLED if scored
        }


def _recall(row: Row, k: int) -> float:
    assert row.scores is not None
    best = np.argsort(-np.array(row.scores), kind="stable")[:k].tolist()
    needed = [int(page) for page in row.labels["pages"].split()]
    return min(1.0, sum(page in best for page in needed) / min(k, len(needed)))
