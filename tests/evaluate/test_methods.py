"""Every method on tiny random models: equal bytes, equal to full KV where everything is kept, no state."""

from __future__ import annotations

import dataclasses
import sys
from typing import Any

import numpy as np
import pytest
import torch

from videox2l import ArraySource, VideoX2L
from videox2l.compress import compressor_by_name
from videox2l.errors import SettingsError
from videox2l.evaluate.base import MethodOutput, Sample
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.methods import METHODS
from videox2l.evaluate.methods.evict import best
from videox2l.evaluate.methods.infinipot import InfiniPotMethod
from videox2l.evaluate.methods.plain import shares
from videox2l.evaluate.methods.simple import spread
from videox2l.evaluate.methods.snapkv import pyramid
from videox2l.evaluate.registry import method_by_name

NAMES = [*METHODS, "x2l:random", "x2l:oracle", "xl2:oracle"]
QUESTIONS = ["What happens in the video?", "red star blue circle 0123456789"]


def frames(count: int = 24) -> np.ndarray:
    """Smooth noise that changes all the time."""
    rng = np.random.default_rng(3)
    coarse = torch.from_numpy(rng.random((count, 3, 5, 7), dtype=np.float32))
    fine = torch.nn.functional.interpolate(coarse, size=(40, 56), mode="bilinear")
    return (fine * 255).round().byte().permute(0, 2, 3, 1).numpy()


def sample(number: int = 0) -> Sample:
    return Sample(str(number), "v", QUESTIONS[number], "", "kind", moments=((5.0, 6.0),))


@pytest.fixture
def encoded(model_and_processor: tuple[Any, Any]) -> EncodedVideo:
    return EncodedVideo(VideoX2L.from_model(*model_and_processor), ArraySource(frames()), chunk_frames=4)


def ask(video: EncodedVideo, name: str, budget: float, number: int = 0) -> MethodOutput:
    return method_by_name(name).prepare(video, budget, 8).ask(sample(number))


@pytest.mark.parametrize("length", [4, 8, 2])
def test_a_shared_ingest_is_the_pipelines_own(encoded: EncodedVideo, length: int) -> None:
    whole = encoded.x2l.ingest(ArraySource(frames(22)), ratios=(2, 8), chunk_frames=length)
    encoded = EncodedVideo(encoded.x2l, ArraySource(frames(22)), chunk_frames=4)
    mine, flops = encoded.memory(compressor_by_name("keydiff"), (2, 8), "H", "keydiff", length)
    assert flops is not None
    assert flops > 0
    assert mine.fingerprint() == whole.fingerprint()
    assert [(c.start, c.end, c.frames, c.last) for c in mine.chunks] == [
        (c.start, c.end, c.frames, c.last) for c in whole.chunks
    ]
    for one, two in zip(mine.chunks, whole.chunks, strict=True):
        for ratio in (2.0, 8.0):
            torch.testing.assert_close(one.level(ratio).keys, two.level(ratio).keys, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one.level(ratio).values, two.level(ratio).values, atol=1e-5, rtol=1e-5)
        assert set(one.features) == set(two.features)
        for name in one.features:
            torch.testing.assert_close(one.features[name], two.features[name], atol=1e-5, rtol=1e-5)
    assert mine.next_position == whole.next_position


def test_full_kv_is_everything_reloaded(encoded: EncodedVideo) -> None:
    memory = encoded.x2l.ingest(ArraySource(frames()), ratios=(1,), history="L", chunk_frames=4)
    for number in range(2):
        answer = encoded.x2l.ask(memory, QUESTIONS[number], reload="all", max_new_tokens=8)
        reply = ask(encoded, "full", 1.0, number)
        assert reply.text == answer.text
        assert (reply.tokens, reply.bytes_attended) == (answer.cost.full_tokens, answer.cost.full_bytes)


def test_groups_are_the_chunks_cut(encoded: EncodedVideo) -> None:
    groups = encoded.groups
    assert sum(len(group.tokens) for group in groups) == encoded.visual
    assert torch.equal(torch.cat([g.tokens.embeds for g in groups]), encoded.full.embeds)
    assert torch.equal(torch.cat([g.tokens.positions for g in groups], 1), encoded.full.positions)
    assert [g.start for g in groups[1:]] == [g.end for g in groups[:-1]]
    assert sum(g.frames for g in groups) == 24


@pytest.mark.parametrize("budget", [1 / 4, 1 / 8])
def test_equal_bytes(encoded: EncodedVideo, budget: float) -> None:
    """Whatever follows the budget attends to that share of full KV, within 5 %, and says what it keeps."""
    for name in NAMES:
        method = method_by_name(name)
        reply = method.prepare(encoded, budget, 8).ask(sample())
        if method.at_budget:
            assert abs(reply.bytes_attended / encoded.full_bytes - budget) <= 0.05 * budget, name
        assert reply.bytes_kept >= reply.bytes_attended, name
        assert 0 < reply.bytes_device <= reply.bytes_kept, name
        assert reply.tokens * encoded.backbone.shape.token_bytes == pytest.approx(reply.bytes_attended), name


KEEP_ALL = [name for name in NAMES if name not in ("none", "L")]


def test_with_the_whole_budget_every_method_is_full_kv(encoded: EncodedVideo) -> None:
    """Nothing is left out, so nothing may differ; with an eighth most answers do: the test can see a difference."""
    for number in range(2):
        truth = ask(encoded, "full", 1.0, number).text
        assert truth
        for name in KEEP_ALL:
            assert ask(encoded, name, 1.0, number).text == truth, name
    differ = [ask(encoded, name, 1 / 8).text != ask(encoded, "full", 1.0).text for name in KEEP_ALL]
    assert sum(differ) > len(differ) / 2


def test_order_makes_no_difference(encoded: EncodedVideo) -> None:
    """Asking another question, or another method, in between changes nothing."""
    once = {name: ask(encoded, name, 1 / 4, 0) for name in NAMES}
    askers = {name: method_by_name(name).prepare(encoded, 1 / 4, 8) for name in reversed(NAMES)}
    for name, asker in askers.items():
        asker.ask(sample(1))
        again = asker.ask(sample(0))
        assert dataclasses.replace(again, seconds={}) == dataclasses.replace(once[name], seconds={}), name


def test_the_oracle_sees_the_moment(encoded: EncodedVideo) -> None:
    reply = ask(encoded, "x2l:oracle", 1 / 4)
    assert reply.reloaded is not None
    assert any(start <= 5.0 < end for start, end in reply.reloaded)


def test_expected_attention_against_samples(encoded: EncodedVideo) -> None:
    """The closed form equals the mean of exp over many drawn queries, up to the noise of drawing."""
    from videox2l.evaluate.methods.expected import FUTURE, QueryMoments, _turning, expected_scores

    backbone, full = encoded.backbone, encoded.full
    moments, cache = QueryMoments([]), backbone.new_cache(len(full))
    encoded.prefill(cache, ())
    for chunk in encoded.chunks:
        moments.rotations = [backbone.rotation(chunk.tokens.positions)]
        backbone.forward(chunk.tokens.embeds, chunk.tokens.positions, cache, moments)
    cos, sin = (t.mean(0) for t in backbone.rotation(backbone.text_positions(encoded.next_position, FUTURE)))
    turn = _turning(cos, sin)
    layer = 0
    mean = (moments.sums[layer] / encoded.visual) @ turn.T
    second = moments.products[layer] / encoded.visual
    plain = moments.sums[layer] / encoded.visual
    spread_ = turn @ (second - plain[:, :, None] * plain[:, None, :]) @ turn.T
    heads = full.keys(layer).shape[0]
    group = mean.shape[0] // heads
    generator = torch.Generator().manual_seed(0)
    root = torch.linalg.cholesky(spread_ + 1e-6 * torch.eye(spread_.shape[-1]))
    noise = torch.randn(20_000, *mean.shape, generator=generator)
    drawn = mean + torch.einsum("hde,nhe->nhd", root, noise) * 0.3  # drawn narrower, so that the mean of exp settles
    keys = full.keys(layer).repeat_interleave(group, 0)
    logits = torch.einsum("nhd,hmd->nhm", drawn, keys) * moments.scaling
    narrow = (keys * mean[:, None]).sum(-1) * moments.scaling
    square = torch.einsum("hnd,hde,hne->hn", keys, spread_, keys) * moments.scaling**2 / 2 * 0.09
    assert torch.corrcoef(torch.stack([logits.exp().mean(0).log().flatten(), (narrow + square).flatten()]))[0, 1] > 0.99
    exact = (narrow + square / 0.09).softmax(-1).reshape(heads, group, -1).mean(1) * full.values(layer).norm(dim=-1)
    torch.testing.assert_close(expected_scores(encoded, 1)[layer], exact)


def test_snapkv_against_a_plain_softmax(encoded: EncodedVideo) -> None:
    """Scores of the window equal attention computed the long way from the model's own queries."""
    from videox2l.compress.ranked import QueryTap
    from videox2l.evaluate.methods.snapkv import window_scores

    full, backbone = encoded.full, encoded.backbone
    kernel = 5
    found = window_scores(encoded, 40, kernel=kernel)  # a window of 10
    tap, cache = QueryTap(len(full)), backbone.new_cache()
    encoded.prefill(cache, ())
    backbone.forward(full.embeds, full.positions, cache, tap)
    for layer, queries in enumerate(tap.queries):
        heads = full.keys(layer).shape[0]
        for head in range(heads):
            group = queries.shape[0] // heads
            rows = queries[head * group : (head + 1) * group, -10:].reshape(-1, queries.shape[-1])
            keys = cache.layers[layer].keys[0, head, :-10]
            weights = (rows @ keys.T * tap.scaling).softmax(-1)[:, full.prefix :].sum(0) / group
            padded = [weights[max(0, i - kernel // 2) : i + kernel // 2 + 1].mean() for i in range(len(weights))]
            torch.testing.assert_close(found[layer][head, :-10], torch.stack(padded), atol=1e-4, rtol=1e-4)
            assert torch.isinf(found[layer][head, -10:]).all()


def test_infinipot_keeps_what_is_new_and_what_is_large() -> None:
    """Four frames of two places, one head: the newest frame, the odd old token, then the largest values."""
    still, odd = [1.0, 0.0], [0.0, 1.0]
    keys = torch.tensor([[still, still, odd, still, still, still, still, still]])
    values = torch.tensor([[[9.0], [1.0], [1.0], [1.0], [2.0], [1.5], [1.0], [1.0]]])
    kept = InfiniPotMethod().choose(keys, values, torch.arange(8)[None], 2, 6)
    assert kept.tolist() == [[0, 2, 4, 5, 6, 7]]
    without = InfiniPotMethod(tar=0.0).choose(keys, values, torch.arange(8)[None], 2, 2)
    assert set(without[0].tolist()) == {0, 4}


def test_pyramids_sum_up() -> None:
    for n, layers, tokens in ((15, 4, 288), (100, 6, 120), (3, 4, 288), (7, 1, 9), (64, 3, 64)):
        sizes = pyramid(n, layers, tokens)
        assert sum(sizes) == n * layers
        assert sizes == sorted(sizes, reverse=True)
        assert 1 <= sizes[-1] <= sizes[0] <= tokens


def test_small_parts() -> None:
    assert spread(3, 9) == [1, 4, 7]
    assert spread(4, 4) == [0, 1, 2, 3]
    assert shares([36, 36, 36, 12], 10) == [3, 3, 3, 1]
    assert sum(shares([36] * 8, 15)) == 15
    assert best(torch.tensor([[0.1, 3.0, 2.0, 5.0]]), 2).tolist() == [[1, 3]]


def test_the_meter_against_the_cost_model(encoded: EncodedVideo) -> None:
    """A prefill counts as the cost model says; a look that stops early counts the layers that it ran."""
    from videox2l.evaluate.flop_counter import decoder_shape
    from videox2l.flops import text
    from videox2l.select import KeysSelector

    shape = decoder_shape(encoded.backbone)
    assert shape is not None
    expected, past = text(shape, encoded.prefix_tokens, 0, logits=0), encoded.prefix_tokens
    for chunk in encoded.chunks:
        expected += text(shape, len(chunk.tokens), past, logits=0)
        past += len(chunk.tokens)
    assert encoded.full.flops == expected.total
    memory, _ = encoded.memory(compressor_by_name("keydiff"), (2, 16), "H", "keydiff")
    prompt = encoded.backbone.suffix(QUESTIONS[0])
    with encoded.meter.counting() as count:
        KeysSelector().score(prompt, memory, encoded.backbone)
    assert [rows for rows, _ in count.passes] == [len(prompt)] * 2  # of three layers
    assert count.bytes_read == 2 * encoded.prefix_tokens * encoded.backbone.shape.token_bytes // 3


def test_a_press_sees_the_models_own_queries_and_keys(encoded: EncodedVideo) -> None:
    """What the view projects and rotates is what attention sees, in every layer; keys come from the full prefill."""
    from videox2l.compress.ranked import QueryTap
    from videox2l.engine.rope import rotate
    from videox2l.evaluate.methods.press import press_scores

    full, backbone = encoded.full, encoded.backbone
    tap, cache = QueryTap(encoded.visual), backbone.new_cache()
    encoded.prefill(cache, ())
    backbone.forward(full.embeds, full.positions, cache, tap)
    seen = []

    class Press:
        def score(self, view: Any, hidden: Any, keys: Any, values: Any, weights: Any, tables: Any) -> torch.Tensor:
            cos, sin = tables["position_embeddings"]
            queries = view.q_proj(hidden).unflatten(-1, (-1, keys.shape[-1])).transpose(1, 2)
            torch.testing.assert_close(rotate(queries, cos, sin)[0], tap.queries[len(seen)], atol=1e-4, rtol=1e-4)
            made = view.k_proj(hidden).unflatten(-1, (-1, keys.shape[-1])).transpose(1, 2)
            torch.testing.assert_close(rotate(made, cos, sin), keys, atol=1e-4, rtol=1e-4)
            cos, _ = view.rotary_emb(hidden, torch.arange(3, 8)[None])
            assert torch.equal(cos[0], backbone.rotation(backbone.text_positions(3, 5))[0])
            seen.append(keys)
            return values.norm(dim=-1)

    scores = press_scores(encoded, Press())
    assert len(scores) == len(seen) == full.layers
    assert torch.equal(scores[1], full.values(1).norm(dim=-1))


def test_scorers_of_kvpress(encoded: EncodedVideo) -> None:
    """Where kvpress is installed: its SnapKV picks what ours does, and the others run at equal bytes."""
    pytest.importorskip("kvpress", exc_type=ImportError)
    for name in ("Knorm", "TOVA", "LagKV", "CUR", "LeverageScore", "ExpectedAttention", "KeyDiff", "NonCausalAttn"):
        reply = ask(encoded, f"kvpress:{name}", 1 / 4)
        assert abs(reply.bytes_attended / encoded.full_bytes - 1 / 4) <= 0.05 / 4, name
    assert ask(encoded, "kvpress:KeyDiff", 1 / 4).text == ask(encoded, "keydiff", 1 / 4).text
    with pytest.raises(SettingsError, match="no scorer 'Nope'"):
        ask(encoded, "kvpress:Nope", 1 / 4)


def test_without_kvpress(encoded: EncodedVideo, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "kvpress", None)
    with pytest.raises(SettingsError, match=r"videox2l\[kvpress\]"):
        ask(encoded, "kvpress:Knorm", 1 / 4)
