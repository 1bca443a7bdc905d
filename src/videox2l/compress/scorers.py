"""Training-free scores for ranking the tokens of a chunk: one class per method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from videox2l.compress.base import ChunkKV


@dataclass(frozen=True)
class UniformScorer:
    """Every r-th token, whatever it holds: the baseline that any content-based score must beat.

    Tokens are ranked by their index with its bits reversed (van der Corput's sequence), so that the first n / r of
    them are exactly the multiples of r for every power of two, and are spread evenly for any other ratio.
    """

    window: int = 0
    echo: bool = False

    def score(self, chunk: ChunkKV) -> Tensor:
        """Return the same scores (layers, heads, n) for all layers and heads."""
        layers, heads, n, _ = chunk.keys.shape
        bits = max(1, (n - 1).bit_length())
        index = torch.arange(n)
        reversed_bits = sum(((index >> bit) & 1) << (bits - 1 - bit) for bit in range(bits))
        return -torch.as_tensor(reversed_bits, dtype=torch.float32).to(chunk.keys.device).expand(layers, heads, n)


@dataclass(frozen=True)
class KeyDiffScorer:
    """KeyDiff (arXiv 2504.15364): keep the keys that differ most from the chunk's mean direction."""

    window: int = 0
    echo: bool = False

    def score(self, chunk: ChunkKV) -> Tensor:
        """Return minus the cosine between each key and the mean of all normalised keys: (layers, heads, n)."""
        keys = F.normalize(chunk.keys.float(), dim=-1)
        anchor = F.normalize(keys.mean(dim=2, keepdim=True), dim=-1)
        return -(keys * anchor).sum(-1)


@dataclass(frozen=True)
class SnapScorer:
    """SnapKV (arXiv 2404.14469) within a chunk: what the chunk's own last `window` queries attend to.

    The question is not known at ingest, so the observation window is the end of the chunk itself; its own tokens
    compete on equal terms, and each counts only the queries that can see it. `kernel` smooths over neighbours.
    """

    window: int = 16
    kernel: int = 1
    echo: bool = False

    def score(self, chunk: ChunkKV) -> Tensor:
        """Return mean attention weights (layers, heads, n)."""
        assert chunk.queries is not None, "SnapScorer needs the chunk's last queries"
        layers, heads, n, d = chunk.keys.shape
        w = chunk.queries.shape[2]
        q = chunk.queries.float().reshape(layers, heads, -1, w, d)  # (layers, heads, group, w, d)
        logits = q @ chunk.keys.float()[:, :, None].transpose(-1, -2) * chunk.scaling
        visible = torch.ones(w, n, dtype=torch.bool, device=q.device).tril(n - w)
        weights = logits.masked_fill(~visible, -torch.inf).softmax(-1)
        score = weights.mean(2).sum(2) / visible.sum(0)  # (layers, heads, n)
        if self.kernel > 1:
            score = F.avg_pool1d(score, self.kernel, stride=1, padding=self.kernel // 2, count_include_pad=False)
        return score


@dataclass(frozen=True)
class EchoScorer:
    """KVzip's idea (arXiv 2505.23416) within a chunk: keep what the chunk, fed once more, looks at.

    Whoever repeats a text looks up every piece of it once, so what no repeated token looks at is not needed. Weights
    are shares among the chunk's own keys; a key counts by the most that any repeated token and query head gives it.
    """

    window: int = 0
    echo: bool = True

    def score(self, chunk: ChunkKV) -> Tensor:
        """Return the largest attention weights (layers, heads, n)."""
        assert chunk.queries is not None, "EchoScorer needs the queries of the echo"
        heads, d = chunk.keys.shape[1], chunk.keys.shape[-1]
        scores = []
        for queries, keys in zip(chunk.queries, chunk.keys, strict=True):  # by layer: n * n weights at a time
            q = queries.float().reshape(heads, -1, d)  # (heads, group * n, d)
            weights = (q @ keys.float().transpose(-1, -2) * chunk.scaling).softmax(-1)
            scores.append(weights.amax(1))
        return torch.stack(scores)
