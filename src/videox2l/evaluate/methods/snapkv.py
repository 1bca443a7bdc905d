"""SnapKV (arXiv 2404.14469) without and with the question, and PyramidKV (arXiv 2406.02069)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from time import perf_counter

import torch
from torch import Tensor
from torch.nn import functional as F

from videox2l.compress.ranked import QueryTap
from videox2l.engine.attention import grouped
from videox2l.evaluate.base import MethodOutput, Sample, VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.methods.evict import best, kept_cache
from videox2l.evaluate.static_cache import StaticSession, cache_bytes, generate_answer, prompt_of

WINDOW = 16
KERNEL = 1
"""The paper smooths scores over neighbours; on the development split none was better by 10 points at 1/8 of full KV."""


def observed(
    video: EncodedVideo, queries: Sequence[Tensor], scaling: float, hidden: int, kernel: int = KERNEL
) -> list[Tensor]:
    """Return what queries (query_heads, w, head_dim) per layer attend to: (heads, n - hidden) each.

    The last `hidden` visual tokens are the window itself and are not scored. Attention is a softmax over all columns up
    to the window, averaged over `kernel` neighbours, summed over the queries and averaged over the heads of a group.
    """
    full = video.full
    found = []
    for layer, query in enumerate(queries):
        held = full.cache.layers[layer].keys[0, :, : len(full) - hidden].float()  # (heads, m, d)
        rows = grouped(query[None].float(), held.shape[0])  # (heads, group, w, d)
        weights = (rows @ held[:, None].transpose(-1, -2) * scaling).softmax(-1)
        score = weights.mean(1).sum(1)[:, full.prefix :]  # (heads, n - hidden)
        found.append(F.avg_pool1d(score, kernel, stride=1, padding=kernel // 2, count_include_pad=False))
    return found


def window_scores(video: EncodedVideo, n: int, most: int = WINDOW, kernel: int = KERNEL) -> Sequence[Tensor]:
    """What the last visual tokens attend to; they themselves are kept. The question is not known.

    The window has up to `most` tokens, but at most a quarter of what is kept.
    """
    window = min(most, max(1, n // 4))

    def score() -> list[Tensor]:
        full, tap = video.full, QueryTap(window)
        first = len(full) - window
        held = full.cache.columns(first)
        full.cache.crop(first)
        embeds = full.embeds[-window:].to(video.backbone.device)
        video.backbone.forward(embeds, full.positions[:, -window:], full.cache, tap)
        full.cache.crop(first)
        full.cache.append(*held)  # as they were: made again, they would differ by rounding
        seen = observed(video, tap.queries, tap.scaling, window, kernel)
        return [F.pad(scores, (0, window), value=torch.inf) for scores in seen]

    return video.made_once(f"snapkv {window} {kernel}", score)


def pyramid(n: int, layers: int, tokens: int, beta: float = 20.0) -> list[int]:
    """Return how many tokens each layer keeps: falling in equal steps, the mean being `n`.

    The last layer keeps n / beta of them, where the first can hold what that leaves (arXiv 2406.02069).
    """
    if layers == 1:
        return [min(n, tokens)]
    low = max(n / beta, 2 * n - tokens, 1.0)
    high = 2 * n - low
    shares = [high + (low - high) * layer / (layers - 1) for layer in range(layers)]
    sizes = [int(share) for share in shares]
    for layer in range(n * layers - sum(sizes)):  # what rounding left goes to the first layers
        sizes[layer % layers] += 1
    return [min(size, tokens) for size in sizes]


@dataclass(frozen=True)
class PyramidMethod:
    """PyramidKV: SnapKV's scores, more tokens in the lower layers than in the upper ones."""

    name: str = "pyramid"
    about: str = "PyramidKV, arXiv 2406.02069"
    at_budget: bool = True
    uses_question: bool = False
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the video and evict."""
        n = video.allowance(budget)
        sizes = pyramid(n, video.full.layers, video.visual)
        layers = [best(scores, size) for scores, size in zip(window_scores(video, n), sizes, strict=True)]
        return StaticSession(video, kept_cache(video, layers, room=64), max_new_tokens, video.full.flops)


@dataclass(frozen=True)
class QuestionSnapMethod:
    """SnapKV with the question as its window: the whole KV is read and compressed again for every question.

    The question is prefilled on full KV once to score, then again on what was kept, which is all that its answer may
    see. Full KV has to stay for the next question: the bytes kept say so.
    """

    name: str = "snapkv+q"
    about: str = "SnapKV with the question, arXiv 2404.14469; compresses anew for each question"
    at_budget: bool = True
    uses_question: bool = True
    reusable: bool = False

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the video."""
        return _QuestionSnap(video, video.allowance(budget), max_new_tokens)


@dataclass(frozen=True)
class _QuestionSnap:
    video: EncodedVideo
    n: int
    max_new_tokens: int

    def ask(self, sample: Sample) -> MethodOutput:
        """Score by the question, evict, answer."""
        video, backbone, full = self.video, self.video.backbone, self.video.full
        prompt = prompt_of(backbone, sample)
        started = perf_counter()
        tap = QueryTap(len(prompt))
        backbone.forward(prompt.embeds, backbone.text_positions(video.next_position, len(prompt)), full.cache, tap)
        full.cache.crop(len(full))
        layers = [best(scores, self.n) for scores in observed(video, tap.queries, tap.scaling, 0)]
        chosen = perf_counter()
        cache = kept_cache(video, layers, room=len(prompt) + self.max_new_tokens)
        laid = perf_counter()
        written = generate_answer(backbone, cache, video.next_position, prompt, self.max_new_tokens, sample.candidates)
        size = cache_bytes(backbone, cache)
        return MethodOutput(
            text=written.text,
            tokens=size / backbone.shape.token_bytes,
            bytes_attended=size,
            bytes_kept=video.full_bytes,
            bytes_device=video.full_bytes,
            bytes_selected=video.full_bytes,
            flops_ingest=full.flops,
            seconds={
                "select": chosen - started,
                "reload": laid - chosen,
                "prefill": written.prefill,
                "decode": written.decode,
            },
        )
