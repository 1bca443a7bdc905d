"""Two levels with selective re-loading (arXiv 2506.21184) at a budget of bytes, and Video-XL-2's way of it."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace

from torch import Tensor

from videox2l.compress import (
    Compressor,
    PairCompressor,
    PoolCompressor,
    RankedCompressor,
    UniformScorer,
    compressor_by_name,
)
from videox2l.engine.backbone import Backbone
from videox2l.evaluate.base import MethodOutput, Sample, VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.flop_counter import Count, FlopCounter
from videox2l.evaluate.methods.plain import default_compressor
from videox2l.evaluate.static_cache import generate_answer, prompt_of
from videox2l.memory import Memory, Plan, build_cache
from videox2l.options import DEFAULT_SELECTOR
from videox2l.select import ManualSelector, RandomSelector, Selector, selector_by_name
from videox2l.select.base import best_first
from videox2l.select.exact import ExactSelector
from videox2l.types import TextTokens


@dataclass(frozen=True)
class Greedy:
    """Spends a number of visual tokens on the best chunks: L in order of worth (`best_first`), the last one as far
    as they reach.

    Every chunk has its H, unless all of them together are more than the share `gist` of the tokens: then only as many
    chunks as that pays for, evenly spread, so that there is something left for L; without `tokens` all have it. Ranked
    levels can be read at any size, so that every question attends to the same number of bytes.
    """

    tokens: int
    gist: float = 1.0
    needs_scores: bool = True

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan; ties go to the earlier chunk."""
        if scores is None:
            return Plan.at([memory.coarsest] * len(memory))
        low = [chunk.size(memory.coarsest) for chunk in memory.chunks]
        ratios, reasons = [memory.coarsest] * len(memory), [""] * len(memory)
        if self.tokens and sum(low) > self.gist * self.tokens and memory.coarsest > memory.finest:
            every = sum(low) / max(1.0, self.gist * self.tokens)  # one chunk of so many keeps its H
            for i in range(len(memory)):
                if int((i + 1) / every) == int(i / every):
                    low[i], ratios[i] = 0, math.inf
        left = self.tokens - sum(low)
        for rank, i in enumerate(best_first(scores, memory), 1):
            whole = memory.chunks[i].size(memory.finest)
            more = min(left, whole - low[i])
            if more <= 0:
                break
            size = low[i] + more
            ratios[i] = memory.finest if size == whole else memory.chunks[i].tokens / (size + 1e-6)
            reasons[i] = f"score rank {rank}"
            left -= more
        return Plan(tuple(ratios), tuple(float(score) for score in scores), tuple(reasons))


@dataclass(frozen=True)
class TwoLevelMethod:
    """Every chunk at H, the best chunks at L, as many as the budget pays for.

    The rule for a budget: H takes the share `gist` of the tokens, L keeps one token in `finest`; what H leaves goes to
    chunks at L in order of score. `select` makes a sample's selector; `compressor` is the model's default. Each chunk
    of the run is cut into `split` ones, where its tokens can be cut. Without `reload` the question sees H alone.
    """

    name: str
    about: str
    select: Callable[[Sample], Selector]
    compressor: Compressor | str | None = None
    finest: float = 2.0
    gist: float = 0.5
    history: str = "H"
    split: int = 2
    reload: bool = True
    at_budget: bool = True
    uses_question: bool = True
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Ingest the video at the ratios that the rule gives."""
        memory, flops = self.memory(video, budget)
        n = video.allowance(budget) if self.reload else 0
        return _TwoLevels(video, memory, Greedy(n, self.gist), self.select, max_new_tokens, flops)

    def memory(self, video: EncodedVideo, budget: float) -> tuple[Memory, int | None]:
        """Return the memory that the rule gives at a budget, and the FLOPs of its ingest."""
        n = video.allowance(budget)
        coarsest = video.visual / max(1.0, self.gist * n)
        whole = video.visual / n  # where the budget pays for L everywhere, there is one level
        ratios = (whole,) if whole <= self.finest else (self.finest, coarsest)
        given = default_compressor(video.backbone) if self.compressor is None else self.compressor
        compressor = compressor_by_name(given) if isinstance(given, str) else given
        name = given if isinstance(given, str) else None
        return video.memory(compressor, ratios, self.history, name, video.split(self.split))


@dataclass(frozen=True)
class _Counted:
    """A selector that reads `query`, if there is one, in place of the prompt, and says what its passes read."""

    selector: Selector
    query: str
    meter: FlopCounter
    counts: list[Count]

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        if isinstance(self.selector, ExactSelector):
            with self.meter.paused():
                self.selector.prepare(memory, backbone)
        with self.meter.counting() as count:
            read = replace(backbone.suffix(self.query), text=self.query) if self.query else question
            scores = self.selector.score(read, memory, backbone)
        self.counts.append(count)
        return scores


@dataclass(frozen=True)
class _TwoLevels:
    video: EncodedVideo
    memory: Memory
    budget: Greedy
    select: Callable[[Sample], Selector]
    max_new_tokens: int
    flops: int | None

    def ask(self, sample: Sample) -> MethodOutput:
        """Ask through the pipeline."""
        selector = _Counted(self.select(sample), sample.query, self.video.meter, [])
        answer = self.video.x2l.ask(
            self.memory,
            sample.question,
            reload=self.budget,
            selector=selector,
            max_new_tokens=1 if sample.candidates else self.max_new_tokens,
        )
        each = self.memory.shape.token_bytes
        coarse = sum(chunk.size(self.memory.coarsest) for chunk in self.memory.chunks) + self.video.prefix_tokens
        scores = [moment.score for moment in answer.evidence]
        text = answer.text
        if sample.candidates:
            backbone = self.video.backbone
            mixed = build_cache(self.memory, Plan.at([moment.ratio for moment in answer.evidence]), backbone, room=64)
            prompt = prompt_of(backbone, sample)
            text = generate_answer(backbone, mixed.cache, mixed.next_position, prompt, 1, sample.candidates).text
        return MethodOutput(
            text=text,
            tokens=answer.cost.tokens,
            bytes_attended=answer.cost.bytes,
            bytes_kept=self.memory.nbytes(),
            bytes_device=coarse * each,
            bytes_reloaded=answer.cost.reloaded_bytes,
            bytes_selected=selector.counts[0].bytes_read if selector.counts else 0,
            flops_ingest=self.flops,
            seconds=answer.cost.seconds,
            scores=None if None in scores else [float(score) for score in scores if score is not None],
            plan={
                "ratios": [None if moment.ratio == math.inf else round(moment.ratio, 4) for moment in answer.evidence]
            },
            reloaded=[(moment.start, moment.end) for moment in answer.reloaded],
        )


def selecting(name: str) -> Callable[[Sample], Selector]:
    """Return what makes a sample's selector: one of the package, or "oracle" (the true moments), or "random"."""
    if name == "oracle":
        return lambda sample: ManualSelector(sample.moments)
    if name == "random":
        return lambda sample: RandomSelector(zlib.crc32(sample.id.encode()))
    selector = selector_by_name(name)
    return lambda _: selector


def x2l_method(selector: str = "") -> TwoLevelMethod:
    """Return the package's own method with a selector, by default the default one."""
    name = f"x2l:{selector}" if selector else "x2l"
    if selector == "none":
        about = "the H of x2l alone, nothing re-loaded: what the gist knows, at fewer bytes than the budget"
        return TwoLevelMethod(name, about, selecting("random"), reload=False, uses_question=False)
    about = f"two levels, {f'selector {selector}' if selector else 'default selector'}, arXiv 2506.21184"
    return TwoLevelMethod(name, about, selecting(selector or DEFAULT_SELECTOR))


def xl2_method(selector: str = "") -> TwoLevelMethod:
    """Return Video-XL-2's way: pooled KVs everywhere, full KVs of selected chunks.

    Its published evaluation uses picks made in advance by another model; here the package's selector picks. Full KVs
    keep their tokens in an order in which any number of the first ones are evenly spread.
    """
    return TwoLevelMethod(
        name=f"xl2:{selector}" if selector else "xl2",
        about="Video-XL-2's levels, arXiv 2506.19225: dense or mean-pooled chunks",
        select=selecting(selector or DEFAULT_SELECTOR),
        compressor=PairCompressor(RankedCompressor(UniformScorer()), PoolCompressor()),
        finest=1.0,
        split=1,
    )


__all__ = ["Greedy", "TwoLevelMethod", "selecting", "x2l_method", "xl2_method"]
