"""Which heads of a model say what a question is about: found by a made-up film of words, without training.

Pages of a few facts each are the chunks, their words' own embeddings the visual tokens. Questions ask for a fact of one
page by the name of its place, and by a description of it. Heads are read as in `videox2l.select.exact`; those are kept
that find the right page most often (retrieval heads: arXiv 2404.15574).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from videox2l.compress import ChunkEncoder, History, compressor_by_name
from videox2l.engine.backbone import Backbone
from videox2l.memory import Chunk, Memory
from videox2l.memory.votes import Votes
from videox2l.select.exact import ExactSelector
from videox2l.types import VisualTokens

PLACES = {
    "harbor": "place where ships dock",
    "kitchen": "room where food is cooked",
    "forest": "place full of trees",
    "library": "building full of books",
    "desert": "dry land of sand",
    "hospital": "building where the sick are treated",
    "airport": "place where planes land",
    "stable": "building where horses live",
    "bakery": "shop that sells bread",
    "theater": "building where plays are shown",
    "garden": "place where flowers grow",
    "bank": "building where money is kept",
}
THINGS = ("cup", "key", "hat", "lamp", "book", "chair", "ball", "bottle")
COLORS = ("red", "blue", "green", "yellow", "black", "white")
FACTS = 4
HEADS = 8
QUESTIONS = 5
"""Of a film, asked about so many of its pages."""


@dataclass(frozen=True)
class KeyHeads:
    """The votes that were found, how often they name the right page, and how often chance would."""

    votes: Votes
    recall: float
    chance: float

    @property
    def useful(self) -> bool:
        """Whether the votes are clearly better than chance."""
        return self.recall > 3 * self.chance


@torch.no_grad()
def find_votes(backbone: Any, films: int = 8, seed: int = 0) -> KeyHeads:
    """Find the heads of a model, with a tokenizer, that say what a question is about. Deterministic.

    Every head is read alone. The best are kept, `HEADS` at most, of so many kv heads that their index, in 4 bits, is
    under two percent of the bytes of L at ratio 2 and 16 bits.
    """
    layers, kv_heads = backbone.shape.layers, backbone.shape.heads
    rows = tuple((layer, head) for layer in range(layers) for head in range(kv_heads))
    selector = ExactSelector(votes=tuple((layer, "confident") for layer in range(layers)))
    ballots, rights = [], []
    for number in range(films):
        memory, asked = _film(backbone, random.Random(1000 * seed + number))
        neutral = selector.neutral(memory, backbone, rows)
        for question, page in asked:
            values = selector.values(backbone.suffix(question), memory, backbone, rows)
            ballots.append(selector.head_ballots(values, neutral).cpu())  # (rows, group, pages)
            rights.append(page)
    stacked, right = torch.stack(ballots), torch.tensor(rights)
    order = stacked.argsort(-1, descending=True) == right[:, None, None, None]
    scores = (order[..., :1].any(-1).float() + order[..., :3].any(-1).float()).mean(0)  # (rows, group)
    picked, used, room = list[int](), set[int](), max(1, int(0.075 * len(rows)))
    for head in scores.flatten().argsort(descending=True, stable=True).tolist():
        row = head // scores.shape[1]
        if row in used or len(used) < room:
            picked.append(head)
            used.add(row)
        if len(picked) == HEADS:
            break
    together = stacked.flatten(1, 2)[:, picked].mean(1)
    recall = float((together.argmax(-1) == right).float().mean())
    votes = [(*rows[head // scores.shape[1]], head % scores.shape[1]) for head in sorted(picked)]
    named = tuple((layer, f"head {kv_head}.{query}") for layer, kv_head, query in votes)
    return KeyHeads(named, recall, 1 / len(PLACES))


def _film(backbone: Any, rng: random.Random) -> tuple[Memory, list[tuple[str, int]]]:
    """Return a memory of a film of pages, and questions with the page that each is about."""
    places = list(PLACES)
    rng.shuffle(places)
    compressor = compressor_by_name("keydiff")
    encoder = ChunkEncoder(backbone, compressor, (1.0, 8.0), History.parse("H"))
    prefix = encoder.prefix(backbone.prefix())
    position = prefix[0].shape[2]
    memory = Memory(
        identity={},
        settings={"l_tier": "stored"},
        manifest={},
        shape=backbone.shape,
        ratios=(1.0, 8.0),
        prefix=(prefix[0].cpu(), prefix[1].cpu()),
        next_position=position,
    )
    asked = []
    for page, place in enumerate(places):
        pairs = rng.sample([(color, thing) for color in COLORS for thing in THINGS], FACTS)
        facts = " ".join(f"The {color} {thing} has number {rng.randrange(10, 100)}." for color, thing in pairs)
        ids = backbone.tokenizer(f"Scene in the {place}: {facts}\n", add_special_tokens=False)["input_ids"]
        tokens = torch.tensor(ids, device=backbone.device)
        positions = backbone.text_positions(position, len(ids))
        visual = VisualTokens(backbone.embed(tokens), positions, (1, 1, len(ids)))
        levels = encoder.add(visual)
        memory.add(Chunk(float(page), page + 1.0, 1, positions, levels))  # type: ignore[arg-type]
        position += len(ids)
        color, thing = pairs[0]
        where = place if page % 2 else PLACES[place]  # by name, by description
        asked.append((f"In the scene in the {where}, which number does the {color} {thing} have?", page))
    memory.next_position = memory.free_position()
    return memory, rng.sample(asked, QUESTIONS)


def can_be_examined(backbone: Backbone) -> bool:
    """Return whether a backbone has what the film needs: a tokenizer, and more layers than a toy."""
    return hasattr(backbone, "tokenizer") and backbone.shape.layers > 6
