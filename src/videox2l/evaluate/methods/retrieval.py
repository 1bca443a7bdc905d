"""Retrieval only: the chunks that two levels would re-load, and nothing of the others."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from videox2l.evaluate.base import MethodOutput, Sample, VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.methods.two_levels import TwoLevelMethod, selecting
from videox2l.evaluate.static_cache import cache_bytes, generate_answer, prompt_of
from videox2l.memory import Memory, Plan, build_cache
from videox2l.options import DEFAULT_SELECTOR
from videox2l.select import Selector
from videox2l.select.base import best_first


@dataclass(frozen=True)
class RetrievalMethod:
    """What H is worth: the memory and the selector of `x2l`, its best chunks at L up to the budget, no H.

    Chunks are taken in order of score, the last one as far as the budget reaches.
    """

    levels: TwoLevelMethod
    name: str = "retrieval"
    about: str = "the chunks that x2l picks at L, without any H"
    at_budget: bool = True
    uses_question: bool = True
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Ingest the video as `x2l` does."""
        memory, flops = self.levels.memory(video, budget)
        return _Retrieval(video, memory, video.allowance(budget), self.levels.select, max_new_tokens, flops)


@dataclass(frozen=True)
class _Retrieval:
    video: EncodedVideo
    memory: Memory
    tokens: int
    select: Callable[[Sample], Selector]
    max_new_tokens: int
    flops: int | None

    def ask(self, sample: Sample) -> MethodOutput:
        """Answer one question behind the best chunks alone."""
        backbone, memory = self.video.backbone, self.memory
        prompt = prompt_of(backbone, sample)
        clock = [perf_counter()]
        with self.video.meter.counting() as count:
            scores = self.select(sample).score(prompt, memory, backbone)
        clock.append(perf_counter())
        sizes: dict[int, int] = {}
        left = self.tokens
        for i in best_first(scores, memory):
            if left <= 0:
                break
            sizes[i] = min(left, memory.chunks[i].size(memory.finest))
            left -= sizes[i]
        picked = sorted(sizes)
        part = memory.only(picked)
        ratios = [
            memory.finest if sizes[i] == chunk.size(memory.finest) else chunk.tokens / (sizes[i] + 1e-6)
            for i, chunk in zip(picked, part.chunks, strict=True)
        ]
        mixed = build_cache(part, Plan.at(ratios), backbone, room=len(prompt) + self.max_new_tokens)
        clock.append(perf_counter())
        size = cache_bytes(backbone, mixed.cache)
        written = generate_answer(
            backbone, mixed.cache, mixed.next_position, prompt, self.max_new_tokens, sample.candidates
        )
        prefix = self.video.prefix_tokens * backbone.shape.token_bytes
        return MethodOutput(
            text=written.text,
            tokens=size / backbone.shape.token_bytes,
            bytes_attended=size,
            bytes_kept=memory.nbytes(),
            bytes_device=prefix,
            bytes_reloaded=size - prefix,
            bytes_selected=count.bytes_read,
            flops_ingest=self.flops,
            seconds={
                "select": clock[1] - clock[0],
                "reload": clock[2] - clock[1],
                "prefill": written.prefill,
                "decode": written.decode,
            },
            scores=[float(score) for score in scores],
            plan={"chunks": {str(i): sizes[i] for i in picked}},
            reloaded=[(chunk.start, chunk.end) for chunk in part.chunks],
        )


def retrieval_method(selector: str = "") -> RetrievalMethod:
    """Return retrieval with a selector, by default the default one."""
    levels = TwoLevelMethod("x2l", "", selecting(selector or DEFAULT_SELECTOR))
    return RetrievalMethod(levels, f"retrieval:{selector}" if selector else "retrieval")


__all__ = ["RetrievalMethod", "retrieval_method"]
