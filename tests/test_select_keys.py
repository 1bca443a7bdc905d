"""The selectors that compare marks: keys and embed-dot; and the marks themselves."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.conftest import FAMILIES, make_video_xl
from videox2l import ArraySource, Memory, SettingsError, VideoX2L
from videox2l.memory.features import INDEX, KEYS, VISUAL, FeatureCache, read_index
from videox2l.select import EmbedDotSelector, KeysSelector
from videox2l.select.exact import NEUTRAL, ExactSelector
from videox2l.select.keys import early_layers
from videox2l.types import TextTokens, VideoCursor, VisualTokens

QUESTION = "Which one rings?"


def visual_tokens(x2l: VideoX2L, memory: Memory, video: np.ndarray) -> list[VisualTokens]:
    start = memory.prefix[0].shape[2]
    cursor, found = VideoCursor(start, 0.0, 0, start), []
    for i in range(0, len(video), 4):
        pts = [float(j) for j in range(i, min(i + 4, len(video)))]
        found.append(x2l.backbone.visual_tokens(list(video[i : i + 4]), pts, cursor))
        cursor = cursor.after(found[-1])
    return found


@torch.no_grad()
def test_keys_are_those_of_the_stock_models_projections(family: str, video: np.ndarray) -> None:
    """Keys and queries before RoPE, as the stock decoder's own projections give them to eager attention."""
    x2l = VideoX2L.from_model(*FAMILIES[family]())
    memory = x2l.ingest(ArraySource(video), ratios=(1,), chunk_frames=4)
    prompt = x2l.backbone.suffix(QUESTION)
    stock, _ = FAMILIES[family]()
    stock.set_attn_implementation("eager")
    decoder, seen = stock.get_decoder(), {}

    def run(embeds: list[torch.Tensor], positions: list[torch.Tensor], name: str) -> torch.Tensor:
        attention = decoder.layers[1].self_attn
        hook = getattr(attention, name).register_forward_hook(lambda _, __, out: seen.update(out=out[0]))
        ids = torch.cat(positions, 1)
        decoder(inputs_embeds=torch.cat(embeds)[None], position_ids=ids if len(ids) == 1 else ids[:, None])
        hook.remove()
        return seen["out"].reshape(len(seen["out"]), -1, memory.shape.head_dim).transpose(0, 1)

    begin = x2l.backbone.prefix().embeds
    first = len(begin)
    text = [x2l.backbone.text_positions(0, first), x2l.backbone.text_positions(first, len(prompt))]
    text_at = text
    queries = run([begin, prompt.embeds], text, "q_proj")[:, first:]
    tokens = visual_tokens(x2l, memory, video)
    keys = run([begin, *(t.embeds for t in tokens)], [text[0], *(t.positions for t in tokens)], "k_proj")[:, first:]

    chunks = keys.split([len(t) for t in tokens], 1)
    for chunk, own in zip(memory.chunks, chunks, strict=True):
        bounds = torch.stack((own.amin(1), own.mean(1), own.amax(1)))
        torch.testing.assert_close(chunk.features[KEYS][:, 1], bounds, atol=1e-4, rtol=1e-3)
    group = len(queries) // len(keys)

    def shares(products: Any) -> torch.Tensor:
        """`products` of a query (d,) with a chunk's keys (n, d): softmax over chunks, by head and token."""
        logits = torch.stack(
            [
                torch.stack([torch.stack([products(q, c[h // group]) for c in chunks]) for q in queries[h]])
                for h in range(len(queries))
            ]
        )
        return (logits * memory.shape.head_dim**-0.5).softmax(-1)  # (heads, rows, chunks)

    upper = shares(lambda q, k: torch.maximum(q * k.amin(0), q * k.amax(0)).sum())
    mean = shares(lambda q, k: k.mean(0) @ q)
    best = upper.amax(1) / upper.amax(1).sum(-1, keepdim=True)
    expect = {
        KeysSelector(): (best + upper[:, -1]) / 2,
        KeysSelector(tokens="last"): upper[:, -1],
        KeysSelector("mean", "last"): mean[:, -1],
        KeysSelector("mean", "mean"): mean.mean(1),
    }
    for selector, wanted in expect.items():
        found = selector.score(prompt, memory, x2l.backbone)
        torch.testing.assert_close(found, wanted.mean(0), atol=1e-5, rtol=1e-3)
        assert found.sum() == pytest.approx(1, abs=1e-5)
    assert (upper[:, -1].mean(0) - mean[:, -1].mean(0)).abs().max() > 1e-3
    # The exact selector: the largest product with any key, as far as 4 bits keep it; the control is another layer.
    exact = shares(lambda q, k: (k @ q).max())
    wanted = (exact.amax(1) / exact.amax(1).sum(-1, keepdim=True) + exact[:, -1]).mean(0)
    selector = ExactSelector(votes=((1, "best"),), behind="nothing")
    found = selector.score(prompt, memory, x2l.backbone)
    torch.testing.assert_close(found, wanted / wanted.sum(), atol=0.02, rtol=0.1)
    other = ExactSelector(votes=((0, "best"),), behind="nothing").score(prompt, memory, x2l.backbone)
    assert (other - wanted / wanted.sum()).abs().max() > 0.02

    # Single heads: in units of what the words of neutral questions differ by, weighted by confidence, averaged.
    def products(text: TextTokens) -> torch.Tensor:
        places = [text_at[0], x2l.backbone.text_positions(first, len(text))]
        asked = run([begin, text.embeds], places, "q_proj")[:, first:]
        each = [torch.stack([(asked[h] @ c[h // group].T).amax(-1) for c in chunks], -1) for h in range(len(asked))]
        return torch.stack(each) * memory.shape.head_dim**-0.5  # (heads, words, chunks)

    neutral = torch.cat([products(x2l.backbone.suffix(words)) for words in NEUTRAL], 1)
    each = ((products(prompt) - neutral.mean(1, keepdim=True)) / neutral.std(1).mean(-1)[:, None, None]).softmax(-1)
    certain = 1 - torch.special.entr(each).sum(-1, keepdim=True) / math.log(len(chunks))
    ballots = (each * certain**2).sum(1)
    ballots = ballots / ballots.sum(-1, keepdim=True)
    votes = ((1, f"head 0.{group - 1}"), (1, "head 1.0"))
    found = ExactSelector(votes=votes, behind="nothing").score(prompt, memory, x2l.backbone)
    torch.testing.assert_close(found, ballots[[group - 1, group]].mean(0), atol=0.04, rtol=0.1)
    swapped = ((1, f"head 1.{group - 1}"), (1, "head 0.0"))
    other = ExactSelector(votes=swapped, behind="nothing").score(prompt, memory, x2l.backbone)
    assert group == 1 or (other - ballots[[group - 1, group]].mean(0)).abs().max() > 0.01
    stored = read_index(memory.chunks[0].features[INDEX])[memory.shape.heads :]  # those of layer 1
    steps = (chunks[0].amax(1, keepdim=True) - chunks[0].amin(1, keepdim=True)) / 15
    assert ((stored - chunks[0]).abs() <= 0.51 * steps + 1e-3).all()  # as they stood, half a step of each channel off
    # A bound is one: no key of a chunk has a larger product with a query.
    for h, q in enumerate(queries):
        for c in chunks:
            upper_bound = torch.maximum(q * c[h // group].amin(0), q * c[h // group].amax(0)).sum(-1)
            assert (upper_bound > (q @ c[h // group].T).amax(-1) - 1e-4).all()


def test_a_long_prompt_is_read_in_blocks(video: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    prompt = x2l.backbone.suffix(QUESTION)
    ways = [KeysSelector(tokens=tokens) for tokens in ("max+last", "last", "max", "mean")]
    whole = [way.score(prompt, memory, x2l.backbone) for way in ways]
    monkeypatch.setattr("videox2l.select.keys._ROWS", 5)
    for way, expect in zip(ways, whole, strict=True):
        torch.testing.assert_close(way.score(prompt, memory, x2l.backbone), expect)


def test_the_pass_ends_behind_the_layers_that_are_asked(video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    prompt = x2l.backbone.suffix(QUESTION)
    layers: list[int] = []
    for number, layer in enumerate(x2l.backbone.decoder.layers):
        layer.mlp.register_forward_hook(lambda *_, number=number: layers.append(number))
    KeysSelector().score(prompt, memory, x2l.backbone)
    assert layers == [0]  # of the second layer only the queries are wanted
    assert early_layers(4) == (1,)
    assert early_layers(28) == (1, 2)
    assert early_layers(1) == (0,)
    for wrong in ((5,), (2,), ()):
        with pytest.raises(SettingsError, match="memories keep keys of layers 0 to 1"):
            KeysSelector(layers=wrong).score(prompt, memory, x2l.backbone)
    with pytest.raises(SettingsError, match="summary='all'"):
        KeysSelector("all")


def test_without_marks_h_is_summed_up(video: np.ndarray) -> None:
    """Chunks of a memory that an earlier release made."""
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    prompt = x2l.backbone.suffix(QUESTION)
    old = dataclasses.replace(memory, chunks=[dataclasses.replace(chunk, features={}) for chunk in memory.chunks])
    alone = x2l.ingest(ArraySource(video), ratios=(8,), chunk_frames=4)
    found = KeysSelector().score(prompt, old, x2l.backbone)
    torch.testing.assert_close(found, KeysSelector().score(prompt, alone, x2l.backbone))
    assert (found - KeysSelector().score(prompt, memory, x2l.backbone)).abs().max() > 1e-3
    with pytest.raises(SettingsError, match="'embed-dot' needs means of visual tokens"):
        EmbedDotSelector().score(prompt, old, x2l.backbone)


@torch.no_grad()
def test_embed_dot_is_the_best_groups_mean_product(family: str, video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*FAMILIES[family]())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    prompt = x2l.backbone.suffix(QUESTION)
    expect = []
    for tokens in visual_tokens(x2l, memory, video):
        groups = tokens.embeds.split(len(tokens) // tokens.grid[0])
        expect.append(max(float((group @ prompt.embeds.T).mean()) for group in groups))
    found = EmbedDotSelector().score(prompt, memory, x2l.backbone)
    torch.testing.assert_close(found, torch.tensor(expect), atol=1e-4, rtol=1e-3)


def test_summary_tokens_have_marks_too(video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*make_video_xl())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    scores = KeysSelector().score(x2l.backbone.suffix(QUESTION), memory, x2l.backbone)
    assert scores.shape == (len(memory),)
    assert scores.std() > 0


@pytest.mark.parametrize("settings", [{}, {"l_bits": 8, "h_bits": 8}, {"l_tier": "lazy"}, {"ratios": (8,)}])
def test_marks_lie_with_the_memory(tmp_path: Path, video: np.ndarray, settings: dict[str, Any]) -> None:
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    settings = {"ratios": (2, 8), "chunk_frames": 4, **settings}
    held = x2l.ingest(ArraySource(video), **settings)
    x2l.ingest(ArraySource(video), store=tmp_path / "m", **settings)
    stored = Memory.load(tmp_path / "m")
    for one, two in zip(held.chunks, stored.chunks, strict=True):
        assert set(two.features) == {INDEX, KEYS, VISUAL}
        assert all(torch.equal(one.features[name], mark) for name, mark in two.features.items())
    prompt = x2l.backbone.suffix(QUESTION)
    for selector in (KeysSelector(), EmbedDotSelector()):
        scores = selector.score(prompt, stored, x2l.backbone)
        assert torch.equal(scores, selector.score(prompt, held, x2l.backbone))


def test_a_memory_of_an_earlier_release_opens(tmp_path: Path, video: np.ndarray) -> None:
    """Written without marks, as before: no line of the journal speaks of them."""
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    memory.chunks = [dataclasses.replace(chunk, features={}) for chunk in memory.chunks]
    memory.save(tmp_path / "old")
    lines = [json.loads(line) for line in (tmp_path / "old" / "journal.jsonl").read_text().splitlines()]
    assert all("features" not in line for line in lines)
    old = Memory.load(tmp_path / "old")
    assert all(not chunk.features for chunk in old.chunks)
    assert x2l.ask(old, QUESTION, selector="keys", max_new_tokens=2).cost.new_tokens
    x2l.append(old, ArraySource(video[:4]))  # from here on with marks
    grown = Memory.load(tmp_path / "old")
    assert [bool(chunk.features) for chunk in grown.chunks] == [False] * 3 + [True]
    assert len(KeysSelector().score(x2l.backbone.suffix(QUESTION), grown, x2l.backbone)) == 4


def test_tables_follow_the_chunks(video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*FAMILIES["qwen2_5_vl"]())
    memory = x2l.ingest(ArraySource(video), ratios=(2, 8), chunk_frames=4)
    prompt = x2l.backbone.suffix(QUESTION)
    whole = KeysSelector().score(prompt, memory, x2l.backbone)
    part = KeysSelector().score(prompt, memory.only([0, 2]), x2l.backbone)
    assert part.shape == (2,)
    assert torch.equal(KeysSelector().score(prompt, memory, x2l.backbone), whole)
    x2l.append(memory, ArraySource(video[:4]))
    assert KeysSelector().score(prompt, memory, x2l.backbone).shape == (4,)
    made: list[int] = []
    tables = FeatureCache()
    for chunks in (memory.chunks, memory.chunks, memory.chunks[:2]):
        tables.get("x", chunks, lambda: torch.tensor(made.append(1) or len(made)))
    assert len(made) == 2
