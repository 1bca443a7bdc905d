"""Scorers, levels and histories against loops written out."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tests.conftest import make_qwen25
from videox2l import VideoX2L
from videox2l.backbones.positions import mrope_positions
from videox2l.compress import (
    COMPRESSORS,
    ChunkEncoder,
    ChunkKV,
    History,
    KeyDiffScorer,
    PairCompressor,
    SnapScorer,
    UniformScorer,
    compressor_by_name,
)
from videox2l.compress.pool import block_labels, block_shape
from videox2l.compress.ranked import prefill_chunk
from videox2l.engine.rope import rotate
from videox2l.errors import SettingsError
from videox2l.flops import kept_tokens
from videox2l.types import VisualTokens


def random_chunk(n: int = 36, window: int = 9) -> ChunkKV:
    torch.manual_seed(3)
    tokens = VisualTokens(torch.zeros(n, 1), torch.zeros(3, n).long(), (4, 3, n // 12))
    keys, values = torch.randn(3, 2, n, 8), torch.randn(3, 2, n, 8)
    return ChunkKV(keys, values, torch.randn(3, 4, window, 8), tokens, scaling=0.35)


@pytest.fixture(scope="module")
def backbone() -> Any:
    return VideoX2L.from_model(*make_qwen25()).backbone


def chunk_of_tokens(number: int, frames: int = 4) -> VisualTokens:
    torch.manual_seed(100 + number)
    positions = mrope_positions(torch.arange(frames) + frames * number, 3, 3, start=12, rate=1)
    return VisualTokens(torch.randn(frames * 9, 64), positions, (frames, 3, 3))


@pytest.mark.parametrize("n", [1, 2, 5, 36, 64, 100])
def test_uniform_keeps_every_rth_token_for_powers_of_two(n: int) -> None:
    scores = UniformScorer().score(random_chunk(36) if n == 36 else _sized(n))[0, 0]
    order = scores.argsort(descending=True).tolist()
    for ratio in (1, 2, 4, 8, 16, 32):
        stride = list(range(0, n, ratio))
        assert sorted(order[: len(stride)]) == stride
    spread = sorted(order[: max(1, n // 3)])  # any other ratio: no gap above twice the mean, ends aside
    assert max((b - a for a, b in pairwise(spread)), default=0) <= 8 or n <= 8


def _sized(n: int) -> ChunkKV:
    tokens = VisualTokens(torch.zeros(n, 1), torch.zeros(3, n).long(), (1, 1, n))
    return ChunkKV(torch.zeros(1, 1, n, 4), torch.zeros(1, 1, n, 4), None, tokens, 1.0)


def test_keydiff_is_distance_to_the_mean_direction() -> None:
    chunk = random_chunk()
    scores = KeyDiffScorer().score(chunk)
    for layer in range(3):
        for head in range(2):
            keys = chunk.keys[layer, head]
            mean = torch.stack([key / key.norm() for key in keys]).mean(0)
            expect = torch.stack([-cosine_similarity(key, mean, dim=0) for key in keys])
            torch.testing.assert_close(scores[layer, head], expect)


def test_snap_is_the_mean_attention_of_the_last_queries_that_can_see_a_token() -> None:
    chunk = random_chunk()
    scores = SnapScorer(window=9).score(chunk)
    assert chunk.queries is not None
    n, w = 36, 9
    for layer in range(3):
        for head in range(2):
            total, seen = torch.zeros(n), torch.zeros(n)
            for query_head in (2 * head, 2 * head + 1):
                for i in range(w):
                    last = n - w + i + 1
                    logits = chunk.keys[layer, head, :last] @ chunk.queries[layer, query_head, i] * chunk.scaling
                    total[:last] += logits.softmax(0)
                    seen[:last] += 1
            torch.testing.assert_close(scores[layer, head], total / seen)


@torch.no_grad()
def test_captured_queries_and_keys_are_those_of_the_models_eager_attention(backbone: Any) -> None:
    """Attention recomputed from the tap equals the attention weights that the stock model reports."""
    tokens = chunk_of_tokens(0)
    chunk = prefill_chunk(tokens, backbone.new_cache(), backbone, window=5)
    stock, _ = make_qwen25()
    stock.set_attn_implementation("eager")
    out = stock.get_decoder()(
        inputs_embeds=tokens.embeds[None], position_ids=tokens.positions[:, None], output_attentions=True
    )
    assert chunk.queries is not None
    for layer, weights in enumerate(out.attentions):
        for head in range(4):
            logits = chunk.queries[layer, head] @ chunk.keys[layer, head // 2].T * chunk.scaling
            hidden = ~torch.ones(5, 36, dtype=torch.bool).tril(31)
            got = logits.masked_fill(hidden, -torch.inf).softmax(-1)
            torch.testing.assert_close(got, weights[0, head, -5:], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["uniform", "keydiff", "snap"])
def test_ranked_levels_are_nested_views_of_the_best_tokens(name: str, backbone: Any) -> None:
    tokens = chunk_of_tokens(0)
    context = backbone.new_cache()
    compressor = compressor_by_name(name)
    levels = compressor.compress(tokens, context, backbone, (2, 5, 16))
    assert len(context) == 0
    assert [len(levels[ratio]) for ratio in (2, 5, 16)] == [18, 7, 2]
    for coarse in (5, 16):
        m = len(levels[coarse])
        assert torch.equal(levels[coarse].keys, levels[2].keys[:, :, :m])
        assert levels[coarse].keys.untyped_storage().data_ptr() == levels[2].keys.untyped_storage().data_ptr()
    raw = prefill_chunk(tokens, context, backbone)
    index = levels[2].index.long()
    for layer in range(3):
        for head in range(2):
            assert torch.equal(levels[2].keys[layer, head], raw.keys[layer, head, index[layer, head]])
            assert torch.equal(levels[2].values[layer, head], raw.values[layer, head, index[layer, head]])
            assert len(set(index[layer, head].tolist())) == 18
    scores = compressor.scorer.score(prefill_chunk(tokens, context, backbone, compressor.scorer.window))  # type: ignore[attr-defined]
    kept = scores.gather(2, index)
    assert (kept[..., :-1] >= kept[..., 1:]).all()
    assert (kept.min(-1).values >= scores.scatter(2, index, -torch.inf).amax(-1)).all()


def test_a_pair_makes_each_level_as_its_own_compressor_would(backbone: Any) -> None:
    names, ratios = ("uniform", "keydiff"), (2.0, 9.0)
    pair = PairCompressor(*map(compressor_by_name, names))
    encoders = [
        ChunkEncoder(backbone, each, ratios, History.parse("H")) for each in (pair, compressor_by_name("uniform"))
    ]
    for encoder in encoders:
        encoder.prefix(backbone.prefix())
    paired, plain = (encoder.make(chunk_of_tokens(0)) for encoder in encoders)
    other = ChunkEncoder(backbone, compressor_by_name("keydiff"), ratios, History.parse("H"))
    other.prefix(backbone.prefix())
    coarse = other.make(chunk_of_tokens(0))[9.0]
    assert sorted(paired) == list(ratios)
    torch.testing.assert_close(paired[2.0].keys, plain[2.0].keys)
    torch.testing.assert_close(paired[9.0].keys, coarse.keys)
    assert not torch.equal(paired[9.0].index, plain[9.0].index)
    assert torch.equal(pair.compress(chunk_of_tokens(0), encoders[0].streams[0].context, backbone, (2.0,))[2.0].index,
                       plain[2.0].index)  # fmt: skip


@pytest.mark.parametrize(
    ("grid", "ratio", "block"),
    [
        ((4, 3, 3), 1, (1, 1, 1)),
        ((4, 3, 3), 2, (1, 1, 2)),
        ((4, 8, 8), 4, (1, 2, 2)),
        ((4, 16, 28), 32, (1, 4, 8)),
        ((4, 3, 3), 9, (1, 3, 3)),
        ((4, 3, 3), 18, (2, 3, 3)),
        ((4, 3, 3), 32, (4, 3, 3)),
        ((2, 8, 2), 8, (1, 4, 2)),
    ],
)
def test_pool_blocks_grow_within_a_frame_first(grid: Any, ratio: float, block: Any) -> None:
    assert block_shape(grid, ratio) == block


@torch.no_grad()
@pytest.mark.parametrize("ratio", [2, 4, 9, 18])
def test_pool_averages_keys_before_rotation(ratio: int, backbone: Any) -> None:
    """Layer 0, whose keys are a projection of the input: means of that, rotated at the middle token."""
    tokens = chunk_of_tokens(0)
    level = compressor_by_name("pool").compress(tokens, backbone.new_cache(), backbone, (ratio,))[ratio]
    layer = backbone.decoder.layers[0]
    normed = layer.input_layernorm(tokens.embeds)
    plain = layer.self_attn.k_proj(normed).reshape(36, 2, 16).transpose(0, 1)
    values = layer.self_attn.v_proj(normed).reshape(36, 2, 16).transpose(0, 1)
    labels = block_labels(tokens.grid, block_shape(tokens.grid, ratio)).tolist()
    assert len(level) == max(labels) + 1
    for block in range(len(level)):
        members = [i for i, label in enumerate(labels) if label == block]
        middle = members[len(members) // 2]
        assert level.index[0, 0, block] == middle
        cos, sin = backbone.rotation(tokens.positions[:, middle : middle + 1])
        expect = rotate(plain[:, members].mean(1, keepdim=True), cos, sin)
        torch.testing.assert_close(level.keys[0, :, block : block + 1], expect, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(level.values[0, :, block], values[:, members].mean(1), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", sorted(set(COMPRESSORS) - {"summary"}))
def test_ratio_one_keeps_every_kv(name: str, backbone: Any) -> None:
    tokens = chunk_of_tokens(1)
    level = compressor_by_name(name).compress(tokens, backbone.new_cache(), backbone, (1,))[1]
    raw = prefill_chunk(tokens, backbone.new_cache(), backbone)
    order = level.index.long().argsort(-1)[..., None].expand_as(raw.keys)
    torch.testing.assert_close(level.keys.gather(2, order), raw.keys, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(level.values.gather(2, order), raw.values, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("tokens", "ratio", "kept"), [(36, 2, 18), (36, 16, 2), (36, 32, 1), (9, 32, 1), (36, 5, 7)])
def test_kept_tokens(tokens: int, ratio: float, kept: int) -> None:
    assert kept_tokens(tokens, ratio) == kept


@pytest.mark.parametrize("history", ["H", "L", "recent:1", "recent:2"])
def test_history_is_what_the_next_chunk_sees(history: str, backbone: Any) -> None:
    """After four chunks the context holds the prefix, then each chunk at the level that the setting says."""
    encoder = ChunkEncoder(backbone, compressor_by_name("keydiff"), (2, 12), History.parse(history))
    prefix_keys, _ = encoder.prefix(backbone.prefix())
    chunks = [encoder.add(chunk_of_tokens(i)) for i in range(4)]
    recent = {"H": 0, "L": 4, "recent:1": 1, "recent:2": 2}[history]
    seen = [levels[2 if i >= 4 - recent else 12].keys for i, levels in enumerate(chunks)]
    keys, _ = encoder.streams[0].context.columns(0)
    assert torch.equal(keys, torch.cat([prefix_keys, *seen], 2))


def test_own_history_is_one_full_pass_per_level(backbone: Any) -> None:
    """The paper's two passes: each level as if it were the only one."""
    both = ChunkEncoder(backbone, compressor_by_name("keydiff"), (2, 12), History.parse("own"))
    both.prefix(backbone.prefix())
    alone = {}
    for ratio in (2, 12):
        alone[ratio] = ChunkEncoder(backbone, compressor_by_name("keydiff"), (ratio,), History.parse("L"))
        alone[ratio].prefix(backbone.prefix())
    for i in range(3):
        levels = both.add(chunk_of_tokens(i))
        for ratio, encoder in alone.items():
            assert torch.equal(levels[ratio].keys, encoder.add(chunk_of_tokens(i))[ratio].keys)


def test_histories_differ(backbone: Any) -> None:
    """A negative control for the tests above: the setting changes what comes out."""
    results = []
    for history in ("H", "L"):
        encoder = ChunkEncoder(backbone, compressor_by_name("uniform"), (2, 12), History.parse(history))
        encoder.prefix(backbone.prefix())
        encoder.add(chunk_of_tokens(0))
        results.append(encoder.add(chunk_of_tokens(1))[2].values)
    assert (results[0] - results[1]).abs().max() > 0.1


@pytest.mark.parametrize("text", ["", "h", "recent", "recent:0", "recent:x", "all"])
def test_unknown_history_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="use H, L, own, fused, or recent:n"):
        History.parse(text)


def test_unknown_compressor_is_refused() -> None:
    with pytest.raises(SettingsError, match="'zip' is not known: use uniform, pool, keydiff, echo, snap, summary"):
        compressor_by_name("zip")
