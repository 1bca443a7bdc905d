"""Boards: the world in which a letter alone tells chunks apart, and its benchmark."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from videox2l import VideoX2L
from videox2l.demo.boards import (
    COLOURS,
    LETTERS,
    MIX,
    SCENE,
    TAG,
    TASKS,
    TILE,
    WORDS,
    board_choices,
    make_board_questions,
    make_boards,
)
from videox2l.demo.tokens import build_tokenizer
from videox2l.errors import SettingsError
from videox2l.evaluate.base import BenchmarkOptions, parse_budget
from videox2l.evaluate.boards import Boards
from videox2l.evaluate.registry import methods_by_names
from videox2l.evaluate.runner import Run, run


def test_same_arguments_same_video_and_splits_differ() -> None:
    assert make_boards(3, 32) == make_boards(3, 32)
    others = [make_boards(4, 32), make_boards(3, 32, "heldout"), make_boards(3, 32, "train")]
    assert all(other.scenes != make_boards(3, 32).scenes for other in others)


def test_every_board_shows_its_facts_once_and_letters_do_not_repeat() -> None:
    """What is seen: the color of every tile's rim names the fact that the script says is there."""
    video = make_boards(5, 64, "heldout")
    assert sorted(scene.letter for scene in video.scenes) == sorted(LETTERS)
    frames = video.render(noise=0).astype(float)
    for scene in video.scenes:
        assert sorted(scene.digits) == sorted(COLOURS)
        for frame in range(scene.start, scene.start + SCENE):
            order = scene.orders[(frame - scene.start) // 2]
            assert sorted(order) == sorted([*COLOURS, TAG])
            for place, name in enumerate(order):
                y, x = (TILE * part for part in divmod(place, 3))
                rim = frames[frame, y, x : x + TILE].mean(0)
                nearest = min(COLOURS, key=lambda colour: np.abs(rim - COLOURS[colour]).sum())
                assert (nearest == name) == (name != TAG or nearest == TAG)


def test_what_does_not_fit_is_refused() -> None:
    for arguments in ({"frames": 10}, {"frames": 68}, {"frames": 0}, {"split": "test"}):
        with pytest.raises(SettingsError, match=next(iter(arguments))):
            make_boards(**{"seed": 0, "frames": 16, **arguments})
    with pytest.raises(SettingsError, match="frames"):
        Boards(BenchmarkOptions(frames=128))


def test_questions_tell_the_truth() -> None:
    """Answers from the list of boards, made without the code that asks."""
    rng, seen, known = np.random.default_rng(1), set(), build_tokenizer(WORDS).get_vocab()
    for seed in range(20):
        video = make_boards(seed, 4 * int(rng.integers(1, 17)))
        names = [scene.letter for scene in video.scenes]
        for q in make_board_questions(video, rng, 12):
            seen.add(q.kind)
            words = q.question.split()
            assert set(words) <= set(known)
            assert q.answer in board_choices(q.kind)
            letters = [word for word in words if len(word) == 1 and word in LETTERS]
            at = names.index(letters[0]) if letters[0] in names else None
            if q.kind == "presence":
                assert q.answer == ("no" if at is None else "yes")
                continue
            assert at is not None
            if q.kind in ("digit", "hop"):
                colour = next(word for word in words if word in COLOURS)
                assert int(q.answer) == video.scenes[at + (q.kind == "hop")].digits[colour]
            elif q.kind == "colour":
                digit = next(int(word) for word in words if word.isdecimal())
                assert video.scenes[at].digits[q.answer] == digit
            elif q.kind == "after":
                assert q.answer == names[at + 1]
            else:
                assert q.answer == min(letters, key=names.index)
            assert q.moments
            assert all(end - start == SCENE for start, end in q.moments)
    assert seen == set(MIX) == set(TASKS)


def test_a_large_picture_scales_down_to_a_small_one() -> None:
    video = make_boards(5, 16)
    large = Image.fromarray(video.draw_large(9.0)).resize((48, 48), Image.Resampling.BICUBIC)
    frames = video.render(noise=0).astype(float)
    assert np.abs(np.asarray(large) - frames[9]).mean() < 4
    assert np.abs(np.asarray(large) - frames[3]).mean() > 20


def test_the_shipped_model_reads_boards_and_needs_the_true_chunk(tmp_path: Path) -> None:
    """Two boards are read with full KV, most of eight too; of these at 1/4 true chunks give far more than one level."""
    x2l = VideoX2L.from_pretrained("demo-boards")
    right: dict[int, dict[str, float]] = {}
    for frames, names, budget in ((8, ["full"], "1"), (32, ["full", "x2l:oracle", "H"], "1/4")):
        bench = Boards(BenchmarkOptions(questions=120, frames=frames, tasks=("digit", "colour")))
        summary = run(x2l, Run(bench, methods_by_names(names), [parse_budget(budget)]), tmp_path / str(frames))
        right[frames] = {name: 100 * summary[name]["accuracy"] for name in names}
    assert right[8]["full"] > 90
    assert right[32]["full"] > 65
    assert right[32]["x2l:oracle"] > right[32]["H"] + 15
