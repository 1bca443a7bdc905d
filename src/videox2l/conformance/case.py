"""What is checked, the clip it is checked with, and what the stock model makes of that."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from videox2l.ask.answer import Answer
from videox2l.ask.run import QuestionRun, run_question
from videox2l.ask.view import View
from videox2l.backbones.decoder_backbone import decoder_inputs
from videox2l.engine import attention
from videox2l.engine.backbone import Backbone
from videox2l.ingest import finished, info_of, ingest_steps
from videox2l.memory import Memory, Plan, build_cache
from videox2l.options import AskOptions, IngestOptions
from videox2l.types import Turn, VideoCursor, VideoInfo, VisualTokens
from videox2l.video import ArraySource

QUESTION = "What happens in the video?"


def made_up_clip(frames: int = 11, seed: int = 0, height: int = 72, width: int = 96) -> np.ndarray:
    """Return smooth noise (frames, height, width, 3) uint8. Eleven frames: no chunk length divides them.

    Every fourth frame repeats the left half of the one before it, and the one after it repeats it whole: some families
    drop what did not change.
    """
    coarse = torch.rand(frames, 3, 6, 8, generator=torch.Generator().manual_seed(seed))
    fine = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")
    clip = (fine * 255).round().byte().permute(0, 2, 3, 1)
    for still in range(4, frames, 4):
        clip[still, :, : width // 2] = clip[still - 1, :, : width // 2]
        clip[still + 1 : still + 2] = clip[still]
    return clip.numpy()


@runtime_checkable
class HasStock(Protocol):
    """What the checks need of a backbone besides the `Backbone` protocol: the stock model, and inputs for it."""

    model: Any
    decoder: Any

    def attend_with(self, implementation: str) -> None:
        """Switch the decoder's attention: the package's own, or one of the library's."""

    def stock_inputs(
        self,
        frames: Sequence[np.ndarray],
        pts: Sequence[float],
        question: str,
        history: Sequence[Turn] = (),
        facts: VideoInfo = ...,
    ) -> dict[str, Tensor]:
        """Return the keyword arguments with which a user of plain transformers would call `model`."""


@dataclass
class TestCase:
    """The backbone under test, the clip, and what several checks share."""

    backbone: Backbone
    clip: np.ndarray  # (frames, height, width, 3) uint8
    new: int = 8
    fps: float = 1.0
    __test__ = False  # not for pytest to collect
    memories: dict[tuple[Any, ...], Memory] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.facts = info_of(self.source())
        self.pts = [i / self.fps for i in range(len(self.clip))]
        group = self.backbone.group_frames
        self.short = group * max(1, 4 // group)

    @property
    def stock(self) -> HasStock:
        """The backbone, as far as it gives access to the stock model."""
        return cast("HasStock", self.backbone)

    def source(self) -> ArraySource:
        """Return the clip as a source of frames."""
        return ArraySource(self.clip, fps=self.fps)

    def memory(self, ratios: tuple[float, ...] = (1,), **options: Any) -> Memory:
        """Return a memory of the clip, in chunks of `short` frames unless told otherwise."""
        options = {"compressor": "keydiff", "history": "L", "chunk_frames": self.short, **options}
        key = (ratios, *sorted(options.items()))
        if key not in self.memories:
            made = IngestOptions(ratios=ratios, **options)
            self.memories[key] = finished(ingest_steps(self.source(), self.backbone, made, self.backbone.identity()))
        return self.memories[key]

    def ask(self, memory: Memory, question: str, **options: Any) -> Answer:
        """Answer a question about a memory."""
        run = QuestionRun.of(self.backbone, View.of(memory), question, AskOptions(**options))
        return run_question(run).answer

    @cached_property
    def inputs(self) -> dict[str, Tensor]:
        """The stock model's arguments for the whole clip and the question."""
        return self.stock.stock_inputs(list(self.clip), self.pts, QUESTION, (), self.facts)

    @cached_property
    def at_the_door(self) -> dict[str, Any]:
        """What the stock model's front end hands to its decoder for the whole clip and the question."""
        if "inputs_embeds" in self.inputs:
            return dict(self.inputs)
        return decoder_inputs(self.stock.model, **self.inputs)

    @cached_property
    def stock_run(self) -> tuple[Tensor, list[int]]:
        """Logits (new, vocabulary) and greedy ids of the stock model, the whole sequence again for every token."""
        return stock_greedy(self.stock, self.inputs, self.new)

    @property
    def scale(self) -> float:
        """The largest of the stock model's logits, at least 1: what differences are measured by."""
        return max(1.0, float(self.stock_run[0].abs().max()))

    @property
    def tolerance(self) -> float:
        """The largest difference of logits that rounding explains."""
        exact = self.backbone.shape.dtype in (torch.float32, torch.float64)
        return self.scale * (1e-4 if exact else 0.1)

    def chunks(self, step: int) -> list[VisualTokens]:
        """Return the tokens of the clip in chunks of `step` frames."""
        start = len(self.backbone.prefix(self.facts))
        cursor, parts = VideoCursor(start, self.pts[0], 0, start, 0, self.facts), []
        for first in range(0, len(self.clip), step):
            pts = self.pts[first : first + step]
            parts.append(self.backbone.visual_tokens(list(self.clip[first : first + step]), pts, cursor))
            cursor = cursor.after(parts[-1], len(pts))
        return parts

    @torch.no_grad()
    def logits(self, memory: Memory, shift: int = 0, history: Sequence[Turn] = ()) -> Tensor:
        """Return our logits (vocabulary,) of the last prompt token, all chunks re-loaded, text `shift` places off."""
        backbone = self.backbone
        layout = build_cache(memory, Plan.at([memory.finest] * len(memory)), backbone)
        prompt = backbone.suffix(QUESTION, history)
        positions = backbone.text_positions(layout.next_position + shift, len(prompt))
        return backbone.logits(backbone.forward(prompt.embeds, positions, layout.cache)[-1:])[0]


@contextmanager
def stock_attention(backbone: HasStock) -> Iterator[None]:
    """Let the decoder use the library's eager attention for a while."""
    backbone.attend_with("eager")
    try:
        yield
    finally:
        backbone.attend_with(attention.NAME)


@torch.no_grad()
def stock_greedy(backbone: HasStock, inputs: dict[str, Tensor], new: int) -> tuple[Tensor, list[int]]:
    """Return logits (new, vocabulary) and greedy ids of the stock model, without any cache.

    A mask of ones goes with the inputs, as from a tokenizer: without one, some releases of transformers take a jump of
    positions for the beginning of another text.
    """
    inputs, logits, ids = dict(inputs), [], []
    with stock_attention(backbone):
        for _ in range(new):
            whole = inputs["inputs_embeds"][..., 0] if "inputs_embeds" in inputs else inputs["input_ids"]
            seen = torch.ones_like(whole, dtype=torch.long)
            out = backbone.model(**inputs, attention_mask=seen, use_cache=False).logits[0, -1].float()
            logits.append(out.cpu())
            ids.append(int(out.argmax()))
            token = torch.tensor([[ids[-1]]], device=out.device)
            for name, value in inputs.items():
                if name == "input_ids":
                    inputs[name] = torch.cat((value, token), 1)
                elif name == "inputs_embeds":
                    inputs[name] = torch.cat((value, backbone.model.get_input_embeddings()(token)), 1)
                elif name == "position_ids":
                    inputs[name] = torch.cat((value, value[..., -1:] + 1), -1)
                elif name == "mm_token_type_ids":
                    inputs[name] = torch.cat((value, torch.zeros_like(token)), 1)
    return torch.stack(logits), ids
