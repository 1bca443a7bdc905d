"""Encoded grids to build videos from, so that the language model can be trained without running the vision tower.

A grid (two frames) is encoded on its own, so the grids of a video can come from different pictures: for every
event of a script a clip of the same thing, digit, length and parity is drawn, and background for the rest, some of it
with decoys. Clips of every style and visibility come alike.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from training.forward import encode_grids
from training.geometry import TEMPORAL, patchify
from training.workers import rank
from videox2l.demo.cast import Thing, all_things, digits_of
from videox2l.demo.world import STYLES, Event, WorldVideo, draw_event, make_decoys, make_scenes

Key = tuple[str, str, int, int, int]
Clip = tuple[int, int, int]
"""First grid, number of grids, and how many of them come before the event, and after it."""


class GridBank:
    """Clips of all events and stretches of background, encoded once.

    Parameters
    ----------
    visual
        The vision tower; it is not trained through the bank.
    seed
        Decides textures, positions, sizes and noise.
    clips
        Clips for each of 36 things with its 6 digits of training, 4 lengths and 2 parities.
    backgrounds
        Stretches of 8 grids without an event.
    durations, things
        The lengths and the (colour, shape) pairs to make clips of; all things unless given.
    """

    def __init__(
        self,
        visual: Any,
        seed: int,
        *,
        clips: int = 12,
        backgrounds: int = 2500,
        durations: Sequence[int] = (1, 2, 3, 4),
        things: Sequence[Thing] = (),
    ) -> None:
        self.visual, self.rng = visual, np.random.default_rng([0xBA4C, seed])
        self.encoded: list[Tensor] = []
        self.waiting: list[Tensor] = []
        self.size = 0
        self.clips: dict[Key, list[Clip]] = defaultdict(list)
        for _ in range(clips):
            for thing in things or all_things():
                for digit in digits_of("train")[thing]:
                    for length in durations:
                        for parity in (0, 1):
                            self._add_event(thing, digit, length, parity)
        self.backgrounds = [(self._add(8, ()), 8) for _ in range(backgrounds)]
        self._flush()
        self.features = torch.cat(self.encoded)  # (grids, 9, hidden)
        self.encoded = []

    @classmethod
    def cached(cls, visual: Any, seed: int, path: Path) -> GridBank:
        """Make a bank, or take one made before with the same weights and seed from a file."""
        weights = torch.cat([p.detach().flatten().cpu() for p in visual.parameters()])
        made_by = f"{seed} {weights.double().sum().item():.12e} {weights.double().square().sum().item():.12e}"
        if path.exists():
            kept = torch.load(path, weights_only=True, mmap=True)
            if kept["made_by"] == made_by:
                bank = cls.__new__(cls)
                bank.clips, bank.backgrounds, bank.features = kept["clips"], kept["backgrounds"], kept["features"]
                return bank
        bank = cls(visual, seed)
        if rank() == 0:
            kept = {"made_by": made_by, "clips": dict(bank.clips), "backgrounds": bank.backgrounds}
            torch.save(kept | {"features": bank.features}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)
        return bank

    def fill(self, video: WorldVideo, rng: np.random.Generator) -> Tensor:
        """Return indices into `features` that make the grids of a video: (frames / 2,)."""
        grids = video.frames // TEMPORAL
        index = np.empty(grids, dtype=np.int64)
        at = 0
        while at < grids:
            first, n = self.backgrounds[int(rng.integers(len(self.backgrounds)))]
            n = min(int(rng.integers(2, n + 1)), grids - at)
            index[at : at + n] = np.arange(first, first + n)
            at += n
        events = np.zeros(grids, dtype=bool)
        for event in video.events:
            events[event.start // TEMPORAL : -(-event.end // TEMPORAL)] = True
        for event in video.events:
            options = self.clips[_key(event)]
            first, n, around = options[int(rng.integers(len(options)))]
            at = event.start // TEMPORAL - around
            for i in range(max(0, -at), min(n, grids - at)):
                if around <= i < n - around or not events[at + i]:
                    index[at + i] = first + i
        return torch.from_numpy(index)

    def _add_event(self, thing: Thing, digit: int, length: int, parity: int) -> None:
        """Draw a clip of an event, with a grid before and after it where a thing waits there."""
        style = STYLES[int(self.rng.integers(len(STYLES)))]
        around = int(style == "change")
        start = TEMPORAL * around + parity
        event = draw_event(self.rng, thing, digit, start, start + length, style)
        grids = -(-event.end // TEMPORAL) + around
        self.clips[_key(event)].append((self._add(grids, (event,)), grids, around))

    def _add(self, grids: int, events: tuple[Event, ...]) -> int:
        """Draw a clip; returns its first grid."""
        frames = grids * TEMPORAL
        scenes = make_scenes(self.rng, frames, "train")
        decoys = () if events else make_decoys(self.rng, frames, (), 0.5)
        clip = WorldVideo(int(self.rng.integers(1 << 31)), "train", frames, scenes, events, decoys)
        self.waiting.append(torch.from_numpy(clip.render(noise=float(self.rng.uniform(0, 4)))))
        first, self.size = self.size, self.size + grids
        if len(self.waiting) == 512:
            self._flush()
        return first

    @torch.no_grad()
    def _flush(self) -> None:
        if self.waiting:
            frames = torch.cat(self.waiting).to(self.visual.patch_embed.proj.weight.device)
            self.encoded.append(torch.cat([encode_grids(self.visual, p) for p in torch.split(patchify(frames), 256)]))
            self.waiting = []


def _key(event: Event) -> Key:
    return event.colour, event.shape, event.digit, event.start % TEMPORAL, event.end - event.start
