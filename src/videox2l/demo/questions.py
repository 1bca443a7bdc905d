"""Questions about a video of the synthetic world, with their true answers and times."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from videox2l.demo.world import Thing, WorldVideo, all_things, near_misses

KINDS = ("digit", "order", "count", "presence")
MIX = {"digit": 0.4, "order": 0.25, "count": 0.15, "presence": 0.2}


@dataclass(frozen=True)
class Question:
    """A question, its answer, and when the event that it is about begins and ends, in frames.

    For `order` that is the first of the two, for `count` the first appearance. Nothing happens, and both
    are None, where the answer is "no" or 0.
    """

    question: str
    answer: str
    kind: str
    start: int | None
    end: int | None


def digit_question(video: WorldVideo, rng: np.random.Generator) -> Question:
    """Ask which digit some thing carries."""
    event = video.appearances(_pick(rng, video.things))[0]
    return _about(video, event.thing, f"what digit appears with the {_name(event.thing)} ?", str(event.digit), "digit")


def shape_question(video: WorldVideo, rng: np.random.Generator) -> Question | None:
    """Ask for a digit by the shape alone, where one thing has it; only training asks this.

    Without it the model comes to rely on the colour: most things can be told apart by that.
    """
    shapes = [shape for _, shape in video.things]
    single = [thing for thing in video.things if shapes.count(thing[1]) == 1]
    if not single:
        return None
    thing = _pick(rng, single)
    digit = str(video.appearances(thing)[0].digit)
    return _about(video, thing, f"what digit appears with the {thing[1]} ?", digit, "shape")


def order_question(video: WorldVideo, rng: np.random.Generator) -> Question | None:
    """Ask which of two things appears first; None where there is only one."""
    if len(video.things) < 2:
        return None
    one, two = (video.things[i] for i in rng.permutation(len(video.things))[:2])
    first = min(one, two, key=video.things.index)
    text = f"which appears first , the {_name(one)} or the {_name(two)} ?"
    return _about(video, first, text, _name(first), "order")


def count_question(video: WorldVideo, rng: np.random.Generator) -> Question:
    """Ask how often some thing appears: 0 to 4, each possible number equally often."""
    by_count: dict[int, list[Thing]] = {0: _absent(video, rng)}
    for thing in video.things:
        by_count.setdefault(len(video.appearances(thing)), []).append(thing)
    times = sorted(by_count)[int(rng.integers(len(by_count)))]
    thing = _pick(rng, by_count[times])
    return _about(video, thing, f"how many times does the {_name(thing)} appear ?", str(times), "count")


def presence_question(video: WorldVideo, rng: np.random.Generator) -> Question:
    """Ask whether some thing appears: half yes; many a no shares colour or shape with what appears."""
    shown = bool(rng.random() < 0.5)
    thing = _pick(rng, video.things if shown else _absent(video, rng))
    return _about(video, thing, f"does a {_name(thing)} appear ?", "yes" if shown else "no", "presence")


MAKERS: dict[str, Callable[[WorldVideo, np.random.Generator], Question | None]] = {
    "digit": digit_question,
    "shape": shape_question,
    "order": order_question,
    "count": count_question,
    "presence": presence_question,
}


def ask(video: WorldVideo, rng: np.random.Generator, n: int, mix: Mapping[str, float] | None = None) -> list[Question]:
    """Draw up to `n` questions, no two with the same words, kinds in the proportions of `mix`."""
    mix = MIX if mix is None else mix
    kinds, weights = list(mix), np.array(list(mix.values()), dtype=float)
    drawn: dict[str, Question] = {}
    for kind in rng.choice(kinds, 4 * n, p=weights / weights.sum()):
        question = MAKERS[str(kind)](video, rng)
        if question is not None:
            drawn.setdefault(question.question, question)
        if len(drawn) == n:
            break
    return list(drawn.values())


def _about(video: WorldVideo, thing: Thing, text: str, answer: str, kind: str) -> Question:
    events = video.appearances(thing)
    times = (events[0].start, events[0].end) if events else (None, None)
    return Question(text, answer, kind, *times)


def _absent(video: WorldVideo, rng: np.random.Generator) -> list[Thing]:
    misses = near_misses(video.things)
    if misses and rng.random() < 0.7:
        return misses
    return [thing for thing in all_things() if thing not in video.things]


def _pick(rng: np.random.Generator, things: list[Thing]) -> Thing:
    return things[int(rng.integers(len(things)))]


def _name(thing: Thing) -> str:
    return " ".join(thing)
