"""The world: the same from the same seed, apart between splits, and asked about truthfully."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from videox2l.demo.questions import KINDS, ask
from videox2l.demo.world import SPLITS, WorldVideo, all_things, make_video
from videox2l.errors import SettingsError


def test_same_arguments_same_video() -> None:
    one, two = make_video(5, 32, "dev"), make_video(5, 32, "dev")
    assert one == two
    assert np.array_equal(one.render(), two.render())
    assert one != make_video(6, 32, "dev")


def test_rendering_a_part_draws_the_same_pictures() -> None:
    video = make_video(1, 24)
    assert np.array_equal(video.render(noise=0)[9:17], video.render(9, 17, noise=0))
    assert video.render().shape == (24, 48, 48, 3)


def test_splits_share_neither_textures_nor_scripts() -> None:
    textures, scripts = {}, {}
    for split in SPLITS:
        videos = [make_video(seed, 64, split) for seed in range(40)]
        textures[split] = {scene.texture for video in videos for scene in video.scenes}
        scripts[split] = {video.events for video in videos}
    for one in SPLITS:
        for two in SPLITS:
            if one != two:
                assert not textures[one] & textures[two]
                assert not scripts[one] & scripts[two]


def test_unknown_split_is_refused() -> None:
    with pytest.raises(SettingsError, match="heldout"):
        make_video(0, 16, "test")


@pytest.mark.parametrize("frames", [4, 16, 64, 180])
@pytest.mark.parametrize("spread", [False, True])
def test_events_are_apart_and_digits_differ(frames: int, spread: bool) -> None:
    for seed in range(50):
        video = make_video(seed, frames, gap=2, spread=spread)
        assert 1 <= len(video.events) <= 8
        for before, after in pairwise(video.events):
            assert after.start - before.end >= 2
        assert video.events[-1].end <= frames
        digits = {thing: {event.digit for event in video.appearances(thing)} for thing in video.things}
        assert all(len(found) == 1 for found in digits.values())
        assert len(set.union(*digits.values())) == len(video.things)


def check(video: WorldVideo, question: str, answer: str, kind: str) -> bool:
    """Work out the answer again, from the words of the question and the events alone."""
    words = question.split()
    named = [thing for i in range(len(words)) if (thing := tuple(words[i : i + 2])) in all_things()]
    shown = [[e for e in video.events if (e.colour, e.shape) == thing] for thing in named]
    if kind == "digit":
        return answer == str(shown[0][0].digit)
    if kind == "order":
        first = min(range(2), key=lambda i: shown[i][0].start)
        return answer == " ".join(named[first])
    if kind == "count":
        return answer == str(len(shown[0]))
    return answer == ("yes" if shown[0] else "no")


def test_questions_tell_the_truth() -> None:
    asked = dict.fromkeys(KINDS, 0)
    for seed in range(150):
        video = make_video(seed, 64, "heldout")
        questions = ask(video, np.random.default_rng(seed), 10)
        assert len({question.question for question in questions}) == len(questions)
        for q in questions:
            asked[q.kind] += 1
            assert check(video, q.question, q.answer, q.kind), q
            assert (q.start is None) == ((q.kind, q.answer) in {("presence", "no"), ("count", "0")})
            if q.start is not None:
                assert (q.start, q.end) in {(event.start, event.end) for event in video.events}
    assert min(asked.values()) > 50


def test_answers_are_balanced() -> None:
    rng = np.random.default_rng(0)
    said = [ask(make_video(seed, 16), rng, 1, {"presence": 1.0})[0].answer for seed in range(300)]
    assert 0.42 < said.count("yes") / len(said) < 0.58
    counts = {ask(make_video(seed, 32), rng, 1, {"count": 1.0})[0].answer for seed in range(120)}
    assert counts == {"0", "1", "2", "3", "4"}
