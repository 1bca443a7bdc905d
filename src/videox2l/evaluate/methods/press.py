"""Scorers of NVIDIA's kvpress as methods: `kvpress:Knorm`, `kvpress:TOVA`, ... (extra `kvpress`).

kvpress's own hooks do not run on current transformers, and know nothing of chunks. Its scorers do: they are called
directly, once per layer, with what that layer saw of the whole video.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.evaluate.base import VideoSession
from videox2l.evaluate.encode import EncodedVideo
from videox2l.evaluate.methods.evict import best, kept_cache
from videox2l.evaluate.static_cache import StaticSession


@dataclass(frozen=True)
class PressView:
    """The part of an attention layer that a scorer may touch.

    Norms of queries and keys are folded into the projections, and positions of one axis are those of text, whatever the
    family: scorers know neither.
    """

    attention: Any
    backbone: Backbone

    def __getattr__(self, name: str) -> Any:
        return getattr(self.attention, name)

    def q_proj(self, hidden: Tensor) -> Tensor:
        """Return queries (b, n, heads * head_dim) before RoPE, normed."""
        return self._normed(self.attention.q_proj(hidden), "q_norm")

    def k_proj(self, hidden: Tensor) -> Tensor:
        """Return keys (b, n, kv_heads * head_dim) before RoPE, normed."""
        return self._normed(self.attention.k_proj(hidden), "k_norm")

    def _normed(self, x: Tensor, name: str) -> Tensor:
        norm = getattr(self.attention, name, None)
        out: Tensor = x if norm is None else norm(x.reshape(*x.shape[:-1], -1, self.attention.head_dim)).flatten(-2)
        return out

    def rotary_emb(self, like: Tensor, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin (1, n, head_dim) at text positions (1, n)."""
        cos, sin = self.backbone.rotation(positions[:1].expand(self.axes, -1))
        return cos[None].to(like.dtype), sin[None].to(like.dtype)

    @property
    def axes(self) -> int:
        """Position axes of the family."""
        return self.backbone.axes


@dataclass(frozen=True)
class PressMethod:
    """Eviction by a scorer of kvpress after the full prefill, as many tokens in every layer and head.

    The question is not known; sizes that change from layer to layer (PyramidKV) are not taken over.
    """

    name: str
    about: str
    press: str
    at_budget: bool = True
    uses_question: bool = False
    reusable: bool = True

    def prepare(self, video: EncodedVideo, budget: float, max_new_tokens: int) -> VideoSession:
        """Prefill the video and evict."""
        n = video.allowance(budget)
        press = scorer(self.press, 1 - n / video.visual)
        layers = [best(scores, n) for scores in press_scores(video, press)]
        return StaticSession(video, kept_cache(video, layers, room=64), max_new_tokens, video.full.flops)


def press_scores(video: EncodedVideo, press: Any) -> Sequence[Tensor]:
    """Return what `press.score` says of the visual tokens in each layer: (heads, n)."""
    backbone, full = video.backbone, video.full
    decoder: Any = getattr(backbone, "decoder", None)
    if decoder is None:
        raise SettingsError(f"methods of kvpress are not possible with {backbone.name}: it has no plain decoder")
    cos, sin = backbone.rotation(full.positions)
    found: list[Tensor] = []

    def note(attention: Any, args: tuple[Any, ...], options: dict[str, Any], _: Any) -> None:
        hidden = args[0] if args else options["hidden_states"]
        layer = len(found)
        tables = {"position_embeddings": (cos[None].to(hidden.dtype), sin[None].to(hidden.dtype))}
        view = PressView(attention, backbone)
        score = press.score(view, hidden, full.keys(layer)[None], full.values(layer)[None], None, tables)
        found.append(score[0].float())

    cache = backbone.new_cache(len(full))
    video.prefill(cache, ())
    hooks = [layer.self_attn.register_forward_hook(note, with_kwargs=True) for layer in decoder.layers]
    try:
        with torch.no_grad():
            backbone.forward(full.embeds.to(backbone.device), full.positions, cache)
    finally:
        for hook in hooks:
            hook.remove()
    return found


def scorer(name: str, ratio: float) -> Any:
    """Return the scorer `name` of kvpress that removes the share `ratio`. Raises SettingsError."""
    try:
        kvpress = importlib.import_module("kvpress")
        base = importlib.import_module("kvpress.presses.scorer_press").ScorerPress
    except ImportError as error:
        raise SettingsError(
            f"method 'kvpress:{name}' needs kvpress ({error}): pip install 'videox2l[kvpress]'"
        ) from None
    known = {
        each.removesuffix("Press"): value
        for each, value in vars(kvpress).items()
        if isinstance(value, type) and issubclass(value, base) and value is not base
    }
    if name not in known:
        raise SettingsError(f"kvpress has no scorer '{name}': use {', '.join(sorted(known))}")
    try:
        return known[name](compression_ratio=ratio)
    except TypeError as error:
        raise SettingsError(f"scorer '{name}' of kvpress cannot be made without more settings: {error}") from None


def press_method(name: str) -> PressMethod:
    """Return the method `kvpress:name`; whether it exists is found out when it is first used."""
    return PressMethod(f"kvpress:{name}", f"{name} of kvpress", name)
