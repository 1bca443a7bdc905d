"""ReKV's way (arXiv 2503.00540): full KV stays outside, each layer fetches the frames that the question resembles."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from videox2l.engine.rope import unrotate
from videox2l.evaluate.base import MethodOutput, Sample, VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.methods.evict import kept_cache
from videox2l.evaluate.methods.simple import spread
from videox2l.evaluate.static_cache import cache_bytes, generate_answer, prompt_of
from videox2l.types import TextTokens


@dataclass(frozen=True)
class RekvMethod:
    """Retrieval without H: a question attends to the prefix and to the full KVs of the retrieved frames alone.

    In each layer a frame's score is the dot product of its mean key with the mean query of the question, before RoPE
    and over all heads; the question's queries come from the layers below with what they retrieved. The last frame is
    cut evenly to what the budget leaves.
    """

    name: str = "rekv"
    about: str = "ReKV, arXiv 2503.00540: retrieved frames alone"
    at_budget: bool = True
    uses_question: bool = True
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the video and average the keys of each frame."""
        return _Rekv(video, video.allowance(budget), max_new_tokens, mean_keys(video))


def mean_keys(video: EncodedVideo) -> list[Tensor]:
    """Return the mean unrotated key of each group of frames, per layer (heads, groups, d)."""

    def make() -> list[Tensor]:
        full, backbone = video.full, video.backbone
        cos, sin = backbone.rotation(full.positions)
        label = torch.cat([torch.full((len(g.tokens),), i) for i, g in enumerate(video.groups)]).to(cos.device)
        sizes = torch.bincount(label).to(cos)
        found = []
        for layer in range(full.layers):
            plain = unrotate(full.keys(layer), cos, sin)
            sums = plain.new_zeros(plain.shape[0], len(sizes), plain.shape[2]).index_add_(1, label, plain)
            found.append(sums / sizes[:, None])
        return found

    return video.made_once("mean keys", make)


@dataclass
class _MeanQuery:
    """A probe that keeps the mean unrotated query of one layer, summed over the heads of a group: (kv_heads, d)."""

    layer: int
    rotation: tuple[Tensor, Tensor]
    found: list[Tensor] = field(default_factory=list)

    def __call__(self, layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        """Look at one layer."""
        del scaling
        if layer == self.layer:
            plain = unrotate(query[0], *self.rotation).mean(1)  # (query_heads, d)
            self.found.append(plain.reshape(key.shape[1], -1, plain.shape[-1]).sum(1))


@dataclass(frozen=True)
class _Rekv:
    video: EncodedVideo
    n: int
    max_new_tokens: int
    means: Sequence[Tensor]

    def ask(self, sample: Sample) -> MethodOutput:
        """Retrieve layer after layer, then answer."""
        video, backbone = self.video, self.video.backbone
        prompt = prompt_of(backbone, sample)
        started = perf_counter()
        kept, chosen, scores = self._retrieve(prompt)
        picked = perf_counter()
        cache = kept_cache(video, kept, room=len(prompt) + self.max_new_tokens)
        laid = perf_counter()
        written = generate_answer(backbone, cache, video.next_position, prompt, self.max_new_tokens, sample.candidates)
        size = cache_bytes(backbone, cache)
        text = video.prefix_tokens * backbone.shape.token_bytes
        features = sum(keys.numel() * backbone.shape.dtype.itemsize for keys in self.means)
        often = [i for i in range(len(video.groups)) if 2 * sum(i in frames for frames in chosen) >= len(chosen)]
        return MethodOutput(
            text=written.text,
            tokens=size / backbone.shape.token_bytes,
            bytes_attended=size,
            bytes_kept=video.full_bytes + features,
            bytes_device=text + features,
            bytes_reloaded=size - text,
            bytes_selected=features,
            flops_ingest=video.full.flops,
            seconds={
                "select": picked - started,
                "reload": laid - picked,
                "prefill": written.prefill,
                "decode": written.decode,
            },
            scores=scores,
            plan={"frames by layer": chosen},
            reloaded=[(video.groups[i].start, video.groups[i].end) for i in often],
        )

    def _retrieve(self, prompt: TextTokens) -> tuple[list[Tensor], list[list[int]], list[float]]:
        """Return the kept columns (heads, n) and the retrieved groups of each layer, and mean scores of the groups."""
        video, backbone = self.video, self.video.backbone
        positions = backbone.text_positions(video.next_position, len(prompt))
        rotation = backbone.rotation(positions)
        nothing = torch.zeros(backbone.shape.heads, 0, dtype=torch.long)
        kept = [nothing] * len(self.means)
        chosen, total = [], torch.zeros(len(video.groups))
        for layer, means in enumerate(self.means):
            cache = kept_cache(video, kept, room=len(prompt))
            tap = _MeanQuery(layer, rotation)
            backbone.forward(prompt.embeds, positions, cache, tap)
            scores = (means * tap.found[0][:, None]).sum((0, 2)).cpu()  # (groups,)
            columns, frames = self._columns(scores)
            kept[layer] = columns.expand(backbone.shape.heads, -1)
            chosen.append(frames)
            total += scores
        return kept, chosen, (total / len(self.means)).tolist()

    def _columns(self, scores: Tensor) -> tuple[Tensor, list[int]]:
        """Return the visual tokens (n,) of the best groups, in order of time, and these groups."""
        groups, left = self.video.groups, self.n
        starts = [0]
        for group in groups:
            starts.append(starts[-1] + len(group.tokens))
        parts, frames = [], []
        for i in scores.argsort(descending=True, stable=True).tolist():
            size = len(groups[i].tokens)
            parts.append(torch.tensor(spread(min(size, left), size)) + starts[i])
            frames.append(i)
            left -= min(size, left)
            if not left:
                break
        return torch.cat(parts).sort().values, sorted(frames)
