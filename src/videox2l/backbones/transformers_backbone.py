"""What all adapters of transformers models share: prompts, and the model's own front end."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from videox2l.backbones.checks import check_own_mask
from videox2l.backbones.decoder_backbone import DecoderBackbone, decoder_inputs
from videox2l.backbones.frames import PatchFrames, stack
from videox2l.backbones.prompts import ChatPrompt, VideoMarkup
from videox2l.engine.identity import sha256_of, weights_id
from videox2l.errors import ModelError
from videox2l.flops import VisionShape
from videox2l.types import UNKNOWN_VIDEO, TextTokens, Turn, VideoCursor, VideoInfo, VisualTokens

Grid = tuple[int, int, int]


class Vision(Protocol):
    """From frames to the keyword arguments that a model takes for them."""

    def __call__(self, frames: Tensor, facts: VideoInfo) -> tuple[dict[str, Tensor], Grid]:
        """Return the arguments for uint8 frames (f, 3, h, w), and the grid (t, h, w) of their visual tokens."""

    @property
    def group_frames(self) -> int:
        """How many frames become one group of visual tokens."""

    def grid(self, frames: int, height: int, width: int, total: int | None = None) -> Grid:
        """Return the grid of `frames` pictures of `height` x `width` pixels, in a video of `total` frames."""

    def settings(self) -> dict[str, Any]:
        """Return everything that decides about the result, as plain JSON values."""


def token_id(config: Any, *names: str) -> int:
    """Return the token id that a model's config gives under one of the names. Raises ModelError where it has none."""
    for name in names:
        if getattr(config, name, None) is not None:
            return int(getattr(config, name))
    raise ModelError(f"the config of {config.model_type} has no {names[0]}")


class TransformersBackbone(DecoderBackbone, ABC):
    """A stock transformers video LLM behind the `Backbone` protocol. Subclasses add vision, words and positions.

    `spare` is the number of visual tokens that the front end adds after the last frame of any video; `default_pixels`
    are fields of the processor config that stand in where a checkpoint has none.
    """

    group_frames = 1
    default_chunk_frames = 8
    default_compressor = "keydiff"
    default_pixels: Mapping[str, Any] = {}
    template: str | None = None
    spare = 0
    vision: Vision
    markup: VideoMarkup

    def __init__(
        self, model: Any, tokenizer: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> None:
        super().__init__(model, tokenizer)
        self.video_config = dict(video_config)
        vision = self.vision_of(model.config, self.video_config, max_pixels)
        if vision is not None:
            self.vision, self.group_frames = vision, vision.group_frames
        self.markup = self.video_markup(model.config, tokenizer)
        self.chat = ChatPrompt(tokenizer, self.markup.placeholder, self.template)

    # --- what configs alone say: `x2l plan` asks it without a model ----------------------------------------------

    @classmethod
    def vision_of(cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None) -> Vision | None:
        """Return how frames become pixels, by the model's config and its processor's; None where `pixels` says it."""
        return None

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower and projector."""
        raise ModelError(f"{config.model_type} cannot be planned: its adapter has no tower_of")

    @classmethod
    def video_markup(cls, config: Any, tokenizer: Any) -> VideoMarkup:
        """Return how a video is written into the prompt: by default one token that the config names, repeated."""
        token = str(tokenizer.convert_ids_to_tokens(token_id(config, "video_token_id", "video_token_index")))
        return VideoMarkup(token, token)

    @classmethod
    def prefix_ids(cls, chat: ChatPrompt, markup: VideoMarkup, facts: VideoInfo) -> list[int]:
        """Return the token ids of everything that stands before the video."""
        return chat.prefix_ids(markup, facts)

    @property
    def video_token_id(self) -> int:
        """Id of the token that stands for a visual token of a video."""
        return token_id(self.model.config, "video_token_id", "video_token_index")

    # --- text -------------------------------------------------------------------------------------------------

    def prefix(self, facts: VideoInfo = UNKNOWN_VIDEO) -> TextTokens:
        """Return everything that stands before the video: of the chat template, and of what is told of the video."""
        return self._text(self.prefix_ids(self.chat, self.markup, facts))

    def suffix(self, question: str, history: Sequence[Turn] = (), system: str | None = None) -> TextTokens:
        """Return everything that stands after the video, the answer's header included."""
        _, after = self.chat.cut(question, history, system)
        return self._text(self.chat.ids(self.markup.outro + after, self.markup.pad + self.markup.close))

    def _between_videos(self, count: int) -> list[TextTokens]:
        """Return what stands between `count` videos, for families whose videos stand alone (see `JoinsVideos`)."""
        markup, found = self.markup, []
        opening = markup.opening(0, [0.0] * self.group_frames)
        for between in self.chat.between(count):
            text, context = markup.outro + between + markup.intro(UNKNOWN_VIDEO), markup.pad + markup.close
            ids = self.chat.ids(text, context)
            alone = self.chat.ids(opening, self.chat.before(markup, UNKNOWN_VIDEO))
            if self.chat.ids(text + opening, context) != ids + alone:
                raise ModelError(f"the tokenizer joins {between!r} and the next video: ask about one video at a time")
            found.append(self._text(ids))
        return found

    def follow_up(self, question: str) -> TextTokens:
        """Return everything between the end of an answer and the answer to the next question."""
        return self._text(self.chat.ids(self.chat.follow_up(question), context="."))

    def reply(self, text: str) -> list[int]:
        """Return the token ids of an answer, with the space that the chat template may put before it."""
        header, lead = self.chat.header()
        self.chat.check_text(text, "the answer")
        return self.chat.ids(lead + text, header)

    def _text(self, ids: Sequence[int]) -> TextTokens:
        tensor = torch.tensor(ids, dtype=torch.long, device=self.device)
        return TextTokens(tensor, self.embed(tensor))

    # --- vision -----------------------------------------------------------------------------------------------

    @torch.no_grad()
    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run the model's own front end on the frames of one chunk, words between them included."""
        pixels, grid = self.pixels(frames, cursor)
        times, counts = self.group_times(pts), self.visual_counts(pixels, grid)
        ids, visual = self.chunk_ids(times, counts, cursor)
        pad = ids.new_full((self.spare,), int(ids[visual][0]))
        found = self.front_end(torch.cat((ids, pad)), pixels)
        positions = self.chunk_positions(visual, grid, times, cursor)
        embeds = self.chunk_embeds(found)[: len(ids)]
        if len(ids) == math.prod(grid):
            return VisualTokens(embeds, positions, grid)
        pictures = found["inputs_embeds"][0, : len(ids)][visual].float()
        means = torch.stack([group.mean(0) for group in torch.split(pictures, counts)])
        return VisualTokens(embeds, positions, (1, 1, len(ids)), means)

    def pixels(self, frames: Sequence[np.ndarray], cursor: VideoCursor) -> tuple[dict[str, Tensor], Grid]:
        """Return the model's arguments for the frames of one chunk, and the grid (t, h, w) of their visual tokens."""
        return self.vision(stack(frames), cursor.facts)

    def visual_counts(self, pixels: Mapping[str, Tensor], grid: Grid) -> list[int]:
        """Return how many visual tokens each group of frames has."""
        return [grid[1] * grid[2]] * grid[0]

    def group_times(self, pts: Sequence[float]) -> list[list[float]]:
        """Return the pts of each group of frames; the last frame fills up the last group."""
        filled = [*pts, *[pts[-1]] * (-len(pts) % self.group_frames)]
        return [filled[i : i + self.group_frames] for i in range(0, len(filled), self.group_frames)]

    def groups_before(self, cursor: VideoCursor) -> int:
        """Return how many groups of frames stand before a chunk."""
        return -(-cursor.frames // self.group_frames)

    def chunk_ids(
        self, times: Sequence[Sequence[float]], counts: Sequence[int], cursor: VideoCursor
    ) -> tuple[Tensor, Tensor]:
        """Return the token ids (n,) of a chunk, and which of them are visual (n,)."""
        wording, first = self.markup, self.groups_before(cursor)
        context = wording.pad + wording.close if first else self.chat.before(wording, cursor.facts)
        text = wording.groups(first, times, [1] * len(times))
        plain = torch.tensor(self.chat.ids(text, context), device=self.device)
        pads = plain == self.tokenizer.convert_tokens_to_ids(wording.pad)
        if int(pads.sum()) != len(times):
            raise ModelError(f"the tokenizer of {self.name} has no token {wording.pad!r} of its own")
        repeats = torch.ones_like(plain)
        repeats[pads] = torch.tensor(counts, device=self.device)
        return plain.repeat_interleave(repeats), pads.repeat_interleave(repeats)

    def front_end(self, ids: Tensor, pixels: Mapping[str, Tensor]) -> dict[str, Any]:
        """Return what the model's front end hands to the decoder for token ids (n,) and the arguments for pixels."""
        positions = torch.zeros((1, len(ids)) if self.axes == 1 else (self.axes, 1, len(ids)), dtype=torch.long)
        inputs = {name: self._as_weights(value) for name, value in pixels.items()}
        found = decoder_inputs(self.model, input_ids=ids[None], position_ids=positions.to(self.device), **inputs)
        check_own_mask(self.name, found.get("attention_mask"))
        return found

    def _as_weights(self, value: Tensor) -> Tensor:
        return value.to(self.device, self.shape.dtype if value.is_floating_point() else value.dtype)

    def chunk_embeds(self, found: Mapping[str, Any]) -> Tensor:
        """Return the embeddings (n, width) of a chunk from what the front end hands to the decoder."""
        embeds: Tensor = found["inputs_embeds"][0]
        return embeds

    @abstractmethod
    def chunk_positions(
        self, visual: Tensor, grid: Grid, times: Sequence[Sequence[float]], cursor: VideoCursor
    ) -> Tensor:
        """Return the positions (axes, n) of a chunk's tokens; `visual` (n,) says which of them are visual."""

    # --- for checks against the stock model, and for telling models apart ----------------------------------------

    def stock_inputs(
        self,
        frames: Sequence[np.ndarray],
        pts: Sequence[float],
        question: str,
        history: Sequence[Turn] = (),
        facts: VideoInfo = UNKNOWN_VIDEO,
    ) -> dict[str, Tensor]:
        """Return what a user of plain transformers would give the model for a whole video and a dialogue.

        The prompt is written and tokenized in one piece, and all frames are one input. See `videox2l.conformance`.
        """
        pixels, grid = self.pixels(frames, VideoCursor(0, 0.0, 0, 0, 0, facts))
        before, after = self.chat.cut(question, history, facts.system)
        times = self.group_times(pts)
        video = self.markup.video(times, facts, self.visual_counts(pixels, grid))
        if self.spare:
            video += self.markup.pad * self.spare
        ids = torch.tensor(self.chat.opening_ids(before + video + after), device=self.device)
        inputs = {"input_ids": ids[None], **{name: self._as_weights(value) for name, value in pixels.items()}}
        return {**inputs, **self.stock_positions(ids, grid, times)}

    def stock_positions(self, ids: Tensor, grid: Grid, times: Sequence[Sequence[float]]) -> dict[str, Tensor]:
        """Return the model's arguments about positions: by default none, the stock model counts them itself."""
        return {}

    def token_kinds(self, ids: Tensor) -> dict[str, Tensor]:
        """Return which of the tokens (n,) are those of a video, where the model asks for it: 0 text, 2 video."""
        if "mm_token_type_ids" not in inspect.signature(self.model.forward).parameters:
            return {}
        return {"mm_token_type_ids": (ids == self.video_token_id).int()[None] * 2}

    def identity(self) -> dict[str, str]:
        """Return what a memory must agree on to be usable."""
        tokenizer = self.tokenizer
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
        return {
            "architecture": self.name,
            "weights": weights_id(self.model),
            "processor": sha256_of(json.dumps(self.processing(), sort_keys=True, default=str)),
            "tokenizer": sha256_of(vocabulary),
            "chat_template": sha256_of(str(self.template or tokenizer.chat_template)),
        }

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens, as plain JSON values."""
        return self.vision.settings()


@dataclass(frozen=True)
class PatchVision:
    """Patches of groups of frames, as Qwen2-VL takes them."""

    frames: PatchFrames

    def __call__(self, frames: Tensor, facts: VideoInfo) -> tuple[dict[str, Tensor], Grid]:
        """Return the arguments for uint8 frames (f, 3, h, w), and the grid (t, h, w) of their visual tokens."""
        patches, (t, high, wide) = self.frames(frames, facts.frames)
        merge = self.frames.merge
        arguments = {"pixel_values_videos": patches, "video_grid_thw": torch.tensor([[t, high, wide]])}
        return arguments, (t, high // merge, wide // merge)

    @property
    def group_frames(self) -> int:
        """How many frames become one group of visual tokens."""
        return self.frames.temporal

    def grid(self, frames: int, height: int, width: int, total: int | None = None) -> Grid:
        """Return the grid of `frames` pictures of `height` x `width` pixels, in a video of `total` frames."""
        high, wide = self.frames.size(height, width, total)
        side = self.frames.patch * self.frames.merge
        return -(-frames // self.frames.temporal), high // side, wide // side

    def settings(self) -> dict[str, Any]:
        """Return everything that decides about the result, as plain JSON values."""
        return dataclasses.asdict(self.frames)


@dataclass(frozen=True)
class FrameVision:
    """Whole frames of one size, each a square of `side` x `side` visual tokens.

    `frames` turns uint8 (f, 3, h, w) into float32 of the size that the model takes, `argument` names what it takes them
    as; `batched`: with an axis for videos in front.
    """

    frames: Callable[[Tensor], Tensor]
    side: int
    argument: str = "pixel_values_videos"
    batched: bool = True
    group_frames: ClassVar[int] = 1

    def __call__(self, frames: Tensor, facts: VideoInfo) -> tuple[dict[str, Tensor], Grid]:
        """Return the arguments for uint8 frames (f, 3, h, w), and the grid (t, h, w) of their visual tokens."""
        del facts
        pixels = self.frames(frames)
        return {self.argument: pixels[None] if self.batched else pixels}, self.grid(len(frames), 0, 0)

    def grid(self, frames: int, height: int, width: int, total: int | None = None) -> Grid:
        """Return the grid of so many pictures, whatever their size."""
        return frames, self.side, self.side

    def settings(self) -> dict[str, Any]:
        """Return everything that decides about the result, as plain JSON values."""
        return {**dataclasses.asdict(self.frames), "side": self.side}  # type: ignore[call-overload]
