"""Training of demo-xl: the demo model's language model learns to read its videos through summary tokens.

`python -m training.summary --run runs/demo-xl`. The vision tower stays as it is; videos are
put together from grids encoded before (`bank.py`). Chunks get ratios drawn at random, so that any mix of levels is
in range; one masked pass holds a video with all its chunks and questions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import Qwen2_5_VLForConditionalGeneration

from training.bank import GridBank
from training.geometry import TEMPORAL, TOKENS_PER_GRID
from training.language import draw_video, pair_up
from training.loop import Schedule, run_phase
from training.workers import launch, rank
from videox2l.backbones.video_xl_model import VideoXLForCausalLM
from videox2l.demo.questions import WorldQuestion, make_questions
from videox2l.demo.tokens import build_tokenizer
from videox2l.demo.xl import FOLDER, demo_xl_config
from videox2l.engine.rope import rotate
from videox2l.engine.summary import SummaryLayout

RATIOS = (2, 4, 8, 16, 32)
MIX = {
    "digit": 0.2,
    "by shape": 0.03,
    "colour": 0.1,
    "shape": 0.1,
    "order": 0.22,
    "count": 0.14,
    "presence": 0.07,
    "pair": 0.06,
    "time": 0.04,
    "describe": 0.04,
}
BEACONS = ("q", "k", "v", "o")
# The demo model knows positions of three axes: first it gets used to one, with little to lose at low ratios.
STAGES = ((0.2, (8, 16), (2, 4)), (0.6, (16, 32), RATIOS), (1.0, (16, 32, 64), RATIOS))


@dataclass(frozen=True)
class SummaryScene:
    """How the chunks of a batch are laid out: visual tokens and summary tokens of each, in order of time."""

    prefix: int
    chunks: Sequence[int]
    layouts: Sequence[SummaryLayout]

    @property
    def visual(self) -> int:
        """Visual tokens in all."""
        return sum(self.chunks)

    @property
    def summaries(self) -> int:
        """Summary tokens in all."""
        return sum(layout.count for layout in self.layouts)

    def starts(self) -> list[int]:
        """Return the cached tokens before each chunk."""
        return list(accumulate((layout.count for layout in self.layouts), initial=self.prefix))[:-1]

    def places(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the positions of visual tokens and of summary tokens, and the chunk of each."""
        pairs = list(zip(self.starts(), self.chunks, self.layouts, strict=True))
        visual = torch.cat([start + layout.visual_columns(n) for start, n, layout in pairs])
        summary = torch.cat([start + layout.columns() for start, _, layout in pairs])
        of_visual = torch.repeat_interleave(torch.arange(len(pairs)), torch.tensor(list(self.chunks)))
        counts = torch.tensor([layout.count for layout in self.layouts])
        return visual, summary, of_visual, torch.repeat_interleave(torch.arange(len(pairs)), counts)


def draw_scene(rng: np.random.Generator, tokens: int, prefix: int, ratios: Sequence[int] = RATIOS) -> SummaryScene:
    """Draw a chunk size, and one ratio for all chunks, or one of two for each; ends have ratio 2 half of the time."""
    size = int(rng.choice([18, 36, 36, 36, 72]))
    chunks = [min(size, tokens - at) for at in range(0, tokens, size)]
    coarse = int(rng.choice(ratios))
    pair = (coarse, coarse) if rng.random() < 0.5 else (2, coarse)
    ends = rng.random() < 0.5
    layouts, rest = [], 0
    for i, n in enumerate(chunks):
        ratio = 2 if ends and i in (0, len(chunks) - 1) else int(rng.choice(pair, p=[0.3, 0.7]))
        ratio = ratio if n >= ratio else 2  # every chunk keeps something
        rest %= ratio
        layouts.append(SummaryLayout(ratio, ratio - rest, (n + rest) // ratio))
        rest = (n + rest) % ratio
    return SummaryScene(prefix, chunks, layouts)


class Prompt:
    """The words around a video, as the chat template of Video-XL renders them with the demo tokenizer."""

    def __init__(self) -> None:
        self.tokenizer = build_tokenizer()
        self.prefix = self.words("<|im_start|>system you are a helpful assistant . <|im_end|> <|im_start|> user")
        self.header = self.words("<|im_end|> <|im_start|> assistant")
        self.user = self.words("<|im_start|> user")
        self.end = self.words("<|im_end|>")

    def words(self, text: str) -> list[int]:
        """Return the tokens of some words."""
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def talk(self, turns: Sequence[WorldQuestion]) -> tuple[list[int], list[int]]:
        """Return the tokens after the video, and for each the number of the turn it answers, or -1."""
        ids: list[int] = []
        turn: list[int] = []
        for i, question in enumerate(turns):
            asked = (self.user if i else []) + self.words(question.question) + self.header
            said = self.words(question.answer) + self.end
            ids += asked + said
            turn += [-1] * len(asked) + [i] * len(said)
        return ids, turn


@dataclass
class Talks:
    """The conversations of a batch, side by side in one row per video."""

    ids: Tensor  # (b, t)
    places: Tensor  # (b, t) position behind the video
    segment: Tensor  # (b, t) number of the conversation, -1 for padding
    labels: Tensor  # (b, t) the next token where it is part of an answer, else -100
    answer: Tensor  # (b, t) number of the answer that a label belongs to, else -1
    kinds: list[str]


def pack(prompt: Prompt, conversations: Sequence[Sequence[Sequence[WorldQuestion]]]) -> Talks:
    """Lay conversations out side by side."""
    rows: list[list[tuple[int, int, int, int]]] = []  # (id, place, segment, answer)
    kinds: list[str] = []
    for talks in conversations:
        row: list[tuple[int, int, int, int]] = []
        for number, turns in enumerate(talks):
            tokens, turn = prompt.talk(turns)
            row += [
                (token, place, number, len(kinds) + t if t >= 0 else -1)
                for place, (token, t) in enumerate(zip(tokens, turn, strict=True))
            ]
            kinds += [question.kind for question in turns]
        rows.append(row)
    longest = max(map(len, rows))
    table = torch.tensor([row + [(0, 0, -1, -1)] * (longest - len(row)) for row in rows])
    ids, places, segment, said = (table[..., i] for i in range(4))
    labels, answer = torch.full_like(ids, -100), torch.full_like(ids, -1)
    labels[:, :-1] = torch.where(said[:, 1:] >= 0, ids[:, 1:], -100)
    answer[:, :-1] = said[:, 1:]
    return Talks(ids, places, segment, labels, answer, kinds)


def visibility(scene: SummaryScene, talks: Talks) -> Tensor:
    """Return what each row sees: (b, rows, rows + summaries) bool.

    Rows are prefix, visual tokens, conversations, summary tokens. The last `summaries` columns are the summary tokens
    again, as they stand in the cache: these are what everything behind their chunk sees.
    """
    visual, summary, of_visual, of_summary = scene.places()
    p, n, (b, t) = scene.prefix, scene.visual, talks.ids.shape
    chunk = torch.cat((torch.full((p,), -1), of_visual, torch.full((t,), len(scene.chunks)), of_summary))
    place = torch.cat((torch.arange(p), visual, torch.zeros(t, dtype=torch.long), summary))
    same = (chunk[:, None] == chunk) & (place[:, None] >= place)
    sees = torch.cat((same | (chunk == -1) & (chunk[:, None] >= 0), chunk[:, None] > of_summary), 1).repeat(b, 1, 1)
    ask_rows = slice(p + n, p + n + t)
    own = (talks.segment[:, :, None] == talks.segment[:, None]) & torch.ones(t, t, dtype=torch.bool).tril()
    sees[:, ask_rows, ask_rows] = own
    return sees


def forward(model: Any, scene: SummaryScene, features: Tensor, talks: Talks, prefix: Tensor) -> Tensor:
    """Return the logits at the labels: (labels, vocabulary). `features` (b, visual, hidden)."""
    decoder = model.model
    b, m = len(features), scene.summaries
    beacon = decoder.beacon_embed_tokens.weight.expand(b, m, -1)
    first = decoder.embed_tokens(prefix).expand(b, -1, -1)
    x = torch.cat((first, features, decoder.embed_tokens(talks.ids), beacon), 1)
    visual, summary, _, _ = scene.places()
    after = scene.prefix + m + talks.places  # (b, t)
    fixed = torch.cat((torch.arange(scene.prefix), visual)).expand(b, -1)
    positions = torch.cat((fixed, after, summary.expand(b, -1)), 1)
    kept = (scene.prefix + torch.arange(m)).expand(b, -1)
    at, again = (tuple(x[:, None] for x in decoder.rotary_emb(x, p)) for p in (positions, kept))
    seen = visibility(scene, talks)[:, None]
    mask = torch.zeros(seen.shape).masked_fill_(~seen, -1e9)
    for layer in decoder.layers:
        x = x + _attention(layer.self_attn, layer.input_layernorm(x), m, at, again, mask)
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    start = scene.prefix + scene.visual
    hidden = decoder.norm(x[:, start : start + talks.ids.shape[1]])
    return F.linear(hidden[talks.labels >= 0], decoder.embed_tokens.weight)


def _attention(attn: Any, h: Tensor, m: int, at: Any, again: Any, mask: Tensor) -> Tensor:
    def project(name: str, x: Tensor) -> Tensor:
        own = getattr(attn, f"beacon_{name}_proj")
        return torch.cat((getattr(attn, f"{name}_proj")(x[:, :-m]), own(x[:, -m:])), 1)

    q, k, v = (project(name, h).view(*h.shape[:2], -1, attn.head_dim).transpose(1, 2) for name in "qkv")
    keys = torch.cat((rotate(k, *at), rotate(k[:, :, -m:], *again)), 2)
    values = torch.cat((v, v[:, :, -m:]), 2)
    group = q.shape[1] // k.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    weights = (rotate(q, *at) @ keys.mT * attn.scaling + mask).softmax(-1)
    return project("o", (weights @ values).transpose(1, 2).flatten(2))


class SummaryPhase:
    """Trains the language model on grids from a bank."""

    name = "summary"

    def __init__(self, model: Any, bank: GridBank, seed: int, half: bool) -> None:
        self.model, self.bank, self.seed, self.half = model, bank, seed, half
        self.modules: nn.Module = model
        self.prompt = Prompt()

    def trained(self) -> list[tuple[str, nn.Parameter]]:
        """Return all parameters but the head, which is a copy of the embeddings."""
        return [(f"text.{name}", p) for name, p in self.model.model.named_parameters()]

    def loss(self, step: int, progress: float) -> tuple[Tensor, dict[str, float]]:
        """Return the cross-entropy of the answers of a fresh batch, and the accuracy by kind and length."""
        rng = np.random.default_rng([0x5E7, self.seed, step, rank()])
        lengths, ratios = next((lengths, ratios) for until, lengths, ratios in STAGES if progress <= until)
        frames = int(rng.choice(lengths))
        tokens = frames // TEMPORAL * TOKENS_PER_GRID
        questions = 12
        scene = draw_scene(rng, tokens, len(self.prompt.prefix), ratios)
        rows = max(2, 4000 // (tokens + scene.summaries + 14 * questions))
        videos = [draw_video(rng, frames, int(rng.choice([1, 2, 6, 6]))) for _ in range(rows)]
        talks = pack(self.prompt, [pair_up(make_questions(video, rng, questions, MIX), rng) for video in videos])
        index = torch.stack([self.bank.fill(video, rng) for video in videos])
        features = self.bank.features[index].flatten(1, 2)
        prefix = torch.tensor(self.prompt.prefix)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.half):
            logits = forward(self.model, scene, features, talks, prefix)
        where = talks.labels >= 0
        target, answer = talks.labels[where], talks.answer[where]
        wrong = torch.zeros(len(talks.kinds)).index_add_(0, answer, (logits.argmax(-1) != target).float())
        kinds = np.array(talks.kinds)
        right = {k: float((wrong[torch.from_numpy(kinds == k)] == 0).float().mean()) for k in sorted(set(talks.kinds))}
        return F.cross_entropy(logits.float(), target), {f"{k}@{frames}": share for k, share in right.items()}


@torch.no_grad()
def begin(demo: Any) -> VideoXLForCausalLM:
    """Return a model that begins with the demo model's weights; summary tokens begin with those of ordinary tokens."""
    model = VideoXLForCausalLM(demo_xl_config(), BEACONS)
    text: Any = demo.model.language_model
    model.model.load_state_dict(text.state_dict(), strict=False)
    for layer in model.model.layers:
        for name in BEACONS:
            own = getattr(layer.self_attn, f"beacon_{name}_proj")
            own.load_state_dict(getattr(layer.self_attn, f"{name}_proj").state_dict())
    model.model.beacon_embed_tokens.weight.copy_(text.embed_tokens.weight[2:3])  # the end of a turn
    return model


def export_summary_model(model: Any, folder: Path) -> None:
    """Write config and weights in Video-XL's layout."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().bfloat16().contiguous() for name, value in model.state_dict().items()}
    state["lm_head.weight"] = state["model.embed_tokens.weight"].clone()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    config = model.config.to_diff_dict() | {"model_type": "llava_qwen", "architectures": ["LlavaQwenForCausalLM"]}
    rope = config.pop("rope_parameters", {})  # older transformers, and the published config, know rope_theta alone
    config.setdefault("rope_theta", rope.get("rope_theta"))
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


def train(run: Path, steps: int, lr: float, seed: int, begin_with: Path, folder: Path) -> None:
    """Train from a demo model, or go on."""
    torch.set_num_threads(1)
    demo: Any = Qwen2_5_VLForConditionalGeneration.from_pretrained(begin_with, dtype=torch.float32)
    phase = SummaryPhase(begin(demo), GridBank.cached(demo.model.visual, 0, run / "bank.pt"), seed=seed, half=True)
    run_phase(phase, Schedule(steps, lr, lr / 20), run)
    if rank() == 0:
        export_summary_model(phase.model, folder)


def main(arguments: Sequence[str] | None = None) -> None:
    """Train demo-xl and write it beside the demo model."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--run", type=Path, default=Path("runs/demo-xl"), help="checkpoint and log; resumed if there")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1, help="decides the data, not the weights it begins with")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--begin-with", type=Path, default=FOLDER.parent / "model", help="folder of the demo model")
    parser.add_argument("--export", type=Path, default=FOLDER, help="where the model goes")
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args(arguments)
    given.run.mkdir(parents=True, exist_ok=True)
    launch(train, given.workers, (given.run, given.steps, given.lr, given.seed, given.begin_with, given.export))


if __name__ == "__main__":
    main()
