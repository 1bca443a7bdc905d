"""Which keys of a chunk are indexed, and how they are read; no torch, since memories are checked without it."""

from __future__ import annotations

Votes = tuple[tuple[int, str], ...]
"""Pairs of a layer and how it is read: "confident", "best", or one head of it; see `videox2l.select.exact`.

A head is written "head K.J": the J-th query head of those that share kv head K.
"""


def head_of_vote(kind: str) -> tuple[int, int] | None:
    """Return kv head and query head within its group of a vote "head K.J"; None of votes of whole layers."""
    if not kind.startswith("head "):
        return None
    kv_head, query = kind.removeprefix("head ").split(".")
    return int(kv_head), int(query)


def voting_heads(votes: Votes, query_heads: int) -> int:
    """Return how many query heads votes read, over all layers; a layer has `query_heads`."""
    whole = {layer for layer, kind in votes if head_of_vote(kind) is None}
    return query_heads * len(whole) + sum(head_of_vote(kind) is not None for _, kind in votes)


def index_rows(votes: Votes, heads: int) -> tuple[tuple[int, int], ...]:
    """Return the pairs of layer and kv head, ascending, whose keys votes need; `heads`: kv heads of a layer."""
    rows = set[tuple[int, int]]()
    for layer, kind in votes:
        head = head_of_vote(kind)
        rows |= {(layer, k) for k in range(heads)} if head is None else {(layer, head[0])}
    return tuple(sorted(rows))
