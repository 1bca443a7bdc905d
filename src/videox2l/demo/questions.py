"""Questions about a video of the synthetic world, with their true answers and times."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from videox2l.demo.cast import Thing, all_things, near_misses
from videox2l.demo.world import Event, WorldVideo

KINDS = ("digit", "colour", "shape", "order", "count", "presence", "pair", "time", "describe")
MIX = {"digit": 0.25, "colour": 0.1, "shape": 0.1, "order": 0.2, "count": 0.15, "presence": 0.1, "pair": 0.1}
QUARTERS = ("first", "second", "third", "last")
DESCRIBED = 4
"""A description names at most so many things."""

Span = tuple[int, int]
"""First frame and end (exclusive) of an event."""


@dataclass(frozen=True)
class WorldQuestion:
    """A question, its answer, and what has to be seen to answer it.

    `needs` has one entry for everything that must be seen: the events that show it, of which one is enough. It is
    empty where the answer is that there is none. `start` and `end` are those of the first event that is needed, or
    None.
    """

    question: str
    answer: str
    kind: str
    needs: tuple[tuple[Span, ...], ...] = ()

    @property
    def moments(self) -> tuple[Span, ...]:
        """All events that show something needed, in frames, in order of time."""
        return tuple(sorted({span for options in self.needs for span in options}))

    @property
    def start(self) -> int | None:
        """First frame of the first event that is needed."""
        return self.needs[0][0][0] if self.needs else None

    @property
    def end(self) -> int | None:
        """End of the first event that is needed."""
        return self.needs[0][0][1] if self.needs else None


PHRASES = {
    "digit": ("what digit appears with the {} ?", "which digit does the {} carry ?", "the {} has what digit ?"),
    "colour": ("what colour is the shape with digit {} ?", "which colour appears with digit {} ?"),
    "shape": ("what shape has digit {} ?", "which shape appears with digit {} ?"),
    "order": ("which appears first , the {} or the {} ?", "what is first , the {} or the {} ?"),
    "count": ("how many times does the {} appear ?", "how often is the {} in the video ?"),
    "presence": ("does a {} appear ?", "is there a {} in the video ?"),
    "pair": ("what digits appear with the {} and the {} ?", "which digits do the {} and the {} carry ?"),
    "time": ("when does the {} appear ?", "in which quarter of the video is the {} ?"),
    "describe": ("describe the video .", "what is in the video ?"),
}
"""The ways to ask; the first is the one that files are rendered with."""


def _digit(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion:
    """Which digit some thing carries."""
    thing = _pick(rng, video.things)
    seen = video.appearances(thing)
    return WorldQuestion(_phrase(rng, "digit", _name(thing)), str(seen[0].digit), "digit", (_spans(seen),))


def _by_one(part: int) -> Callable[[WorldVideo, np.random.Generator], WorldQuestion | None]:
    """Ask for a digit by the colour (0) or the shape (1) alone, where one thing has it; only training asks this.

    Without it the model comes to rely on the colour: most things can be told apart by that.
    """

    def make(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion | None:
        parts = [thing[part] for thing in video.things]
        single = [thing for thing in video.things if parts.count(thing[part]) == 1]
        if not single:
            return None
        thing = _pick(rng, single)
        seen = video.appearances(thing)
        name = f"{thing[0]} shape" if part == 0 else thing[1]
        kind = ("by colour", "by shape")[part]
        return WorldQuestion(_phrase(rng, "digit", name), str(seen[0].digit), kind, (_spans(seen),))

    return make


def _reverse(part: int) -> Callable[[WorldVideo, np.random.Generator], WorldQuestion]:
    """Ask for the colour (0) or the shape (1) of the thing that carries a digit."""
    kind = ("colour", "shape")[part]

    def make(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion:
        thing = _pick(rng, video.things)
        seen = video.appearances(thing)
        return WorldQuestion(_phrase(rng, kind, str(seen[0].digit)), thing[part], kind, (_spans(seen),))

    return make


def _order(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion | None:
    """Which of two things appears first; None where there is only one."""
    if len(video.things) < 2:
        return None
    one, two = _two(rng, video.things)
    first = min(one, two, key=video.things.index)
    needs = tuple(_spans(video.appearances(thing)[:1]) for thing in (one, two))
    return WorldQuestion(_phrase(rng, "order", _name(one), _name(two)), _name(first), "order", tuple(sorted(needs)))


def _count(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion:
    """How often some thing appears: 0 to 4, each possible number equally often."""
    absent = _absent(video, rng)
    by_count: dict[int, list[Thing]] = {0: absent} if absent else {}
    for thing in video.things:
        by_count.setdefault(len(video.appearances(thing)), []).append(thing)
    times = sorted(by_count)[int(rng.integers(len(by_count)))]
    thing = _pick(rng, by_count[times])
    needs = tuple((span,) for span in _spans(video.appearances(thing)))
    return WorldQuestion(_phrase(rng, "count", _name(thing)), str(times), "count", needs)


def _presence(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion | None:
    """Whether some thing appears: half yes; many a no shares colour or shape with what appears. None if all appear."""
    if len(video.things) == len(all_things()):
        return None
    shown = bool(rng.random() < 0.5)
    thing = _pick(rng, video.things if shown else _absent(video, rng))
    needs = (_spans(video.appearances(thing)),) if shown else ()
    return WorldQuestion(_phrase(rng, "presence", _name(thing)), "yes" if shown else "no", "presence", needs)


def _pair(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion | None:
    """The digits of two things, in the order in which they are asked for; None where there is only one."""
    if len(video.things) < 2:
        return None
    one, two = (video.appearances(thing) for thing in _two(rng, video.things))
    text = _phrase(rng, "pair", _name(one[0].thing), _name(two[0].thing))
    return WorldQuestion(text, f"{one[0].digit} {two[0].digit}", "pair", (_spans(one), _spans(two)))


def _time(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion | None:
    """In which quarter of the video something is that appears once; None where nothing lies within one quarter."""
    length = video.frames / len(QUARTERS)
    once = [event for event in video.events if len(video.appearances(event.thing)) == 1]
    inside = [event for event in once if event.start // length == (event.end - 1) // length]
    if not inside:
        return None
    event = inside[int(rng.integers(len(inside)))]
    quarter = QUARTERS[int(event.start // length)]
    return WorldQuestion(_phrase(rng, "time", _name(event.thing)), quarter, "time", (_spans([event]),))


def _describe(video: WorldVideo, rng: np.random.Generator) -> WorldQuestion:
    """Name the things in the order in which they first appear, at most four."""
    things = video.things[:DESCRIBED]
    needs = tuple(_spans(video.appearances(thing)[:1]) for thing in things)
    return WorldQuestion(_phrase(rng, "describe"), " , ".join(_name(thing) for thing in things), "describe", needs)


MAKERS: dict[str, Callable[[WorldVideo, np.random.Generator], WorldQuestion | None]] = {
    "digit": _digit,
    "by colour": _by_one(0),
    "by shape": _by_one(1),
    "colour": _reverse(0),
    "shape": _reverse(1),
    "order": _order,
    "count": _count,
    "presence": _presence,
    "pair": _pair,
    "time": _time,
    "describe": _describe,
}


def make_questions(
    video: WorldVideo, rng: np.random.Generator, n: int, mix: Mapping[str, float] | None = None
) -> list[WorldQuestion]:
    """Draw up to `n` questions, no two with the same words, kinds in the proportions of `mix`."""
    mix = MIX if mix is None else mix
    kinds, weights = list(mix), np.array(list(mix.values()), dtype=float)
    drawn: dict[str, WorldQuestion] = {}
    for kind in rng.choice(kinds, 4 * n, p=weights / weights.sum()):
        question = MAKERS[str(kind)](video, rng)
        if question is not None:
            drawn.setdefault(question.question, question)
        if len(drawn) == n:
            break
    return list(drawn.values())


def _phrase(rng: np.random.Generator, kind: str, *names: str) -> str:
    ways = PHRASES[kind]
    return ways[int(rng.integers(len(ways)))].format(*names)


def _absent(video: WorldVideo, rng: np.random.Generator) -> list[Thing]:
    misses = near_misses(video.things)
    if misses and rng.random() < 0.7:
        return misses
    return [thing for thing in all_things() if thing not in video.things]


def _spans(events: Sequence[Event]) -> tuple[Span, ...]:
    return tuple((event.start, event.end) for event in events)


def _two(rng: np.random.Generator, things: Sequence[Thing]) -> tuple[Thing, Thing]:
    one, two = rng.permutation(len(things))[:2]
    return things[one], things[two]


def _pick(rng: np.random.Generator, things: Sequence[Thing]) -> Thing:
    return things[int(rng.integers(len(things)))]


def _name(thing: Thing) -> str:
    return " ".join(thing)
