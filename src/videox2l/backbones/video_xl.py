"""Video-XL (arXiv 2409.14485): a video LLM whose summary tokens compress what was watched."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videox2l.backbones.frames import CropFrames, stack
from videox2l.backbones.linear import check_max_pixels, square_tower
from videox2l.backbones.prompts import ChatPrompt, VideoMarkup
from videox2l.backbones.transformers_backbone import FrameVision, Grid, TransformersBackbone
from videox2l.backbones.video_xl_model import Geometry, VideoXLForCausalLM, summarize_chunk
from videox2l.engine.cache import BufferCache
from videox2l.engine.summary import SummaryLayout
from videox2l.errors import ModelError, SettingsError
from videox2l.flops import VisionShape
from videox2l.types import UNKNOWN_VIDEO, TextTokens, Turn, VideoCursor, VideoInfo, VisualTokens

# As Video-X2L was published: the text after the video is a newline, the question, another newline, the end of turn.
# Newlines are written as expressions because a template's own are trimmed after a tag.
CHAT_TEMPLATE = (
    "{% for m in messages %}"
    "{% if loop.first %}{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}{% endif %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% for c in m['content'] %}{{ '<image>\\n' if c['type'] == 'video' else c['text'] }}{% endfor %}"
    "{{ '\\n<|im_end|>\\n' if loop.first else '<|im_end|>\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


class VideoXLBackbone(TransformersBackbone):
    """Video-XL behind the `Backbone` protocol, with `summarise` for the summary-token compressor.

    Frames are simply concatenated, each a square of tokens; positions count columns of the cache, so that memories
    made with summary tokens are mixed compactly (see `SummaryTokenCompressor`).
    """

    axes = 1
    group_frames = 1
    default_chunk_frames = 10
    default_compressor = "summary"
    template = CHAT_TEMPLATE

    def __init__(
        self,
        model: VideoXLForCausalLM,
        tokenizer: Any,
        video_config: Mapping[str, Any],
        max_pixels: int | None = None,
    ) -> None:
        super().__init__(model, tokenizer, video_config, max_pixels)
        self.frames = None
        if model.has_vision:
            self.frames = CropFrames.from_config(self.video_config)

    def attend_with(self, implementation: str) -> None:
        """Switch the language model's attention; the vision tower is a part of its module, and keeps its own."""
        super().attend_with(implementation)
        if self.model.has_vision:
            self.model.model.vision_tower.vision_tower.set_attn_implementation("sdpa")

    @classmethod
    def vision_of(
        cls, config: Any, video_config: Mapping[str, Any], max_pixels: int | None = None
    ) -> FrameVision | None:
        """Return how frames become pixels and tokens; None where the config does not tell the vision tower's."""
        check_max_pixels(config, max_pixels)
        vision = getattr(config, "vision_config", None)
        if vision is None:
            return None
        return FrameVision(CropFrames.from_config(video_config), vision.image_size // vision.patch_size // 2)

    @classmethod
    def tower_of(cls, config: Any) -> VisionShape:
        """Return the sizes of the vision tower, in `vision_config`, and of the projector with pooling in its middle."""
        vision, hidden = config.vision_config, config.hidden_size
        return square_tower(vision, ((1, vision.hidden_size * hidden), (1 / 4, hidden**2)), summary_rows=1)

    @classmethod
    def video_markup(cls, config: Any, tokenizer: Any) -> VideoMarkup:
        """Return the place of the video: no token, the published code cuts the prompt there before it is tokenized."""
        return VideoMarkup("<image>", "<image>")

    @classmethod
    def prefix_ids(cls, chat: ChatPrompt, markup: VideoMarkup, facts: VideoInfo) -> list[int]:
        """Return everything of the chat template that stands before the video. Raises SettingsError: see there."""
        if facts.system is not None:
            raise SettingsError(
                "Video-XL was published with a system text of its own and takes no other: leave system out, and write "
                "it into the question or a prompt template"
            )
        return chat.ids(chat.cut("What happens?")[0])

    def suffix(self, question: str, history: Sequence[Turn] = (), system: str | None = None) -> TextTokens:
        """Return everything that stands after the video, the answer's header included."""
        return self._text(self.chat.ids(self.chat.cut(question, history)[1]))

    @torch.no_grad()
    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run CLIP and the projector on the frames of one chunk: side x side tokens per frame."""
        if self.frames is None:
            raise ModelError("this Video-XL was loaded without its vision tower: it can only be given visual tokens")
        pixels = self.frames(stack(frames).to(self.device)).to(self.shape.dtype)
        embeds: Tensor = self.model.encode_frames(pixels)
        count, side = embeds.shape[0], embeds.shape[1]
        embeds = embeds.reshape(-1, embeds.shape[-1])
        first = cursor.start + cursor.tokens
        return VisualTokens(embeds, self.text_positions(first, len(embeds)), (count, side, side))

    def chunk_positions(
        self, visual: Tensor, grid: Grid, times: Sequence[Sequence[float]], cursor: VideoCursor
    ) -> Tensor:
        """Return the running number of each token (1, n)."""
        return self.text_positions(cursor.start + cursor.tokens, len(visual))

    def stock_inputs(
        self,
        frames: Sequence[np.ndarray],
        pts: Sequence[float],
        question: str,
        history: Sequence[Turn] = (),
        facts: VideoInfo = UNKNOWN_VIDEO,
    ) -> dict[str, Tensor]:
        """Return the embeddings of a whole prompt without summary tokens."""
        video = self.visual_tokens(frames, pts, VideoCursor(0, 0.0, 0, 0)).embeds
        parts = (self.prefix().embeds, video, self.suffix(question, history).embeds)
        return {"inputs_embeds": torch.cat(parts)[None]}

    def summarise(
        self, embeds: Tensor, layouts: Sequence[SummaryLayout], cache: BufferCache
    ) -> list[tuple[Tensor, Tensor]]:
        """Run visual tokens with summary tokens among them; see `SummaryBackbone.summarise`."""
        geometry = Geometry(len(cache), len(embeds), layouts)
        at, kept = self.rotation(geometry.positions()[None]), self.rotation(geometry.kept_positions()[None])
        return summarize_chunk(self.decoder, embeds.to(self.device), geometry, cache, at, kept)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: the end of a turn or of the text."""
        known = self.tokenizer.get_vocab()
        return super().stop_ids | {known[name] for name in ("<|im_end|>", "<|endoftext|>") if name in known}

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens."""
        return {} if self.frames is None else dataclasses.asdict(self.frames)
