"""Several videos in one question: what is exact, one budget over all, evidence with names, refusals."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import make_llava_onevision, make_qwen25, make_video_xl
from tests.families.models import MAKERS, make_internvl, make_qwen2_vl, make_qwen3_vl, make_smolvlm, needs
from videox2l import Memory, SettingsError, Turn, VideoX2L
from videox2l.backbones.decoder_backbone import decoder_inputs
from videox2l.backbones.frames import stack
from videox2l.conformance.case import made_up_clip, stock_attention
from videox2l.engine.cache import BufferCache
from videox2l.errors import MemoryFileError
from videox2l.memory import JointMemory, Plan, build_cache
from videox2l.types import VideoInfo
from videox2l.units import Cue
from videox2l.video import ArraySource

QUESTION = "What happens in the video?"
SUPPORTED = {
    "internvl": make_internvl,
    "llava_onevision": make_llava_onevision,
    "qwen2_5_vl": make_qwen25,
    "qwen2_vl": make_qwen2_vl,
    "qwen3_vl": make_qwen3_vl,
}
LIMIT = 1e-4


@dataclass
class Stock:
    """The stock model on a prompt with several videos: what reaches its decoder, with its own position ids."""

    embeds: Tensor  # (n, hidden)
    positions: Tensor  # (axes, n)
    visual: Tensor | None  # (n,) which tokens are visual, and their inner features, for Qwen3-VL
    deeper: Any
    videos: list[tuple[int, int]]  # where each begins and ends
    prefix: int


def rule_of_qwen(ids: list[int], video_token: int, grids: Sequence[tuple[int, int, int]], step: float) -> Tensor:
    """Positions of a prompt with several videos, by the rule of Qwen2-VL: text goes on from the largest position."""
    rows: list[tuple[int, int, int]] = []
    left, at = list(grids), 0
    while at < len(ids):
        free = max((max(row) for row in rows), default=-1) + 1
        if ids[at] != video_token:
            rows.append((free, free, free))
            at += 1
            continue
        t, h, w = left.pop(0)
        rows += [(free + int(i * step), free + j, free + k) for i in range(t) for j in range(h) for k in range(w)]
        at += t * h * w
    assert not left
    return torch.tensor(rows).T


def stock_prompt(backbone: Any, clips: Sequence[np.ndarray], fps: float = 1.0) -> Stock:
    """Write a prompt with several videos as the chat template does, and run the stock front end on it."""
    tokenizer, markup = backbone.tokenizer, backbone.markup
    chat = [{"role": "user", "content": [*({"type": "video"} for _ in clips), {"type": "text", "text": QUESTION}]}]
    before, *rest = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True).split(
        markup.placeholder
    )
    arguments: list[dict[str, Tensor]] = []
    grids, texts = [], []
    for clip in clips:
        pixels, grid = backbone.vision(stack(list(clip)), VideoInfo(len(clip), len(clip) / fps))
        pts = [i / fps for i in range(len(clip))]
        group = backbone.group_frames
        times = [[*pts, pts[-1]][i : i + group] for i in range(0, len(pts), group)]
        texts.append(markup.video(times, VideoInfo(), [grid[1] * grid[2]] * grid[0]) + markup.pad * backbone.spare)
        arguments.append(pixels)
        grids.append(grid)
    text, videos = before, []
    for part, after in zip(texts, rest, strict=True):
        start = len(tokenizer(text)["input_ids"])
        skipped = len(tokenizer(part[: part.index(markup.pad)])["input_ids"]) if not markup.opening(0, [0.0] * 2) else 0
        text += part
        end = len(tokenizer(text)["input_ids"]) - backbone.spare
        closing = len(tokenizer(markup.outro)["input_ids"]) if markup.outro else 0
        videos.append((start + skipped, end - closing))
        text += after
    ids = tokenizer(text)["input_ids"]
    inputs = {name: torch.cat([one[name] for one in arguments]) for name in arguments[0]}
    inputs["input_ids"] = torch.tensor([ids])
    if hasattr(backbone, "rate"):
        step = 1.0 if backbone.rate is None else backbone.group_frames / fps * backbone.rate
        inputs["position_ids"] = rule_of_qwen(ids, backbone.video_token_id, grids, step)[:, None]
    else:
        inputs |= backbone.token_kinds(inputs["input_ids"][0])
    door = decoder_inputs(backbone.model, **inputs)
    positions = door.get("position_ids")
    if positions is None or backbone.axes == 1:
        positions = torch.arange(len(ids))
    positions = positions.reshape(-1, len(ids))[-backbone.axes :]
    visual = door.get("visual_pos_masks")
    return Stock(
        door["inputs_embeds"][0],
        positions,
        None if visual is None else visual[0],
        door.get("deepstack_visual_embeds"),
        videos,
        videos[0][0],
    )


@torch.no_grad()
def stock_logits(backbone: Any, stock: Stock, blocks: bool = True) -> Tensor:
    """Logits of the last token by the stock decoder's own eager forward pass.

    With `blocks` a video behind another sees no other video: in front of it stands a copy of the prefix, right before
    its first position, which nothing else sees; the mask says so. Without, it is plain causal attention.
    """
    n, p = len(stock.embeds), stock.prefix
    order, hidden_from, positions, blocked = list(range(n)), list[int](), [stock.positions], []
    if blocks:
        for start, end in stock.videos[1:]:
            blocked.append((start, end, range(n + len(hidden_from), n + len(hidden_from) + p)))
            hidden_from += range(p)
            first = int(stock.positions[:, start].min())
            positions.append(torch.arange(first - p, first).expand(len(stock.positions), p))
    order += hidden_from  # copies of the prefix
    see = torch.ones(n, n, dtype=torch.bool).tril()
    see = torch.nn.functional.pad(see, (0, len(hidden_from), 0, len(hidden_from)))
    for start, end, copy in blocked:
        see[start:end, :start] = False
        see[start:end, copy.start : copy.stop] = True
        see[copy.start : copy.stop, copy.start : copy.stop] = torch.ones(p, p, dtype=torch.bool).tril()
    mask = torch.zeros(see.shape).masked_fill(~see, torch.finfo(torch.float32).min)[None, None]
    ids = torch.cat(positions, 1)
    more = {}
    if stock.visual is not None:
        more = {"visual_pos_masks": stock.visual[order].clone()[None], "deepstack_visual_embeds": stock.deeper}
        more["visual_pos_masks"][0, n:] = False
    with stock_attention(backbone):
        out = backbone.decoder(
            inputs_embeds=stock.embeds[order][None],
            position_ids=ids if backbone.axes == 1 else ids[:, None],
            attention_mask=mask,
            use_cache=False,
            **more,
        ).last_hidden_state[0, n - 1]
        found: Tensor = backbone.model.get_output_embeddings()(out)
    return found


@torch.no_grad()
def our_logits(x2l: VideoX2L, memories: Sequence[Memory]) -> Tensor:
    backbone: Any = x2l.backbone
    memory = x2l.open(memories)
    layout = build_cache(memory, Plan.at([memory.finest] * len(memory)), backbone)
    prompt = backbone.suffix(QUESTION)
    positions = backbone.text_positions(layout.next_position, len(prompt))
    found: Tensor = backbone.logits(backbone.forward(prompt.embeds, positions, layout.cache)[-1:])[0]
    return found


def ingest(x2l: VideoX2L, clip: np.ndarray, fps: float = 1.0, **options: Any) -> Memory:
    options = {"ratios": (1,), "history": "L", "chunk_frames": 4, **options}
    return x2l.ingest(ArraySource(clip, fps=fps, name=options.pop("name", "clip.mp4")), **options)


def gap(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max()) / max(1.0, float(other.abs().max()))


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_several_videos_equal_the_stock_model_with_a_block_mask(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    x2l = VideoX2L.from_model(*SUPPORTED[family]())
    clips = [made_up_clip(6, seed) for seed in (1, 2, 3)]
    stock = stock_prompt(x2l.backbone, clips)
    memories = [ingest(x2l, clip) for clip in clips]
    wanted, found = stock_logits(x2l.backbone, stock), our_logits(x2l, memories)
    assert gap(found, wanted) < LIMIT
    free = int(stock.positions.max()) + 1 - len(x2l.backbone.suffix(QUESTION))
    assert x2l.open(memories).next_position == free
    # what a video knows of those before it is missing, so one causal pass is something else
    assert gap(found, stock_logits(x2l.backbone, stock, blocks=False)) > 10 * LIMIT
    assert gap(our_logits(x2l, memories[::-1]), wanted) > 10 * LIMIT
    monkeypatch.setattr(BufferCache, "rerotate", lambda *args: None)
    assert gap(our_logits(x2l, memories), wanted) > 10 * LIMIT


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_a_picture_before_a_video(family: str) -> None:
    x2l = VideoX2L.from_model(*SUPPORTED[family]())
    picture, clip = made_up_clip(1, 4), made_up_clip(9 if family != "llava_onevision" else 1, 5)
    wanted = stock_logits(x2l.backbone, stock_prompt(x2l.backbone, [picture, clip]))
    assert gap(our_logits(x2l, [ingest(x2l, picture), ingest(x2l, clip)]), wanted) < LIMIT


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return VideoX2L.from_model(*make_qwen25())


@pytest.fixture(scope="module")
def pair(x2l: VideoX2L) -> list[Memory]:
    """Memories of 3 and 5 chunks, at two levels."""
    clips = made_up_clip(12, 1), made_up_clip(20, 2)
    names = ("a.mp4", "b.mp4")
    return [ingest(x2l, clip, name=name, ratios=(1, 8), history="H") for clip, name in zip(clips, names, strict=True)]


def test_greedy_answers_are_those_of_the_cache_that_is_exact(x2l: VideoX2L) -> None:
    """The pipeline's tokens are the likeliest ones of the stock model with the block mask, one after the other."""
    clips = [made_up_clip(6, 1), made_up_clip(6, 2)]
    memories = [ingest(x2l, clip) for clip in clips]
    answer = x2l.ask(memories, QUESTION, reload="all", max_new_tokens=4)
    stock = stock_prompt(x2l.backbone, clips)
    wanted = list[int]()
    while len(wanted) < len(answer.ids):
        wanted.append(int(stock_logits(x2l.backbone, stock).argmax()))
        token = torch.tensor([wanted[-1]])
        stock.embeds = torch.cat((stock.embeds, x2l.backbone.embed(token)))
        stock.positions = torch.cat((stock.positions, stock.positions[:, -1:] + 1), 1)
    assert len(wanted) == 4
    assert list(answer.ids) == wanted


def test_one_budget_and_names_in_the_evidence(x2l: VideoX2L, pair: list[Memory]) -> None:
    answer = x2l.ask(pair, QUESTION, reload=2, max_new_tokens=2)
    assert [(moment.memory, moment.chunk) for moment in answer.evidence] == [
        *(("a.mp4", i) for i in range(3)),
        *(("b.mp4", i) for i in range(5)),
    ]
    assert [moment.start for moment in answer.evidence] == [chunk.start for one in pair for chunk in one.chunks]
    scores = [moment.score for moment in answer.evidence]
    best = sorted(range(8), key=lambda i: -(scores[i] or 0))[:2]
    assert [i for i, moment in enumerate(answer.evidence) if moment.reloaded] == sorted(best)
    assert sum(score or 0 for score in scores) == pytest.approx(1)  # one softmax over the chunks of both
    assert {moment["memory"] for moment in answer.to_dict()["evidence"]} == {"a.mp4", "b.mp4"}
    assert answer.steps[0].reloaded == tuple(sorted(best))
    between = len(x2l.backbone.between_videos(2)[0])  # type: ignore[attr-defined]
    assert answer.cost.full_tokens == sum(one.full_tokens for one in pair) - pair[0].text_tokens + between
    why = answer.why(5.0, "b.mp4")
    assert (why.start, why.end, why.of) == (4.0, 8.0, 8)
    with pytest.raises(SettingsError, match=r"about several videos: name one of a\.mp4, b\.mp4"):
        answer.why(5.0)


@pytest.mark.parametrize(
    "selector", ["exact", "keys", "attention", "attention:H", "attention:keys", "embed-dot", "fuse:keys+uniform"]
)
def test_every_selector_compares_the_chunks_of_all(x2l: VideoX2L, pair: list[Memory], selector: str) -> None:
    """Scores of two memories are no longer those of one each side by side, and their order is that of the videos."""
    scores = [moment.score for moment in x2l.ask(pair, QUESTION, selector=selector, max_new_tokens=1).evidence]
    assert len(scores) == 8
    assert all(score is not None and math.isfinite(score) for score in scores)
    twice = x2l.ask([pair[1], pair[1]], QUESTION, selector="keys", max_new_tokens=1).evidence
    assert [moment.memory for moment in twice] == ["b.mp4"] * 5 + ["b.mp4 (2)"] * 5
    assert [m.score for m in twice[:5]] == pytest.approx([m.score for m in twice[5:]])  # keys ask without positions


def test_attention_to_text_between_videos_counts_for_no_chunk(x2l: VideoX2L, pair: list[Memory]) -> None:
    layout = build_cache(x2l.open(pair), Plan.at([1.0] * 8), x2l.backbone)
    (gap_start, _), (start, _) = (layout.spans[2][1], 0), layout.spans[3]
    assert start - gap_start == len(x2l.backbone.between_videos(2)[0])  # type: ignore[attr-defined]
    assert [stop - first for first, stop in layout.spans] == [chunk.tokens for one in pair for chunk in one.chunks]
    assert layout.spans[-1][1] == layout.offsets[-1] == len(layout.cache)


def test_times_are_those_of_each_video(x2l: VideoX2L, pair: list[Memory]) -> None:
    def levels(**options: Any) -> list[tuple[str, int]]:
        found = x2l.ask(pair, QUESTION, max_new_tokens=1, **options).reloaded
        return [(moment.memory, moment.chunk) for moment in found]

    assert levels(reload=0, pinned=["0:00-0:04"]) == [("a.mp4", 0), ("b.mp4", 0)]
    assert levels(reload="0,ends") == [("a.mp4", 0), ("a.mp4", 2), ("b.mp4", 0), ("b.mp4", 4)]
    assert levels(reload="1,neighbours:1", selector="manual:0:09-0:11") == [("a.mp4", 1), ("a.mp4", 2)]
    seen = x2l.ask(pair, QUESTION, within="0:04-0:08", max_new_tokens=1).evidence
    assert [(moment.memory, moment.chunk) for moment in seen] == [("a.mp4", 1), ("b.mp4", 1)]
    with pytest.raises(SettingsError, match=r"'a\.mp4': within=13-16 leaves no chunk"):
        x2l.ask(pair, QUESTION, within="0:13-0:16")


def test_escalation_equals_the_plan_that_it_ends_with(x2l: VideoX2L, pair: list[Memory]) -> None:
    """Each step is laid out anew: text between the videos saw other levels."""
    from videox2l import Escalation

    climbed = x2l.ask(pair, QUESTION, reload=4, escalate=Escalation(below=0.0), max_new_tokens=4)
    assert len(climbed.steps) == 4
    assert climbed.ids == x2l.ask(pair, QUESTION, reload=4, max_new_tokens=4).ids


def test_a_dialogue_about_several(x2l: VideoX2L, pair: list[Memory]) -> None:
    options = {"reload": "all", "max_new_tokens": 4}
    kept, read = x2l.chat(pair), x2l.chat(pair, earlier="recompute")
    for question in (QUESTION, "And then?"):
        answer = kept.ask(question, **options)  # type: ignore[arg-type]
        assert answer.ids == read.ask(question, **options).ids  # type: ignore[arg-type]
    assert answer.cost.dialogue_tokens > 0
    assert answer.ids != x2l.ask(pair, "And then?", **options).ids  # type: ignore[arg-type]
    assert {moment.memory for moment in answer.evidence} == {"a.mp4", "b.mp4"}
    history = [Turn(QUESTION, "Nothing.")]
    assert x2l.ask(pair, "And then?", history=history, **options).ids  # type: ignore[arg-type]


def test_memories_on_disk_and_lazy_levels_answer_the_same(x2l: VideoX2L, pair: list[Memory], tmp_path: Path) -> None:
    truth = x2l.ask(pair, QUESTION, reload=4, max_new_tokens=4)
    paths = [tmp_path / "a.x2l", tmp_path / "b.x2l"]
    for one, path in zip(pair, paths, strict=True):
        one.save(path)
    stored = x2l.ask(paths, QUESTION, reload=4, max_new_tokens=4)
    assert stored.ids == truth.ids
    assert {moment.memory for moment in stored.evidence} == set(map(str, paths))
    lazy = ingest(x2l, made_up_clip(20, 2), name="b.mp4", ratios=(1, 8), history="H", l_tier="lazy")
    for plan in ("all", "none"):
        wanted = x2l.ask(pair, QUESTION, reload=plan, max_new_tokens=4)
        assert x2l.ask([pair[0], lazy], QUESTION, reload=plan, max_new_tokens=4).ids == wanted.ids


def test_subtitles_are_those_of_each_video(x2l: VideoX2L) -> None:
    memories = [
        ingest(x2l, made_up_clip(8, seed), name=name, ratios=(1, 8), history="H", subtitles=[Cue(5.0, 6.0, text)])
        for seed, name, text in ((1, "a.mp4", "the bell rings"), (2, "b.mp4", "a red star"))
    ]
    pytest.importorskip("bm25s")
    scores = [m.score for m in x2l.ask(memories, "red star", selector="text", max_new_tokens=1).evidence]
    assert [bool(score) for score in scores] == [False, False, False, True]
    from videox2l.ask.view import with_lines

    text = with_lines("red star", x2l.open(memories), Plan.at([1.0] * 4), x2l.backbone)
    assert text.splitlines()[1:3] == ["[video 1, 00:05-00:06] the bell rings", "[video 2, 00:05-00:06] a red star"]


def test_one_in_a_list_is_one_alone(x2l: VideoX2L, pair: list[Memory]) -> None:
    alone, listed = (x2l.ask(memory, QUESTION, max_new_tokens=3) for memory in (pair[0], [pair[0]]))
    assert (alone.ids, alone.evidence) == (listed.ids, listed.evidence)
    assert alone.evidence[0].memory == ""


def test_what_does_not_fit_together_is_refused(x2l: VideoX2L, pair: list[Memory]) -> None:
    other = VideoX2L.from_model(*make_qwen25(seed=1))
    stranger = ingest(other, made_up_clip(8, 3))
    with pytest.raises(MemoryFileError, match="'memory 2': this memory was made by another model"):
        x2l.ask([pair[0], stranger], QUESTION)
    coarse = ingest(x2l, made_up_clip(8, 3), name="c.mp4", ratios=(2, 8))
    with pytest.raises(SettingsError, match=r"'a\.mp4' and 'c\.mp4' .* ratios 1, 8 and 2, 8"):
        x2l.ask([pair[0], coarse], QUESTION)
    with pytest.raises(SettingsError, match="list of them"):
        x2l.ask([], QUESTION)
    with pytest.raises(SettingsError, match="list each by itself"):
        x2l.ask([x2l.open(pair), pair[0]], QUESTION)
    with pytest.raises(SettingsError, match=r"use answer\.why"):
        x2l.ask(pair, QUESTION, why=[1.0])
    joint = x2l.open(pair)
    assert isinstance(joint, JointMemory)
    with pytest.raises(SettingsError, match="save each by itself"):
        joint.save("somewhere")


@pytest.mark.parametrize("make", [make_video_xl, MAKERS["llava_next_video"], make_smolvlm])
def test_other_families_say_so(make: Callable[[], Any]) -> None:
    if make is make_smolvlm:
        needs("smolvlm")
    x2l = VideoX2L.from_model(*make())
    ratios = (2, 4) if make is make_video_xl else (1,)
    memory = ingest(x2l, made_up_clip(11, 1), ratios=ratios, history="H", chunk_frames=None)
    with pytest.raises(SettingsError, match="is not asked about several videos at once"):
        x2l.ask([memory, memory], QUESTION)


def test_a_template_that_puts_videos_elsewhere_is_refused() -> None:
    from videox2l.errors import ModelError

    model, processor = make_qwen25()
    part = "<|vision_start|><|video_pad|><|vision_end|>"
    template = processor.tokenizer.chat_template
    processor.tokenizer.chat_template = template.replace(part, "{% if loop.first %}" + part + "{% endif %}")
    x2l = VideoX2L.from_model(model, processor)
    memory = ingest(x2l, made_up_clip(4, 1))
    with pytest.raises(ModelError, match="does not put 2 videos one behind the other"):
        x2l.ask([memory, memory], QUESTION)


@torch.no_grad()
def stock_likelihood(x2l: VideoX2L, stock: Stock, ids: Sequence[int]) -> float:
    """Log likelihood of a text behind a prompt: log softmax of the stock model's own full forward passes."""
    backbone: Any = x2l.backbone
    embeds, positions, visual, found = stock.embeds, stock.positions, stock.visual, 0.0
    for number, token in enumerate(ids):
        written = torch.tensor(ids[:number], dtype=torch.long)
        more = positions[:, -1:] + torch.arange(1, number + 1)
        longer = Stock(
            torch.cat((embeds, backbone.embed(written))) if number else embeds,
            torch.cat((positions, more), 1),
            None if visual is None else torch.cat((visual, torch.zeros(number, dtype=torch.bool))),
            stock.deeper,
            stock.videos,
            stock.prefix,
        )
        found += float(stock_logits(backbone, longer).float().log_softmax(-1)[token])
    return found


@pytest.mark.parametrize("family", sorted(SUPPORTED))
def test_choices_about_several_are_those_of_the_stock_model(family: str) -> None:
    """Likelihoods with the block mask; calibrated ones against the same prompt, text between the videos included."""
    x2l = VideoX2L.from_model(*SUPPORTED[family]())
    backbone: Any = x2l.backbone
    clips, choices = [made_up_clip(6, 1), made_up_clip(6, 2)], ("the bell rings", "red star")
    memories = [ingest(x2l, clip) for clip in clips]
    stock = stock_prompt(backbone, clips)
    text = torch.ones(len(stock.embeds), dtype=torch.bool)
    for start, end in stock.videos:
        text[start:end] = False
    count = int(text.sum())
    bare = Stock(stock.embeds[text], torch.arange(count).expand(len(stock.positions), count), None, None, [(0, 0)], 0)
    answer = x2l.ask(memories, QUESTION, reload="all", choices=choices, calibrate=True)
    gains = {}
    for choice in answer.choices:
        ids = backbone.reply(choice.text)
        wanted, blind = stock_likelihood(x2l, stock, ids), stock_likelihood(x2l, bare, ids)
        assert choice.log_likelihood == pytest.approx(wanted, abs=LIMIT * len(ids))
        gains[choice.text] = wanted - blind
        assert choice.calibrated == pytest.approx(wanted - blind, abs=2 * LIMIT * len(ids))
    assert answer.text == max(gains, key=lambda text: gains[text])
    turned = x2l.ask(memories[::-1], QUESTION, reload="all", choices=choices)
    assert max(abs(a.mean - b.mean) for a, b in zip(turned.choices, answer.choices, strict=True)) > 10 * LIMIT


def test_several_questions_about_several(x2l: VideoX2L, pair: list[Memory]) -> None:
    """Together, one decodes for all; each answers as alone, and as in another order."""
    questions = [QUESTION, "Who rings the bell?", "What is on the board?"]
    alone = [x2l.ask(pair, question, reload=2, max_new_tokens=5) for question in questions]
    joint = x2l.open(pair)
    for batch in (1, 3):
        together = x2l.ask_many([(joint, question) for question in questions], reload=2, max_new_tokens=5, batch=batch)
        assert [answer.ids for answer in together] == [answer.ids for answer in alone]
    mixed = x2l.ask_many([(pair, QUESTION), (pair[0], QUESTION)], reload=2, max_new_tokens=5)
    assert mixed[0].ids == alone[0].ids
    assert mixed[1].ids == x2l.ask(pair[0], QUESTION, reload=2, max_new_tokens=5).ids
    assert len({answer.ids for answer in alone}) > 1
