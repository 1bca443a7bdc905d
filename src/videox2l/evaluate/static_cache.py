"""Answering from KVs that stay as they are between questions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone, warn_beyond
from videox2l.engine.cache import BufferCache
from videox2l.engine.decode import generate
from videox2l.evaluate.base import MethodOutput, Sample
from videox2l.evaluate.encode import EncodedVideo
from videox2l.options import SamplingParams
from videox2l.types import TextTokens


def prompt_of(backbone: Backbone, sample: Sample) -> TextTokens:
    """Return the tokens of a sample's question, template included."""
    return replace(backbone.suffix(sample.question), text=sample.question)


def layered_cache(backbone: Backbone, layers: Sequence[tuple[Tensor, Tensor]], room: int) -> BufferCache:
    """Return a cache of keys and values (heads, n, head_dim) per layer; layers may differ in n."""
    cache = backbone.new_cache(max(keys.shape[1] for keys, _ in layers) + room)
    for layer, (keys, values) in zip(cache.layers, layers, strict=True):
        layer.update(keys[None].to(backbone.device), values[None].to(backbone.device))
    return cache


def cache_bytes(backbone: Backbone, cache: BufferCache) -> int:
    """Return the bytes of KVs that a pass behind `cache` attends to."""
    columns = int(sum(layer.length for layer in cache.layers))
    return columns * backbone.shape.token_bytes // backbone.shape.layers


@dataclass(frozen=True)
class GeneratedAnswer:
    """An answer and the seconds of its stages."""

    text: str
    prefill: float
    decode: float


def generate_answer(
    backbone: Backbone,
    cache: BufferCache,
    next_position: int,
    prompt: TextTokens,
    max_new_tokens: int,
    candidates: Sequence[str] = (),
) -> GeneratedAnswer:
    """Answer behind what `cache` holds, and leave the cache as it was: greedily, or by the likeliest candidate."""
    held = [layer.length for layer in cache.layers]
    clock = [perf_counter()]
    try:
        warn_beyond(backbone, next_position + len(prompt) + max_new_tokens, "the question with its answer")
        positions = backbone.text_positions(next_position, len(prompt))
        logits = backbone.logits(backbone.forward(prompt.embeds, positions, cache)[-1:])[0]
        clock.append(perf_counter())
        if candidates:
            ids = likeliest(backbone, cache, logits, next_position + len(prompt), candidates)
        else:
            sampling = SamplingParams(max_new_tokens=max_new_tokens)
            ids = list(generate(backbone, cache, logits, next_position + len(prompt), sampling, prompt.ids.tolist))
    finally:
        for layer, length in zip(cache.layers, held, strict=True):
            layer.crop(length)
    clock.append(perf_counter())
    return GeneratedAnswer(backbone.decode(ids).strip(), clock[1] - clock[0], clock[2] - clock[1])


def likeliest(
    backbone: Backbone, cache: BufferCache, logits: Tensor, position: int, candidates: Sequence[str]
) -> list[int]:
    """Return the token ids of the likeliest answer among texts.

    `logits` (vocabulary,) are those before the first token, which stands at `position`. Beginnings that are already
    less likely than a whole candidate are not read: a longer text is never likelier than its beginning. No candidate
    may be the beginning of another. Appends to the cache and crops it back.
    """
    texts = [backbone.reply(text) for text in candidates]
    held = [layer.length for layer in cache.layers]
    open_ends: list[tuple[float, list[int]]] = [(0.0, [])]
    while True:
        score, begun = max(open_ends, key=lambda end: end[0])
        if begun in texts:
            return begun
        open_ends.remove((score, begun))
        if begun:
            ids = torch.tensor(begun, device=logits.device)
            hidden = backbone.forward(backbone.embed(ids), backbone.text_positions(position, len(ids)), cache)
            after = backbone.logits(hidden[-1:])[0].float().log_softmax(-1)
            for layer, length in zip(cache.layers, held, strict=True):
                layer.crop(length)
        else:
            after = logits.float().log_softmax(-1)
        following = {ids[len(begun)] for ids in texts if len(ids) > len(begun) and ids[: len(begun)] == begun}
        open_ends += [(score + float(after[token]), [*begun, token]) for token in sorted(following)]


@dataclass(frozen=True)
class StaticSession:
    """Answers every question from the same KVs. `plan` as in `MethodOutput`."""

    video: EncodedVideo
    cache: BufferCache
    max_new_tokens: int
    flops: int | None
    next_position: int | None = None
    plan: Any = None

    def ask(self, sample: Sample) -> MethodOutput:
        """Answer one question."""
        backbone = self.video.backbone
        first = self.video.next_position if self.next_position is None else self.next_position
        size = cache_bytes(backbone, self.cache)
        written = generate_answer(
            backbone, self.cache, first, prompt_of(backbone, sample), self.max_new_tokens, sample.candidates
        )
        return MethodOutput(
            text=written.text,
            tokens=size / backbone.shape.token_bytes,
            bytes_attended=size,
            bytes_kept=size,
            bytes_device=size,
            flops_ingest=self.flops,
            seconds={"select": 0.0, "reload": 0.0, "prefill": written.prefill, "decode": written.decode},
            plan=self.plan,
        )
