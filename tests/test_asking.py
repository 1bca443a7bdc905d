"""Escalation, re-selection on the way, and changing a cache in place."""

from __future__ import annotations

import dataclasses
import itertools
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import make_qwen25, make_video_xl
from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.ask.answer import Cost
from videox2l.ask.escalation import Escalation
from videox2l.memory import Levels, Plan, build_cache, update_cache

QUESTION = "What is on the board in the video?"


def wished(**changes: Any) -> Escalation:
    """An escalation from H that looks at the first token, and is never sure."""
    return Escalation(**{"below": 0.0, "start": 0, "measure": "first", **changes})


NEVER, ALWAYS = wished(), wished(below=1e9)


def frames(n: int = 24, seed: int = 2) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (n, 32, 32, 3), np.uint8)


def endless(x2l: VideoX2L) -> VideoX2L:
    """A model whose answers do not end by themselves."""
    x2l.backbone.model.generation_config.eos_token_id = None  # type: ignore[attr-defined]
    x2l.backbone.tokenizer.eos_token = None  # type: ignore[attr-defined]
    return x2l


@pytest.fixture(scope="module")
def x2l() -> VideoX2L:
    return endless(VideoX2L.from_model(*make_qwen25()))


@pytest.fixture(scope="module")
def memory(x2l: VideoX2L) -> Memory:
    return x2l.ingest(ArraySource(frames()), ratios=(2, 8), chunk_frames=4)


@dataclass
class Fixed:
    """A budget that gives one plan."""

    wanted: Plan
    needs_scores: bool = False

    def plan(self, scores: Any, memory: Memory) -> Plan:
        return self.wanted


@dataclass
class Best:
    """A budget that re-loads the best chunk, also where L adds nothing to H."""

    needs_scores: bool = True

    def plan(self, scores: Any, memory: Memory) -> Plan:
        return Plan.at([2.0 if i == int(scores.argmax()) else 8.0 for i in range(len(memory))])


@dataclass
class Turning:
    """A selector that wants another chunk each time; it keeps what it was asked."""

    order: list[int]
    asked: list[Any] = field(default_factory=list)

    def score(self, question: Any, memory: Memory, backbone: Any) -> torch.Tensor:
        self.asked.append(question)
        scores = torch.zeros(len(memory))
        scores[self.order[min(len(self.asked), len(self.order)) - 1]] = 1.0
        return scores


# --- a cache that is changed --------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["ram", "disk", "quantised"])
def test_a_changed_cache_is_the_new_mix_bit_for_bit(where: str, x2l: VideoX2L, tmp_path: Any) -> None:
    options: dict[str, Any] = {"ram": {}, "disk": {"store": tmp_path / "m"}, "quantised": {"l_bits": 8}}[where]
    memory = x2l.ingest(ArraySource(frames()), ratios=(2, 8), chunk_frames=4, **options)
    rng = np.random.default_rng(0)
    old = Plan.at([8.0] * 6)
    mixed = build_cache(memory, old, x2l.backbone, room=3)
    for _ in range(6):
        mixed.cache.append(*torch.randn(2, 3, 2, 2, 16))  # text that must be gone afterwards
        new = Plan.at([float(r) for r in rng.choice([2, 4, 8], 6)])
        mixed = update_cache(mixed, memory, old, new)
        fresh = build_cache(memory, new, x2l.backbone)
        assert mixed.offsets == fresh.offsets
        assert mixed.next_position == fresh.next_position
        assert list(mixed.brought) == [i for i in range(6) if old.ratios[i] != new.ratios[i]]
        for ours, theirs in zip(mixed.cache.columns(0), fresh.cache.columns(0), strict=True):
            assert torch.equal(ours, theirs)
        old = new


def test_keys_that_stand_at_their_columns_are_not_changed_in_place() -> None:
    x2l = VideoX2L.from_model(*make_video_xl())
    memory = x2l.ingest(ArraySource(frames(20)), ratios=(2, 4))
    plan = Plan.at([4.0] * len(memory))
    with pytest.raises(SettingsError, match="reposition='compact'"):
        update_cache(build_cache(memory, plan, x2l.backbone), memory, plan, plan)


# --- escalation ---------------------------------------------------------------------------------------------------


def test_steps_re_load_the_plan_bit_by_bit(x2l: VideoX2L, memory: Memory) -> None:
    plain = x2l.ask(memory, QUESTION, reload=3, max_new_tokens=6)
    answer = x2l.ask(memory, QUESTION, reload=3, max_new_tokens=6, escalate=NEVER)
    assert [step.why for step in answer.steps] == ["asked", "unsure", "unsure", "unsure"]
    assert [step.settled for step in answer.steps] == ["", "", "", "spent"]
    assert [len(step.reloaded) for step in answer.steps] == [0, 1, 2, 3]
    assert all(set(a.reloaded) < set(b.reloaded) for a, b in itertools.pairwise(answer.steps))
    best = sorted(range(6), key=lambda i: -(plain.evidence[i].score or 0))[:3]
    assert [set(step.reloaded) for step in answer.steps] == [set(best[:n]) for n in range(4)]
    assert (answer.ids, answer.evidence) == (plain.ids, plain.evidence)


def test_every_step_is_what_asking_with_its_plan_gives(x2l: VideoX2L, memory: Memory) -> None:
    answer = x2l.ask(memory, QUESTION, reload=3, max_new_tokens=6, escalate=NEVER)
    for step in answer.steps:
        plan = Plan.at([2.0 if i in step.reloaded else 8.0 for i in range(6)])
        alone = x2l.ask(memory, QUESTION, reload=Fixed(plan), max_new_tokens=6)
        assert alone.text == step.text
        mixed = build_cache(memory, plan, x2l.backbone)
        prompt = x2l.backbone.suffix(QUESTION)
        positions = x2l.backbone.text_positions(mixed.next_position, len(prompt))
        logits = x2l.backbone.logits(x2l.backbone.forward(prompt.embeds, positions, mixed.cache))[-1]
        assert step.entropy == pytest.approx(float(torch.distributions.Categorical(logits=logits).entropy()), rel=1e-4)
    assert len({step.text for step in answer.steps}) > 1  # what is re-loaded matters here


def test_it_stops_when_the_model_is_sure(x2l: VideoX2L, memory: Memory) -> None:
    at_once = x2l.ask(memory, QUESTION, reload=3, max_new_tokens=6, escalate=ALWAYS)
    assert [step.settled for step in at_once.steps] == ["sure"]
    assert at_once.ids == x2l.ask(memory, QUESTION, reload="none", max_new_tokens=6).ids
    assert {moment.score for moment in at_once.evidence} == {None}  # nothing was scored
    assert at_once.cost.reloaded_bytes == 0

    entropies = [step.entropy for step in x2l.ask(memory, QUESTION, reload=5, escalate=NEVER).steps]
    below = sorted(entropies)[1]  # type: ignore[type-var]
    answer = x2l.ask(memory, QUESTION, reload=5, escalate=wished(below=below))  # type: ignore[arg-type]
    stop = next(i for i, entropy in enumerate(entropies) if entropy <= below)  # type: ignore[operator]
    assert [step.entropy for step in answer.steps] == entropies[: stop + 1]
    assert answer.steps[-1].settled == "sure"


def test_an_unchanged_answer_with_less_doubt_settles_it(x2l: VideoX2L, memory: Memory) -> None:
    steps = x2l.ask(memory, QUESTION, reload=6, escalate=wished(draft=1), max_new_tokens=1).steps
    pairs = list(itertools.pairwise(steps))
    falls = [i for i, (a, b) in enumerate(pairs, 1) if a.text == b.text and b.entropy < a.entropy]  # type: ignore[operator]
    wish = wished(draft=1, unchanged=True)
    answer = x2l.ask(memory, QUESTION, reload=6, escalate=wish, max_new_tokens=1)
    expect = (falls[0], "unchanged") if falls else (6, "spent")
    assert (len(answer.steps) - 1, answer.steps[-1].settled) == expect


def test_costs_add_up(x2l: VideoX2L, memory: Memory) -> None:
    options: dict[str, Any] = {"reload": 3, "max_new_tokens": 6, "escalate": wished(draft=4)}
    answer = x2l.ask(memory, QUESTION, **options)
    each = 16 * memory.shape.token_bytes  # a chunk at L
    # Each step brings one more chunk; what lies on the device is not brought again.
    assert [step.cost.reloaded_bytes for step in answer.steps] == [0, each, each, each]
    assert answer.cost.reloaded_bytes == 3 * each
    prompt = len(x2l.backbone.suffix(QUESTION))
    assert [step.cost.prompt_tokens for step in answer.steps] == [prompt] * 4
    assert [step.cost.new_tokens for step in answer.steps] == [4, 4, 4, 6]
    assert answer.cost == Cost.of([step.cost for step in answer.steps])
    assert answer.cost.new_tokens == 18
    assert answer.cost.prompt_tokens == 4 * prompt
    assert answer.cost.tokens == answer.steps[-1].cost.tokens == memory.prefix[0].shape[2] + 3 * 16 + 3 * 4
    assert answer.cost.seconds["select"] > 0


def test_only_the_final_answer_is_streamed(x2l: VideoX2L, memory: Memory) -> None:
    pieces: list[str] = []
    wish = wished(draft=3)
    answer = x2l.ask(memory, QUESTION, reload=2, escalate=wish, max_new_tokens=9, on_text=pieces.append)
    assert "".join(pieces).strip() == answer.text
    assert len(answer.ids) == 9


def test_settings_of_an_escalation(x2l: VideoX2L, memory: Memory) -> None:
    def loaded(wish: Escalation, **options: Any) -> list[int]:
        return [
            len(step.reloaded) for step in x2l.ask(memory, QUESTION, escalate=wish, max_new_tokens=2, **options).steps
        ]

    assert loaded(wished(start=2, by=2), reload=5) == [2, 4, 5]
    assert loaded(wished(by=4), reload=5) == [0, 4, 5]
    assert loaded(wished(start=9), reload=2) == [2]
    assert loaded(NEVER, reload="none") == [0]
    assert loaded(NEVER, reload=1, pinned=[(0, 1)]) == [1, 2]
    mean = x2l.ask(memory, QUESTION, reload=1, escalate=wished(measure="mean"), max_new_tokens=5)
    first = x2l.ask(memory, QUESTION, reload=1, escalate=NEVER, max_new_tokens=5)
    assert mean.steps[0].entropy != first.steps[0].entropy
    assert mean.ids == first.ids


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Escalation(below=-1), "below=-1"),
        (lambda: Escalation(start=-1), "start=-1"),
        (lambda: Escalation(by=0), "by=0"),
        (lambda: Escalation(draft=0), "draft=0"),
        (lambda: Escalation(measure="max"), "measure='max' is not known: use first or mean"),
    ],
)
def test_wrong_escalations_are_refused(make: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        make()


def test_wrong_wishes_are_refused(x2l: VideoX2L, memory: Memory) -> None:
    for options, message in (
        ({"escalate": 3}, "escalate=3"),
        ({"reselect_every": 0}, "reselect_every must be .* got 0"),
        ({"reselect_every": 2, "escalate": True}, "use one of them"),
    ):
        with pytest.raises(SettingsError, match=message):
            x2l.ask(memory, QUESTION, **options)  # type: ignore[arg-type]


def test_lazy_levels_and_summary_tokens_escalate_too(x2l: VideoX2L) -> None:
    lazy = x2l.ingest(ArraySource(frames()), ratios=(2, 8), chunk_frames=4, l_tier="lazy")
    xl = VideoX2L.from_model(*make_video_xl())
    summary = xl.ingest(ArraySource(frames(40)), ratios=(2, 4))
    for model, memory in ((x2l, lazy), (xl, summary)):
        plain = model.ask(memory, QUESTION, reload=2, max_new_tokens=4)
        answer = model.ask(memory, QUESTION, reload=2, max_new_tokens=4, escalate=NEVER)
        assert answer.ids == plain.ids
        assert len(answer.steps) == 3


# --- re-selection -------------------------------------------------------------------------------------------------


def continued(x2l: VideoX2L, memory: Memory, reloaded: list[int], written: tuple[int, ...], more: int) -> list[int]:
    """Greedy tokens after `written`, each from one pass over prompt and answer on a fresh mix: the oracle."""
    ids = list(written)
    for _ in range(more):
        mixed = build_cache(memory, Plan.at([2.0 if i in reloaded else 8.0 for i in range(len(memory))]), x2l.backbone)
        prompt = x2l.backbone.suffix(QUESTION)
        embeds = torch.cat((prompt.embeds, x2l.backbone.embed(torch.tensor(ids)))) if ids else prompt.embeds
        positions = x2l.backbone.text_positions(mixed.next_position, len(embeds))
        ids.append(int(x2l.backbone.logits(x2l.backbone.forward(embeds, positions, mixed.cache))[-1].argmax()))
    return ids[len(written) :]


def test_the_answer_goes_on_behind_the_new_mix(x2l: VideoX2L, memory: Memory) -> None:
    selector = Turning([0, 0, 4, 5])
    answer = x2l.ask(memory, QUESTION, reload=1, selector=selector, reselect_every=4, max_new_tokens=15)
    assert [(step.why, step.at, step.reloaded) for step in answer.steps] == [
        ("asked", 0, (0,)),
        ("re-selected", 4, (0,)),
        ("re-selected", 8, (4,)),
        ("re-selected", 12, (5,)),
    ]
    assert list(answer.ids[:8]) == continued(x2l, memory, [0], (), 8)
    assert list(answer.ids[8:12]) == continued(x2l, memory, [4], answer.ids[:8], 4)
    assert list(answer.ids[12:]) == continued(x2l, memory, [5], answer.ids[:12], 3)
    assert answer.ids != x2l.ask(memory, QUESTION, reload=1, selector=Turning([0]), max_new_tokens=15).ids
    prompt = len(x2l.backbone.suffix(QUESTION))
    assert [step.cost.prompt_tokens for step in answer.steps] == [prompt, 0, prompt + 8, prompt + 12]
    assert [moment.chunk for moment in answer.reloaded] == [5]
    assert [len(asked) for asked in selector.asked] == [prompt, prompt + 4, prompt + 8, prompt + 12]
    assert x2l.backbone.decode(answer.ids[:4]) in selector.asked[1].text


def test_a_new_mix_of_the_same_kvs_changes_no_token(x2l: VideoX2L, memory: Memory) -> None:
    # H is made to hold what L holds: plans differ and mixes do not. What is left is re-mixing and prefilling again.
    same = [
        dataclasses.replace(chunk, levels=Levels({2.0: chunk.level(2.0), 8.0: chunk.level(2.0)}))
        for chunk in memory.chunks
    ]
    twice = dataclasses.replace(memory, chunks=same)
    options: dict[str, Any] = {"reload": Best(), "reselect_every": 3, "max_new_tokens": 20}
    plain = x2l.ask(twice, QUESTION, reload="all", max_new_tokens=20)
    answer = x2l.ask(twice, QUESTION, selector=Turning([0, 1, 2, 3, 4, 5, 0]), **options)
    assert answer.ids == plain.ids
    assert sum(step.cost.prompt_tokens > 0 for step in answer.steps) == 7  # it was indeed prefilled again each time
    assert x2l.ask(memory, QUESTION, selector=Turning([0, 1, 2, 3, 4, 5, 0]), **options).ids != plain.ids


def test_with_everything_re_loaded_nothing_is_read_twice(x2l: VideoX2L, memory: Memory) -> None:
    plain = x2l.ask(memory, QUESTION, reload=6, max_new_tokens=12)
    answer = x2l.ask(memory, QUESTION, reload=6, max_new_tokens=12, reselect_every=3)
    assert answer.ids == plain.ids
    assert len(answer.steps) == 4
    assert answer.cost.prompt_tokens == plain.cost.prompt_tokens
    assert answer.cost.reloaded_bytes == plain.cost.reloaded_bytes


def test_sampling_goes_on_with_its_own_draws(x2l: VideoX2L, memory: Memory) -> None:
    options: dict[str, Any] = {"max_new_tokens": 12, "temperature": 1.0, "seed": 5, "reload": 1}
    plain = x2l.ask(memory, QUESTION, selector=Turning([3]), **options)
    same = x2l.ask(memory, QUESTION, selector=Turning([3]), reselect_every=5, **options)
    assert same.ids == plain.ids
