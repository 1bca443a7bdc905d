"""The attention function that the decoder runs with.

It is registered with transformers under a name of its own, so that no dense mask is built by the
library, layers may hold KVs of different lengths, and selectors and scorers can read queries and keys
after norm and RoPE, whatever the model.
"""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.attention.bias import causal_lower_right
from transformers import AttentionInterface

from videox2l.errors import ModelError

NAME = "x2l"
_MASK_ELEMENTS = 1 << 24
_FLASH_SIZE = 256  # of a head, at most
_OTHER_KINDS = ("sliding_window", "softcap", "s_aux")  # windows, capped logits, sinks


class Probe(Protocol):
    """Something that looks at attention while it is computed. It must not change what it sees."""

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Look at one layer.

        `query` (1, query_heads, n, head_dim) are the new tokens, `key` (1, kv_heads, m, head_dim) all tokens
        of the cache with the new ones last; both are normed and rotated.
        """


def kernels(device: torch.device) -> contextlib.AbstractContextManager[None]:
    """Return a context in which attention on `device` is computed by kernels that are chosen here.

    On CUDA flash attention, or where a dtype or shape has none the memory-efficient or the plain one. Left to itself
    PyTorch takes cuDNN for single queries, which plans a kernel anew for every length, that is for every token.
    """
    if device.type != "cuda":
        return contextlib.nullcontext()
    return sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH])


def grouped(query: Tensor, kv_heads: int) -> Tensor:
    """Return queries (b, query_heads, n, d) as (b * kv_heads, group, n, d): the queries that share a key."""
    batch, heads, n, d = query.shape
    return query.reshape(batch * kv_heads, heads // kv_heads, n, d)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor | None:
    """Return a bottom-right aligned causal mask (queries, keys), or None where every query sees every key."""
    if queries == 1:
        return None
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    scale: float,
    mask: Tensor | None = None,
    *,
    square: bool = False,
    dropout: float = 0.0,
) -> Tensor:
    """Attention without repeating keys for grouped queries.

    `query` (b, query_heads, n, d); `key`, `value` (b, kv_heads, m, d). `mask` (n, m) says what is seen, by default
    everything; `square` asks for the kernel's own causal mask (n == m). Returns (b, query_heads, n, d).
    """
    batch, heads, n, d = query.shape
    kv_heads, m = key.shape[1], key.shape[2]
    shared = grouped(query, kv_heads)
    keys, values = key.reshape(batch * kv_heads, 1, m, d), value.reshape(batch * kv_heads, 1, m, value.shape[-1])
    if mask is None and not square:
        # Queries that share keys and see all of them are rows of one head: each key is read once.
        shared = shared.reshape(batch * kv_heads, 1, -1, d)
    else:
        # Heads that share a key are the head axis of a batch of kv heads: expand() is a view, nothing is copied.
        keys, values = (x.expand(-1, heads // kv_heads, -1, -1) for x in (keys, values))
    out = F.scaled_dot_product_attention(
        shared, keys, values, attn_mask=mask, dropout_p=dropout, is_causal=square, scale=scale
    )
    return out.reshape(batch, heads, n, -1)


def causal(query: Tensor, key: Tensor, value: Tensor, scale: float, dropout: float = 0.0) -> Tensor:
    """Causal attention of the last `n` of `m` tokens; shapes as in `attend`.

    Flash attention on CUDA, in half precision, knows the mask of the last rows, kernels of CPUs that of a square only;
    of anything else it is written out, for a bounded number of rows at a time.
    """
    n, m = query.shape[2], key.shape[2]
    if n == m and n > 1:
        return attend(query, key, value, scale, square=True, dropout=dropout)
    if n > 1 and query.is_cuda and query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= _FLASH_SIZE:
        return F.scaled_dot_product_attention(
            query, key, value, causal_lower_right(n, m), dropout, scale=scale, enable_gqa=True
        )
    rows = max(1, _MASK_ELEMENTS // m)
    parts = []
    for start in range(0, n, rows):
        end = min(start + rows, n)
        seen = m - n + end
        mask = causal_mask(end - start, seen, query.device)
        parts.append(attend(query[:, :, start:end], key[:, :, :seen], value[:, :, :seen], scale, mask, dropout=dropout))
    return parts[0] if len(parts) == 1 else torch.cat(parts, 2)


def x2l_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor | list[Tensor],
    value: Tensor | list[Tensor],
    attention_mask: Tensor | None,  # noqa: ARG001
    dropout: float = 0.0,
    scaling: float | None = None,
    x2l_probe: Probe | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Causal attention of the last `n` of `m` tokens, as transformers calls it.

    `query` (b, query_heads, n, d); `key`, `value` (b, kv_heads, m, d), or of a `RaggedCache` b tensors, each of its own
    length. `attention_mask` is ignored: nothing is padded. Returns (b, n, query_heads, d), as transformers expects.
    Raises ModelError where the layer asks for attention of another kind.
    """
    for name in _OTHER_KINDS:
        if others.get(name) is not None:
            raise ModelError(f"{type(module).__name__} asks for attention with {name}, which is not supported")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if isinstance(key, list):
        rows = [causal(query[i : i + 1], key[i], value[i], scale, dropout) for i in range(len(key))]
        return torch.cat(rows).transpose(1, 2).contiguous(), None
    if x2l_probe is not None:
        x2l_probe(int(module.layer_idx), query, key, scale)  # type: ignore[arg-type]
    return causal(query, key, value, scale, dropout).transpose(1, 2).contiguous(), None  # type: ignore[arg-type]


def install(decoder: nn.Module, implementation: str = NAME) -> None:
    """Register the attention function and make `decoder` (the text model alone) use it, or another one."""
    AttentionInterface.register(NAME, x2l_attention)
    decoder.set_attn_implementation(implementation)  # type: ignore[operator]
