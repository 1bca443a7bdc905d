"""Evidence for people: why a moment was re-loaded, and the time line as a picture."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tests.conftest import make_qwen25
from tests.test_asking import endless, frames
from videox2l import Answer, ArraySource, Cost, Memory, SettingsError, VideoError, VideoX2L
from videox2l.ask.answer import Evidence, Step
from videox2l.cli.app import app
from videox2l.memory import Plan, build_cache
from videox2l.plot import draw
from videox2l.plot.thumbnails import thumbnails_of
from videox2l.plot.timeline import spread
from videox2l.select import AttentionSelector, KeysSelector, ManualSelector
from videox2l.video import FrameSampling, VideoReader

NASA = Path(__file__).parent / "media" / "nasa_13013.mp4"
QUESTION = "What is on the board in the video?"


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return endless(VideoX2L.from_model(*make_qwen25()))


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L) -> Memory:
    return x2l.ingest(ArraySource(frames()), ratios=(2, 8), chunk_frames=4)


# --- why ----------------------------------------------------------------------------------------------------------


def moment(i: int, score: float | None, reason: str = "") -> Evidence:
    level, ratio, tokens = ("L", 2.0, 36) if reason else ("H", 32.0, 2)
    return Evidence(8.0 * i, 8.0 * i + 8, score, level, ratio, bool(reason), reason, i, tokens)


def made_up(evidence: list[Evidence], question: str = QUESTION, text: str = "yes") -> Answer:
    cost = Cost(100, 1000, 800, 8000, 300, 20, 4, {"select": 0.1, "reload": 0.2, "prefill": 0.1, "decode": 0.3})
    step = Step("asked", 0, (), 0.2, text, "", cost)
    return Answer(question, text, (1,), "stop", tuple(evidence), cost, (step,))


def test_margins_by_hand() -> None:
    answer = made_up(
        [moment(0, 0.1), moment(1, 0.5, "score rank 1"), moment(2, 0.05, "pinned"), moment(3, 0.3, "score rank 2"),
         moment(4, 0.2), moment(5, 0.4)]
    )  # fmt: skip
    missed, best, pinned, excluded = (answer.why(t) for t in (39.9, 8, 20, 44))
    assert (missed.chunk, missed.rank, missed.of, missed.bar) == (4, 4, 6, 0.3)
    assert missed.margin == pytest.approx(-0.1)
    assert "rank 4 of 6; to be re-loaded it needed 0.3, 0.1 more" in "\n".join(missed.lines())
    assert (best.rank, best.bar) == (1, 0.4)  # to keep its place it had to beat the best that was left out
    assert best.margin == pytest.approx(0.1)
    assert "re-loaded (score rank 1)" in best.lines()[0]
    assert pinned.reloaded
    assert "re-loaded (pinned)" in pinned.lines()[0]
    assert excluded.margin is not None
    assert excluded.margin > 0
    assert "it was excluded" in "\n".join(excluded.lines())
    assert answer.why(48).chunk == 5  # the very end belongs to the last chunk
    with pytest.raises(SettingsError, match=r"sees only 00:00-00:48"):
        answer.why(48.1)
    with pytest.raises(SettingsError, match="seconds must be a time of 0 seconds or more"):
        answer.why(-1)


def test_what_was_not_scored_is_told() -> None:
    why = made_up([moment(0, None), moment(1, None, "all")]).why(9)
    assert (why.score, why.rank, why.margin) == (None, None, None)
    assert why.lines()[1] == "nothing was scored for this answer"


@pytest.mark.parametrize("selector", [KeysSelector(), AttentionSelector()])
def test_words_and_heads_that_looked(selector: Any, x2l: VideoX2L, memory: Memory) -> None:
    answer = x2l.ask(memory, QUESTION, selector=selector, reload=1, max_new_tokens=1, why=[9.0])
    found = answer.why(9.0).attributions
    assert found is not None
    assert set(answer.attributions) == {2}
    assert answer.why(0.0).attributions is None  # was not asked for
    assert {word for word, _ in found.words} <= {
        x2l.backbone.decode([token]).strip() for token in x2l.backbone.suffix(QUESTION).ids.tolist()
    }
    assert [v for _, v in found.words] == sorted((v for _, v in found.words), reverse=True)
    assert answer.why(9.0).lines()[2].startswith("looked at, as a multiple of an even share, by '")
    sums = [
        sum(value for _, _, value in selector.explain(x2l.backbone.suffix(QUESTION), memory, x2l.backbone, i).heads)
        for i in range(6)
    ]
    assert len(set(sums)) == 6  # every chunk has an explanation of its own


def test_attention_is_explained_by_what_it_saw(x2l: VideoX2L, memory: Memory) -> None:
    """Against shares worked out from plain softmax attention over the H mix, layer 0."""
    prompt, backbone = x2l.backbone.suffix(QUESTION), x2l.backbone
    seen: dict[int, torch.Tensor] = {}

    def probe(layer: int, query: torch.Tensor, key: torch.Tensor, scaling: float) -> None:
        n, m = query.shape[2], key.shape[2]
        logits = query[0] @ key[0].repeat_interleave(2, 0).transpose(-1, -2) * scaling
        logits = logits + torch.full((n, m), -torch.inf).triu(m - n + 1)
        seen[layer] = logits.softmax(-1)

    mixed = build_cache(memory, Plan.at([8.0] * 6), backbone)
    backbone.forward(prompt.embeds, backbone.text_positions(mixed.next_position, len(prompt)), mixed.cache, probe)
    found = AttentionSelector(shortlist=0, layers=(0,)).explain(prompt, memory, backbone, 3)
    video = seen[0][:, :, mixed.offsets[0] : mixed.offsets[-1]].sum(-1)
    chunk = seen[0][:, :, mixed.offsets[3] : mixed.offsets[4]].sum(-1)
    expect = (6 * chunk / video).amax(-1)
    assert {head: value for _, head, value in found.heads} == pytest.approx(dict(enumerate(expect.tolist())), rel=1e-3)


def test_selectors_that_cannot_say_say_nothing(x2l: VideoX2L, memory: Memory) -> None:
    answer = x2l.ask(memory, QUESTION, selector=ManualSelector([(1, 2)]), reload=1, max_new_tokens=1, why=[9.0])
    assert answer.attributions == {}
    assert answer.why(9.0).score == 0.0
    with pytest.raises(SettingsError, match="00:30 is not seen by the question, which sees only 00:00-00:24"):
        x2l.ask(memory, QUESTION, why=[30.0])
    part = x2l.ask(memory, QUESTION, within=(8, 16), reload=1, max_new_tokens=1, why=[13.0])
    assert (part.why(13.0).chunk, set(part.attributions)) == (3, {3})


# --- the time line ------------------------------------------------------------------------------------------------


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def near(picture: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(picture - np.array(colour)).max(-1) <= 12).sum())


ORANGE = (217, 72, 15)


@pytest.mark.parametrize("n", [1, 8, 2000])
def test_re_loaded_chunks_are_drawn(n: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    scores = rng.random(n).tolist()
    best = int(np.argmax(scores))
    plain = made_up([moment(i, score) for i, score in enumerate(scores)])
    chosen = replace(
        plain, evidence=tuple(m if m.chunk != best else moment(best, m.score, "score rank 1") for m in plain.evidence)
    )
    words = near(_drawn(plain, tmp_path), ORANGE)  # the answer has the same colour
    assert near(_drawn(chosen, tmp_path), ORANGE) > words + 300  # a narrow bar is still seen


def _drawn(answer: Answer, folder: Path, **options: Any) -> np.ndarray:
    draw(answer, folder / "line.png", **options)
    return pixels(folder / "line.png")


def test_odd_answers_are_drawn(tmp_path: Path) -> None:
    long = "Who, of $all$ those <b>people</b>_{x^2}, " * 40
    for evidence in (
        [],
        [moment(i, None) for i in range(5)],
        [moment(i, 0.25, "all") for i in range(300)],
        [moment(0, -0.5), moment(1, -0.2, "score rank 1"), moment(2, -0.4, "pinned")],
        [moment(i, 0.1 * i, f"next to rank {i}" if i > 5 else "") for i in range(9)],
    ):
        picture = _drawn(made_up(evidence, question=long, text=long), tmp_path)
        assert 500 < picture.shape[0] < 1500
        assert picture.shape[1] == 1440
    assert (_drawn(made_up([], text=""), tmp_path) < 250).any()


def test_pictures_of_the_memory_stand_above_their_moments(x2l: VideoX2L, tmp_path: Path) -> None:
    video = np.zeros((16, 32, 48, 3), np.uint8)
    video[:8], video[8:] = (0, 160, 60), (40, 60, 220)
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=8)
    answer = x2l.ask(memory, QUESTION, selector=ManualSelector([(9, 10)]), reload=1, max_new_tokens=1)
    assert near(_drawn(answer, tmp_path), (40, 60, 220)) == 0
    picture = _drawn(answer, tmp_path, memory=memory)
    assert near(picture, (40, 60, 220)) > 5000
    assert near(picture, (0, 160, 60)) == 0


def test_pictures_of_the_video_are_its_frames(tmp_path: Path) -> None:
    x2l = VideoX2L.from_pretrained("demo")
    memory = x2l.ingest(NASA, fps=4)
    answer = x2l.ask(memory, "what digit appears with the red star ?", reload=2, max_new_tokens=1)
    found = thumbnails_of(answer.reloaded, memory, NASA)
    assert [p.moment for p in found] == answer.reloaded
    with VideoReader(NASA, FrameSampling(fps=4, mode="exact")) as reader:
        whole = {frame.pts: frame.image for frame in reader}
    for picture in found:
        inside = [pts for pts in whole if picture.moment.start <= pts < picture.moment.end]
        assert np.array_equal(picture.image, whole[inside[len(inside) // 2]])
    with pytest.raises(VideoError, match="is not the video that this memory was made of"):
        thumbnails_of(answer.reloaded, memory, NASA.parent / "corrupted.mp4")
    with pytest.raises(SettingsError, match="give both"):
        thumbnails_of(answer.reloaded, None, NASA)


def test_what_cannot_be_drawn_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = made_up([moment(0, 0.1)])
    with pytest.raises(SettingsError, match=r"end its name in \.png"):
        draw(answer, tmp_path / "line.txt")
    with pytest.raises(SettingsError, match="does not exist"):
        draw(answer, tmp_path / "no" / "line.png")
    monkeypatch.setattr("videox2l.plot.timeline.find_spec", lambda _: None)
    with pytest.raises(SettingsError, match=r"pip install 'videox2l\[plot\]'"):
        draw(answer, tmp_path / "line.png")


def test_boxes_are_moved_apart() -> None:
    for centres in ([0.1, 0.2, 0.3], [5.0, 5.0, 9.9], [1.0], [9.9, 9.9, 9.9]):
        places = spread(centres, 1.0, 0.0, 10.0)
        assert all(b - a >= 1.0 - 1e-9 for a, b in itertools.pairwise(places))
        assert min(places) >= 0.5 - 1e-9
        assert max(places) <= 9.5 + 1e-9
    assert spread([2.0, 6.0], 1.0, 0.0, 10.0) == [2.0, 6.0]


# --- the command line ---------------------------------------------------------------------------------------------


def x2l_command(*args: object) -> Any:
    return CliRunner().invoke(app, [str(arg) for arg in args])


def test_plot_and_why_on_the_command_line(tmp_path: Path) -> None:
    asked = ["what digit appears with the red star ?", "does a blue circle appear ?"]
    done = x2l_command("ask", NASA, *asked, "--fps", 4, "--why", "0:03", "--plot", tmp_path / "t.png", "--video", NASA)
    assert done.exit_code == 0, done.output
    assert done.stdout.count("  why: 00:03 lies in chunk 1, 00:02-00:04: ") == 2
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t-1.png", "t-2.png"]
    told = json.loads(x2l_command("ask", NASA, asked[0], "--fps", 4, "--why", "3", "--json").stdout)["answers"][0]
    assert told["why"][0]["chunk"] == 1
    assert {"rank", "of", "margin", "bar", "attributions", "level", "tokens"} <= set(told["why"][0])


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--plot", "x.txt"], "cannot write a time line to 'x.txt'"),
        (["--video", NASA], "--video goes with --plot"),
        (["--why", "x"], "'x' is no time"),
        (["--why", "5:00"], "05:00 is not seen by the question"),
    ],
)
def test_wrong_wishes_are_one_line(args: list[object], message: str) -> None:
    done = x2l_command("ask", NASA, "what ?", *args)
    assert done.exit_code in (1, 2)
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert message in line
