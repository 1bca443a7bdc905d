"""The world: the same from the same seed, apart between splits, and asked about truthfully."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from videox2l.demo.cast import SPLITS, all_things, digits_of
from videox2l.demo.questions import DESCRIBED, KINDS, PHRASES, QUARTERS, WorldQuestion, make_questions
from videox2l.demo.world import STYLES, WAIT, WorldVideo, make_video
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


def check(video: WorldVideo, question: WorldQuestion) -> bool:
    """Work out the answer again, from the words of the question and the events alone."""
    words, answer, kind = question.question.split(), question.answer, question.kind
    named = [thing for i in range(len(words)) if (thing := tuple(words[i : i + 2])) in all_things()]
    shown = [[e for e in video.events if (e.colour, e.shape) == thing] for thing in named]
    carried = [e for e in video.events if str(e.digit) in words]
    if kind in ("digit", "pair"):
        return answer.split() == [str(events[0].digit) for events in shown]
    if kind in ("colour", "shape"):
        return {answer} == {getattr(event, kind) for event in carried}
    if kind == "order":
        first = min(range(2), key=lambda i: shown[i][0].start)
        return answer == " ".join(named[first])
    if kind == "count":
        return answer == str(len(shown[0]))
    if kind == "time":
        start = QUARTERS.index(answer) * video.frames / 4
        return len(shown[0]) == 1 and start <= shown[0][0].start < shown[0][0].end <= start + video.frames / 4
    if kind == "describe":
        names = list(dict.fromkeys(f"{event.colour} {event.shape}" for event in video.events))
        return answer.split(" , ") == names[:DESCRIBED]
    return answer == ("yes" if shown[0] else "no")


def test_questions_tell_the_truth() -> None:
    asked = dict.fromkeys(KINDS, 0)
    for seed in range(150):
        video = make_video(seed, 64, "heldout")
        questions = make_questions(video, np.random.default_rng(seed), 14, dict.fromkeys(KINDS, 1.0))
        assert len({question.question for question in questions}) == len(questions)
        for q in questions:
            asked[q.kind] += 1
            assert check(video, q), q
            assert (not q.needs) == ((q.kind, q.answer) in {("presence", "no"), ("count", "0")})
            assert set(q.moments) <= {(event.start, event.end) for event in video.events}
            assert (q.start, q.end) in {*q.moments, (None, None)}
    assert min(asked.values()) > 50


def test_what_an_answer_needs() -> None:
    """One entry for each thing that has to be seen, one event for each appearance that has to be counted."""
    for seed in range(40):
        video = make_video(seed, 64, repeats=1.0)
        for q in make_questions(video, np.random.default_rng(seed), 20, dict.fromkeys(KINDS, 1.0)):
            if q.kind == "count":
                assert len(q.needs) == int(q.answer)
            elif q.kind != "describe" and q.needs:
                assert len(q.needs) == {"order": 2, "pair": 2}.get(q.kind, 1)


def test_every_phrasing_is_used() -> None:
    rng = np.random.default_rng(0)
    said = [
        q.question for s in range(60) for q in make_questions(make_video(s, 64), rng, 12, dict.fromkeys(KINDS, 1.0))
    ]
    for ways in PHRASES.values():
        for way in ways:
            first, last = way.split("{}")[0], way.split("{}")[-1]
            assert any(text.startswith(first) and text.endswith(last) for text in said), way


def test_splits_share_no_combination_of_thing_and_digit() -> None:
    shown = {
        split: {(*e.thing, e.digit) for seed in range(150) for e in make_video(seed, 64, split).events}
        for split in ("train", "dev", "heldout")
    }
    assert not shown["train"] & shown["dev"]
    assert not shown["train"] & shown["heldout"]
    assert not shown["dev"] & shown["heldout"]
    assert all(len({digit for _, _, digit in combinations}) == 10 for combinations in shown.values())
    for thing in all_things():
        assert sorted(digit for split in shown for digit in digits_of(split)[thing]) == list(range(10))


def test_long_videos_and_given_numbers_of_events() -> None:
    long = make_video(0, 2048, "dev", events=3)
    assert len(long.events) == 3
    assert len(long.decoys) > 50
    assert long.render(1000, 1008).shape == (8, 48, 48, 3)
    assert len(make_video(0, 256, events=12).events) == 12


def test_decoys_keep_away_from_events() -> None:
    for seed in range(30):
        video = make_video(seed, 64, decoys=1.0)
        assert not make_video(seed, 64, decoys=0.0).decoys
        for decoy in video.decoys:
            assert decoy.thing not in all_things()
            assert all(decoy.end <= e.start - WAIT or e.end + WAIT <= decoy.start for e in video.events)


@pytest.mark.parametrize("style", STYLES)
def test_styles(style: str) -> None:
    """What differs from the video without events is the needle, its card, or what waits for its colour."""
    video = make_video(4, 32, events=1, styles=(style,), visibility="clear", decoys=0.0)
    [event] = video.events
    bare = WorldVideo(video.seed, video.split, video.frames, video.scenes, ())
    changed = (video.render(noise=0) != bare.render(noise=0)).any(-1)
    pixels = changed.sum((1, 2))
    during = pixels[event.start : event.end]
    assert (during > (2000 if style == "insert" else 100)).all()
    around = [t for t in range(32) if event.start - WAIT <= t < event.end + WAIT]
    assert (pixels > 0).nonzero()[0].tolist() == (around if style == "change" else list(range(event.start, event.end)))


def test_faint_needles_change_the_picture_less() -> None:
    def change(visibility: str) -> float:
        total = 0.0
        for seed in range(30):
            video = make_video(seed, 16, events=1, styles=("overlay",), visibility=visibility, decoys=0.0)
            bare = WorldVideo(seed, "train", 16, video.scenes, ())
            difference = np.abs(video.render(noise=0).astype(float) - bare.render(noise=0)).sum()
            total += difference / (video.events[0].end - video.events[0].start)
        return total

    assert change("faint") < 0.6 * change("clear")


def test_unknown_visibility_is_refused() -> None:
    with pytest.raises(SettingsError, match="clear, mixed, faint"):
        make_video(0, 16, visibility="dim")


def test_answers_are_balanced() -> None:
    rng = np.random.default_rng(0)
    said = [make_questions(make_video(seed, 16), rng, 1, {"presence": 1.0})[0].answer for seed in range(300)]
    assert 0.42 < said.count("yes") / len(said) < 0.58
    counts = {make_questions(make_video(seed, 32), rng, 1, {"count": 1.0})[0].answer for seed in range(120)}
    assert counts == {"0", "1", "2", "3", "4"}
