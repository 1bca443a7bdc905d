"""Accuracy of a model folder on held-out videos, through the stock forward of transformers with every KV kept.

`python -m training.evaluate [folder]` prints a table by kind and length.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, Qwen2_5_VLForConditionalGeneration

from training.geometry import TEMPORAL, TOKENS_PER_GRID, patchify, video_positions
from videox2l import demo
from videox2l.demo.draw import NATIVE
from videox2l.demo.questions import KINDS, WorldQuestion, make_questions
from videox2l.demo.render import render_video, script
from videox2l.demo.world import WorldVideo, make_video

MODEL = Path(demo.__file__).parent / "model"
LONGEST_ANSWER = 13
Counts = dict[tuple[str, int], tuple[int, int]]
"""(kind, frames) -> right answers, questions."""


class Oracle:
    """Answers questions about a video with the whole video in the cache."""

    def __init__(self, folder: Path | str) -> None:
        self.model: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32).eval()
        self.tokenizer: Any = AutoTokenizer.from_pretrained(folder)

    @torch.no_grad()
    def watch(self, frames: Tensor, step: float = 2.0) -> None:
        """Prefill the prompt up to the end of a video: uint8 (T, 48, 48, 3), `step` positions between grids."""
        grids = len(frames) // TEMPORAL
        pixels = patchify(frames).flatten(0, 1)
        grid_thw = torch.tensor([[grids, 6, 6]])
        text = "<|im_start|>user\n<|vision_start|>" + "<|video_pad|>" * (grids * TOKENS_PER_GRID)
        ids = torch.tensor(self.tokenizer(text)["input_ids"])[None]
        head = ids.shape[1] - grids * TOKENS_PER_GRID
        positions = torch.cat([torch.arange(head).expand(3, head), video_positions(grids, step, head)], dim=1)
        out = self.model(
            input_ids=ids,
            position_ids=positions[:, None],
            pixel_values_videos=pixels,
            video_grid_thw=grid_thw,
            use_cache=True,
        )
        self.cache, self.seen, self.next = out.past_key_values, ids.shape[1], int(positions.max()) + 1
        self.after = "<|vision_end|>"

    @torch.no_grad()
    def watch_nothing(self, text_only: bool) -> None:
        """Prefill the prompt with an empty video or, with `text_only`, without a place for one."""
        text = "<|im_start|>user\n" + ("" if text_only else "<|vision_start|>")
        ids = torch.tensor(self.tokenizer(text)["input_ids"])[None]
        out = self.model(input_ids=ids, position_ids=torch.arange(ids.shape[1]).expand(3, 1, -1), use_cache=True)
        self.cache, self.seen, self.next = out.past_key_values, ids.shape[1], ids.shape[1]
        self.after = "" if text_only else "<|vision_end|>"

    @torch.no_grad()
    def answer(self, question: str) -> str:
        """Answer one question greedily; the video's cache is as before afterwards."""
        text = f"{self.after}{question}<|im_end|>\n<|im_start|>assistant\n"
        ids, at = torch.tensor(self.tokenizer(text)["input_ids"])[None], self.next
        said: list[int] = []
        while len(said) < LONGEST_ANSWER:
            positions = torch.arange(at, at + ids.shape[1]).expand(3, 1, -1)
            out = self.model(input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True)
            at, ids = at + ids.shape[1], out.logits[:, -1:].argmax(-1)
            if ids.item() == self.tokenizer.eos_token_id:
                break
            said.append(int(ids.item()))
        self.cache.crop(self.seen - self.cache.get_seq_length())
        return str(self.tokenizer.decode(said))


def evaluate_model(
    folder: Path | str,
    frames: Sequence[int],
    videos: int,
    *,
    split: str = "heldout",
    first_seed: int = 0,
    each: int = 2,
) -> Counts:
    """Ask `each` questions of every kind about each of `videos` videos per length."""
    oracle = Oracle(folder)
    counts: dict[tuple[str, int], tuple[int, int]] = defaultdict(lambda: (0, 0))
    for length in frames:
        for seed in range(first_seed, first_seed + videos):
            video = make_video(seed, length, split)
            oracle.watch(torch.from_numpy(video.render()))
            for question in questions_of_every_kind(video, seed, each):
                right, n = counts[question.kind, length]
                counts[question.kind, length] = (right + (oracle.answer(question.question) == question.answer), n + 1)
    return dict(counts)


def evaluate_files(folder: Path | str, files: int, minutes: float = 3.0) -> tuple[Counts, Counts]:
    """Ask about rendered files, and about the same scripts drawn without going through a file.

    The files are decoded, one frame per second is taken and scaled to 48 pixels as video processors do it.
    """
    oracle = Oracle(folder)
    through_file: Counts = defaultdict(lambda: (0, 0))
    drawn: Counts = defaultdict(lambda: (0, 0))
    for seed in range(files):
        video = script(seed, minutes)
        with tempfile.TemporaryDirectory() as place:
            truth = render_video(Path(place) / "video.mp4", seed, minutes)
            frames = sample_file(Path(place) / "video.mp4")
        for counts, pictures in ((through_file, frames), (drawn, torch.from_numpy(video.render()))):
            oracle.watch(pictures)
            for item in truth:
                right, n = counts[item["kind"], len(frames)]
                said = oracle.answer(item["question"])
                counts[item["kind"], len(frames)] = (right + (said == item["answer"]), n + 1)
    return dict(through_file), dict(drawn)


def sample_file(path: Path) -> Tensor:
    """Take the first frame of every second of a file, 48 pixels wide: uint8 (seconds, 48, 48, 3)."""
    frames: list[Tensor] = []
    with av.open(str(path)) as container:
        for frame in container.decode(video=0):
            if frame.time >= len(frames):
                picture = torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)[None].float()
                small = F.interpolate(picture, size=(NATIVE, NATIVE), mode="bicubic", antialias=True)
                frames.append(small[0].permute(1, 2, 0).round().clamp(0, 255).to(torch.uint8))
    return torch.stack(frames)


def questions_of_every_kind(video: WorldVideo, seed: int, each: int = 2) -> list[WorldQuestion]:
    """Return `each` questions of every kind, where the video has so many."""
    rng = np.random.default_rng([0xE7A1, seed])
    return [question for kind in KINDS for question in make_questions(video, rng, each, {kind: 1.0})]


def interval(right: int, n: int) -> tuple[float, float]:
    """Return Wilson's 95 % interval of a share, in percent."""
    z, p = 1.96, right / n
    middle, half = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return 100 * (middle - half) / (1 + z * z / n), 100 * (middle + half) / (1 + z * z / n)


def table(counts: Counts) -> str:
    """Lay out accuracies in percent as a Markdown table, kinds across and lengths down."""
    lengths = sorted({length for _, length in counts})
    lines = ["| frames | " + " | ".join(KINDS) + " |", "| ---: |" + " --- |" * len(KINDS)]
    for length in lengths:
        cells = []
        for kind in KINDS:
            right, n = counts.get((kind, length), (0, 0))
            low, high = interval(right, n) if n else (0.0, 0.0)
            cells.append(f"{100 * right / n:.1f} ({low:.0f}-{high:.0f}, n={n})" if n else "-")
        lines.append(f"| {length} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("folder", nargs="?", type=Path, default=MODEL, help="model folder")
    parser.add_argument("--frames", type=int, nargs="+", default=[16, 32, 64, 128, 180])
    parser.add_argument("--videos", type=int, default=150, help="videos per length")
    parser.add_argument("--split", choices=["dev", "heldout"], default="heldout")
    parser.add_argument("--files", type=int, default=0, help="instead: so many rendered files of three minutes")
    given = parser.parse_args(arguments)
    if given.files:
        through_file, drawn = evaluate_files(given.folder, given.files)
        sys.stdout.write(f"through files\n{table(through_file)}\n\nsame scripts, drawn\n{table(drawn)}\n")
        return
    sys.stdout.write(table(evaluate_model(given.folder, given.frames, given.videos, split=given.split)) + "\n")


if __name__ == "__main__":
    main()
