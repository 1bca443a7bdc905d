"""The crowded world and its benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videox2l import VideoX2L
from videox2l.demo.crowd import (
    MIX,
    SCENES,
    TASKS,
    CrowdVideo,
    crowd_choices,
    crowd_digits,
    make_crowd,
    make_crowd_questions,
)
from videox2l.demo.models import SHIPPED
from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, parse_budget
from videox2l.evaluate.dense import Dense
from videox2l.evaluate.registry import methods_by_names
from videox2l.evaluate.runner import Run, run


def test_same_arguments_same_video_and_parts_are_the_same_pictures() -> None:
    one, two = make_crowd(3, 32, "dev"), make_crowd(3, 32, "dev")
    assert one == two
    assert make_crowd(4, 32, "dev") != one
    np.testing.assert_array_equal(one.render(noise=0)[8:16], one.render(8, 16, noise=0))


def test_every_chunk_holds_the_facts_that_were_asked_for() -> None:
    for density in (1, 8, 16):
        video = make_crowd(0, 64, density=density)
        for chunk in range(0, 64, 8):
            here = [s for s in video.showings if chunk <= s.start < chunk + 8]
            assert len(here) == len({s.thing for s in here}) == density
            for start in range(chunk, chunk + 8, 2):
                assert sum(s.start == start for s in here) <= 4


def test_splits_share_no_combination_of_thing_and_digit() -> None:
    splits = [crowd_digits(split) for split in ("train", "dev", "heldout")]
    for thing in splits[0]:
        every = [digit for digits in splits for digit in digits[thing]]
        assert len(every) == len(set(every)) == 10


def test_what_does_not_fit_is_refused() -> None:
    for arguments in ({"density": 17}, {"density": 0}, {"frames": 12}, {"split": "test"}):
        with pytest.raises(SettingsError, match=next(iter(arguments))):
            make_crowd(**{"seed": 0, "frames": 16, **arguments})


def course(video: CrowdVideo) -> list[str]:
    """Return the kind of scene of every frame."""
    return [video.scenes[video.scene_at(t)].kind for t in range(video.frames)]


def test_questions_tell_the_truth() -> None:
    """Answers from frame-by-frame lists, made without the code that asks."""
    rng, seen = np.random.default_rng(1), set()
    for seed in range(30):
        video = make_crowd(seed, 64, "heldout", int(rng.integers(1, 12)))
        frames = course(video)
        stretches = [kind for i, kind in enumerate(frames) if i == 0 or frames[i - 1] != kind]
        for q in make_crowd_questions(video, rng, 20):
            seen.add(q.kind)
            assert q.answer in crowd_choices(q.kind)
            named = [k for k in q.question.split() if k in SCENES]
            first = {" ".join(s.thing): s for s in reversed(video.showings)}
            things = [name for name in sorted(first, key=q.question.find) if name in q.question]
            if q.kind in ("digit", "pair"):
                assert q.answer == " ".join(str(first[name].digit) for name in things)
            elif q.kind == "order":
                assert q.answer == min(things, key=lambda name: first[name].start)
            elif q.kind == "scene order":
                assert q.answer == min(named, key=frames.index)
            elif q.kind == "scene count":
                assert q.answer == str(stretches.count(named[0]))
            elif q.kind == "scene presence":
                assert (q.answer == "yes") == (named[0] in frames)
            elif q.kind == "scene after":
                assert q.answer == stretches[stretches.index(named[0]) + 1]
            else:
                start = first[things[0]].start
                later = [kind for i, kind in enumerate(frames) if i > start and frames[i - 1] != kind]
                assert q.answer == (frames[start] if q.kind == "place" else later[0])
    assert seen == set(MIX) == set(TASKS)


def test_a_large_picture_scales_down_to_a_small_one() -> None:
    video = make_crowd(5, 16)
    large = Image.fromarray(video.draw_large(9.0)).resize((48, 48), Image.Resampling.BICUBIC)
    difference = np.abs(np.asarray(large).astype(float) - video.render(9, 10, noise=0)[0])
    assert difference.mean() < 3
    assert np.abs(np.asarray(large).astype(float) - video.render(3, 4, noise=0)[0]).mean() > 6


@pytest.mark.slow
def test_the_shipped_model_needs_two_levels(tmp_path: Path) -> None:
    """Eight facts in 8 frames: full KV and true chunks read them, one level at an eighth does not."""
    x2l = VideoX2L.from_pretrained("demo-dense")
    bench = Dense(BenchmarkOptions(questions=80, frames=64, tasks=("digit",)))
    methods = methods_by_names(["full", "x2l:oracle", "H"])
    summary = run(x2l, Run(bench, methods, [parse_budget("1/8")]), tmp_path / "run")
    right = {name: 100 * summary[name]["accuracy"] for name in ("full", "x2l:oracle", "H")}
    assert right["full"] > 80
    assert right["x2l:oracle"] > right["H"] + 20


def test_names_of_models_that_ship() -> None:
    assert set(SHIPPED) == {"demo", "demo-dense", "demo-boards", "demo-xl"}
    assert all((folder / "model.safetensors").exists() for folder in SHIPPED.values())
