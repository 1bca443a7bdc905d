"""Later phases: the language model learns to answer, first on encoded grids, then together with the vision tower."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.bank import GridBank
from training.batches import Batch, Packer
from training.forward import decode, encode_grids
from training.geometry import TEMPORAL, patchify
from training.workers import rank
from videox2l.demo.questions import WorldQuestion, make_questions
from videox2l.demo.world import WorldVideo, make_video


@dataclass(frozen=True)
class Stage:
    """What the batches look like until some share of a phase is over; a step takes the next of `frames`."""

    until: float
    frames: Sequence[int]
    tokens: int = 6000
    """Tokens in a batch, so that long videos come in smaller batches."""
    questions: int = 8
    colours: Sequence[int] = (1, 2, 6, 6)
    """Every video draws one of these as its number of colours; few colours teach to look at shapes."""
    steps: Sequence[float] = (1.0, 1.5, 2.0, 2.0, 2.0, 3.0, 4.0)
    """Every video draws one of these as the positions from one grid to the next; 2 is one frame per second."""


class LanguagePhase:
    """Trains the decoder on grids from a bank or, without one, the whole model on frames drawn for every batch.

    `salt` parts its random numbers from those of other worlds; a question takes about `question_tokens`.
    """

    salt, question_tokens = 0x1A26, 16

    def __init__(
        self, model: Any, name: str, seed: int, stages: Sequence[Stage], *,
        bank: Path | None, mix: Mapping[str, float], device: torch.device, half: bool,
    ) -> None:  # fmt: skip
        self.model, self.name, self.seed, self.stages, self.mix = model, name, seed, stages, mix
        self.device, self.half = device, half
        self.modules: nn.Module = model
        self.packer = Packer()
        self.bank = GridBank.cached(model.model.visual, 0, bank) if bank else None

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return the parameters of the decoder and, where frames are live, of the vision tower."""
        parts = [("text", self.model.model.language_model)]
        if self.bank is None:
            parts.append(("visual", self.model.model.visual))
        return [(f"{part}.{name}", p) for part, module in parts for name, p in module.named_parameters()]

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the cross-entropy of the answers of a fresh batch, and the accuracy by kind and length."""
        stage = next(stage for stage in self.stages if progress <= stage.until)
        frames = stage.frames[step % len(stage.frames)]
        rng = np.random.default_rng([self.salt, self.seed, step, rank()])
        grids = frames // TEMPORAL
        rows = max(2, stage.tokens // (9 * grids + self.question_tokens * stage.questions))
        videos = [self.draw(rng, frames, stage) for _ in range(rows)]
        talks = [pair_up(self.ask(video, rng, stage.questions), rng) for video in videos]
        steps = rng.choice(list(stage.steps), rows).tolist()
        batch = self.packer.pack(grids, steps, talks)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.half):
            logits = self.forward(batch, self.features(videos, rng))
        return score(logits, batch, frames)

    def draw(self, rng: np.random.Generator, frames: int, stage: Stage) -> Any:
        """Write the script of a video."""
        return draw_video(rng, frames, int(rng.choice(stage.colours)))

    def ask(self, video: Any, rng: np.random.Generator, n: int) -> list[WorldQuestion]:
        """Draw up to `n` questions about a video."""
        return make_questions(video, rng, n, self.mix)

    def features(self, videos: Sequence[WorldVideo], rng: np.random.Generator) -> Tensor:
        """Return the visual tokens of videos of one length: (b, 9 * grids, hidden)."""
        if self.bank is not None:
            index = torch.stack([self.bank.fill(video, rng) for video in videos])
            return self.bank.features[index].flatten(1, 2)
        frames = np.stack([video.render(noise=float(rng.uniform(0, 4))) for video in videos])
        patches = patchify(torch.from_numpy(frames).to(self.device))
        return encode_grids(self.model.model.visual, patches.flatten(0, 1)).view(len(videos), -1, self.hidden)

    @property
    def hidden(self) -> int:
        """Width of the decoder."""
        return int(self.model.config.text_config.hidden_size)

    def forward(self, batch: Batch, features: Tensor) -> Tensor:
        """Return the logits at the labels of a batch, (labels, vocabulary)."""
        text = self.model.model.language_model
        embeds = text.embed_tokens(batch.ids.to(self.device))
        embeds = torch.cat(
            [embeds[:, : batch.video.start], features.to(embeds.dtype), embeds[:, batch.video.stop :]], 1
        )
        hidden = decode(text, embeds, batch.positions.to(self.device), batch.mask.to(self.device))
        return F.linear(hidden[batch.labels.to(self.device) >= 0], text.embed_tokens.weight)


def score(logits: Tensor, batch: Batch, frames: int) -> tuple[Tensor, dict[str, float]]:
    """Return the mean cross-entropy, and per kind the share of answers of which every token is right."""
    where = batch.labels >= 0
    target, answer = batch.labels[where].to(logits.device), batch.answer[where]
    loss = F.cross_entropy(logits.float(), target)
    wrong = torch.zeros(len(batch.kinds)).index_add_(0, answer, (logits.argmax(-1) != target).float().cpu())
    kinds = np.array(batch.kinds)
    measured = {
        f"{kind}@{frames}": float((wrong[torch.from_numpy(kinds == kind)] == 0).float().mean())
        for kind in sorted(set(batch.kinds))
    }
    return loss, measured


def draw_video(rng: np.random.Generator, frames: int, colours: int) -> WorldVideo:
    """Write the script of a training video."""
    return make_video(
        int(rng.integers(1 << 62)),
        frames,
        durations=(1, 1, 2, 3, 4),
        gap=int(rng.integers(2, 5)),
        colours=colours,
        spread=bool(rng.random() < 0.3),
        decoys=0.0,  # the bank's backgrounds have their own
    )


def pair_up(questions: Sequence[WorldQuestion], rng: np.random.Generator) -> list[list[WorldQuestion]]:
    """Ask most questions alone, some as the second turn after another."""
    talks: list[list[WorldQuestion]] = []
    for question in questions:
        if talks and len(talks[-1]) == 1 and rng.random() < 0.15:
            talks[-1].append(question)
        else:
            talks.append([question])
    return talks
