"""The attention function against plain softmax attention, and the buffer cache against growing tensors."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn import functional as F
from transformers import DynamicCache

from tests.conftest import make_qwen25
from videox2l.engine.attention import causal, kernels, x2l_attention
from videox2l.engine.cache import BufferCache


class Layer(torch.nn.Module):
    layer_idx = 5


def reference(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float) -> torch.Tensor:
    """Softmax attention, every head and row written out."""
    _, heads, n, _ = q.shape
    m, group = k.shape[2], heads // k.shape[1]
    out = torch.zeros(1, n, heads, v.shape[-1])
    for h in range(heads):
        for i in range(n):
            seen = m - n + i + 1
            weights = (k[0, h // group, :seen] @ q[0, h, i] * scale).softmax(0)
            out[0, i, h] = weights @ v[0, h // group, :seen]
    return out


@pytest.mark.parametrize(("n", "m"), [(1, 1), (1, 9), (4, 4), (4, 9), (7, 8)])
@pytest.mark.parametrize(("heads", "kv"), [(4, 4), (6, 2), (4, 1)])
def test_equals_written_out_attention(n: int, m: int, heads: int, kv: int) -> None:
    torch.manual_seed(n * m)
    q, k, v = torch.randn(1, heads, n, 8), torch.randn(1, kv, m, 8), torch.randn(1, kv, m, 8)
    out, weights = x2l_attention(Layer(), q, k, v, None, scaling=0.3)
    assert weights is None
    torch.testing.assert_close(out, reference(q, k, v, 0.3), atol=1e-5, rtol=1e-5)


def test_a_probe_sees_what_attention_sees() -> None:
    seen: list[Any] = []
    q, k = torch.randn(1, 4, 2, 8), torch.randn(1, 2, 5, 8)
    x2l_attention(Layer(), q, k, k, None, x2l_probe=lambda *args: seen.append(args))
    layer, query, key, scaling = seen[0]
    assert (layer, scaling) == (5, 8**-0.5)
    assert torch.equal(query, q)
    assert torch.equal(key, k)


@torch.no_grad()
def test_the_decoder_equals_the_library_with_its_own_cache_and_attention() -> None:
    """Ragged pieces through BufferCache and x2l attention; eager attention and DynamicCache as the reference."""
    ours, _ = make_qwen25()
    stock, _ = make_qwen25()
    from videox2l.engine.attention import install

    install(ours.get_decoder())
    stock.get_decoder().set_attn_implementation("eager")
    x = torch.randn(1, 23, 64)
    positions = torch.arange(23).expand(3, 1, -1)
    expect = stock.get_decoder()(
        inputs_embeds=x, position_ids=positions, past_key_values=DynamicCache()
    ).last_hidden_state
    cache = BufferCache(3, capacity=4)  # too small on purpose: it has to grow
    pieces = []
    for start, end in [(0, 5), (5, 6), (6, 20), (20, 23)]:
        out = ours.get_decoder()(
            inputs_embeds=x[:, start:end], position_ids=positions[..., start:end], past_key_values=cache, use_cache=True
        )
        pieces.append(out.last_hidden_state)
    torch.testing.assert_close(torch.cat(pieces, 1), expect, atol=1e-4, rtol=1e-4)


def test_buffer_cache_appends_crops_and_grows_without_losing_columns() -> None:
    torch.manual_seed(0)
    cache = BufferCache(layers=2, capacity=3)
    columns = [torch.randn(2, 2, n, 4) for n in (2, 1, 5, 9)]
    for part in columns:
        cache.append(part, part + 1)
    keys, values = cache.columns(0)
    assert torch.equal(keys, torch.cat(columns, 2))
    assert torch.equal(values, torch.cat(columns, 2) + 1)
    assert len(cache) == cache.get_seq_length() == 17
    assert cache.nbytes() == 2 * keys.numel() * 4
    cache.crop(3)
    cache.append(columns[0], columns[0])
    assert torch.equal(cache.columns(0)[0], torch.cat([*columns[:2], columns[0]], 2))
    with pytest.raises(ValueError, match="cannot crop a cache of 5 columns to 6"):
        cache.crop(6)


def test_an_empty_cache_is_true() -> None:
    assert BufferCache(1)
    assert len(BufferCache(1)) == 0


def test_columns_are_copies() -> None:
    cache = BufferCache(1)
    cache.append(torch.ones(1, 1, 2, 4), torch.ones(1, 1, 2, 4))
    keys, _ = cache.columns(0)
    cache.crop(0)
    cache.append(torch.zeros(1, 1, 2, 4), torch.zeros(1, 1, 2, 4))
    assert keys.eq(1).all()


def test_the_mask_that_cuda_gets_is_the_one_that_is_written_out() -> None:
    """On a CPU the library writes `causal_lower_right` out; the upper-left one is the negative control."""
    from torch.nn.attention.bias import causal_lower_right, causal_upper_left

    torch.manual_seed(1)
    query, key, value = torch.randn(1, 8, 5, 16), torch.randn(1, 2, 70, 16), torch.randn(1, 2, 70, 16)
    expect = causal(query, key, value, 0.25)
    for mask, same in ((causal_lower_right(5, 70), True), (causal_upper_left(5, 70), False)):
        found = F.scaled_dot_product_attention(query, key, value, mask, scale=0.25, enable_gqa=True)
        assert torch.allclose(found, expect, atol=1e-5) is same


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: its kernels are not tried")
@pytest.mark.parametrize("rows", [1, 7, 70])
def test_kernels_of_a_gpu_give_what_the_cpu_gives(rows: int) -> None:
    torch.manual_seed(2)
    query, key, value = (torch.randn(1, heads, n, 64) for heads, n in ((8, rows), (2, 70), (2, 70)))
    expect = causal(query, key, value, 0.125)
    for dtype, atol in ((torch.float32, 1e-4), (torch.bfloat16, 0.02)):
        with kernels(torch.device("cuda")):
            found = causal(*(part.to("cuda", dtype) for part in (query, key, value)), 0.125)
        torch.testing.assert_close(found.float().cpu(), expect, atol=atol, rtol=0.02)
