"""The contract between everything that asks and a family of video LLMs."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from videox2l.engine.attention import Probe
from videox2l.engine.cache import BufferCache, RaggedCache
from videox2l.errors import ModelWarning
from videox2l.types import (
    UNKNOWN_VIDEO,
    KVShape,
    TextTokens,
    Turn,
    VideoCursor,
    VideoInfo,
    VisualTokens,
)

_told: weakref.WeakKeyDictionary[object, set[str]] = weakref.WeakKeyDictionary()


def warn_beyond(backbone: Backbone, positions: int, what: str) -> None:
    """Say once per model and kind of text that positions go beyond those that it was trained for."""
    most = getattr(backbone, "max_positions", None)
    if most is None or positions <= most or what in _told.setdefault(backbone, set()):
        return
    _told[backbone].add(what)
    warnings.warn(
        f"{what} reaches position {positions}, but {backbone.name} was trained for {most}: answers may be wrong. Use a "
        "lower fps, fewer frames or pixels, a shorter part or question, or a config with YaRN",
        ModelWarning,
        stacklevel=3,
    )


class BackboneFacts(Protocol):
    """What the settings of an ingest are resolved against; a model that is not loaded has it too."""

    name: str
    shape: KVShape
    axes: int
    group_frames: int
    default_chunk_frames: int
    default_compressor: str


class Backbone(BackboneFacts, Protocol):
    """One way of turning frames and text into the tokens of a video LLM, and of running its decoder.

    A backbone holds no state between calls; nothing of a video or a question stays in it.
    """

    @property
    def device(self) -> torch.device:
        """Device of the token embeddings."""

    def prefix(self, facts: VideoInfo = UNKNOWN_VIDEO) -> TextTokens:
        """Return everything that stands before the video: of the chat template, and of what is told of the video.

        Raises SettingsError for a system text that the model's prompt has no place for.
        """

    def suffix(self, question: str, history: Sequence[Turn] = (), system: str | None = None) -> TextTokens:
        """Return everything that stands after the video, the answer's header included.

        `system` is the text that `prefix` was given. Raises SettingsError for a question that is empty or holds control
        tokens.
        """

    def follow_up(self, question: str) -> TextTokens:
        """Return everything between the last token of an answer and the answer to the next question.

        Raises SettingsError as `suffix` does.
        """

    def reply(self, text: str) -> list[int]:
        """Return the token ids of an answer, as they stand behind its header.

        Raises SettingsError for a text that is empty or holds control tokens.
        """

    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run the vision tower on the frames of one chunk: uint8 RGB (h, w, 3) each, `pts` in seconds."""

    def text_positions(self, first: int, n: int) -> Tensor:
        """Return the positions (axes, n) of `n` text tokens, the first at `first`."""

    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (n, hidden) of token ids (n,)."""

    def forward(
        self, embeds: Tensor, positions: Tensor, cache: BufferCache | RaggedCache, probe: Probe | None = None
    ) -> Tensor:
        """Run the decoder on `embeds` (n, width) at `positions` (axes, n) behind what `cache` holds.

        Rows are token embeddings, or those of `VisualTokens`. Appends n columns to the cache; of n caches in a
        `RaggedCache` row i is appended to the i-th, and sees that one alone. Returns the last hidden states
        (n, hidden); no logits are computed.
        """

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (n, vocabulary) of hidden states (n, hidden)."""

    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, float32 (n, head_dim), by which keys at `positions` (axes, n) are rotated."""

    def new_cache(self, capacity: int = 0) -> BufferCache:
        """Return an empty cache with room for `capacity` tokens."""

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without control tokens."""

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer."""

    def identity(self) -> dict[str, str]:
        """Return what a memory must agree on to be usable: weights, processor, chat template; hashes in hex."""


@runtime_checkable
class JoinsVideos(Protocol):
    """A backbone whose prompts may hold several videos, one behind the other."""

    def between_videos(self, count: int) -> list[TextTokens]:
        """Return what stands between `count` videos and the next of them, `count` - 1 texts: the end of a video's
        markup, the chat template, and the beginning of the next one's.

        Raises ModelError where the chat template or the tokenizer does not let videos be parted there.
        """
