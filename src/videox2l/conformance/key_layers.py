"""Which layers of a model say what a question is about: found by a made-up film of words, without training.

Pages of a few facts each are the chunks, their words' own embeddings the visual tokens. Questions ask for a fact of one
page by the name of its place, and by a description of it. Layers are read as `videox2l.select.exact` reads them; those
are kept whose sharpest vote finds the right page most often (retrieval heads: arXiv 2404.15574).
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any

import torch

from videox2l.compress import ChunkEncoder, History, compressor_by_name
from videox2l.engine.backbone import Backbone
from videox2l.memory import Chunk, Memory
from videox2l.memory.features import Votes
from videox2l.select.exact import KINDS, ExactSelector
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
QUESTIONS = 5
"""Of a film, asked about so many of its pages."""


@dataclass(frozen=True)
class KeyLayers:
    """The votes that were found, how often they name the right page, and how often chance would."""

    votes: Votes
    recall: float
    chance: float

    @property
    def useful(self) -> bool:
        """Whether the votes are clearly better than chance."""
        return self.recall > 3 * self.chance


@torch.no_grad()
def find_votes(backbone: Any, films: int = 6, seed: int = 0) -> KeyLayers:
    """Find the votes of a model with a tokenizer. Some thirty questions about short films; deterministic.

    As many layers as one in fourteen are kept, at least one: in 8 bits that is under two percent of L's bytes.
    """
    layers = tuple(range(backbone.shape.layers))
    selector = ExactSelector(votes=tuple((layer, "confident") for layer in layers))
    ballots, rights = [], []
    for number in range(films):
        rng = random.Random(1000 * seed + number)
        memory, asked = _film(backbone, rng)
        for question, page in asked:
            values = selector.values(backbone.suffix(question), memory, backbone, layers)
            kinds = [selector.ballots(kind, values, memory, backbone, layers) for kind in KINDS]
            ballots.append(torch.stack(kinds, 1).flatten(0, 1).cpu())  # (layers * kinds, pages)
            rights.append(page)
    stacked, right = torch.stack(ballots), torch.tensor(rights)  # (questions, votes, pages)
    votes = [(layer, kind) for layer in layers for kind in KINDS]
    picked: list[int] = []
    best = -1.0
    for _ in range(max(1, len(layers) // 14)):
        scores = [_recall(stacked[:, [*picked, vote]], right) for vote in range(len(votes))]
        top = max(range(len(votes)), key=scores.__getitem__)
        if scores[top] <= best:
            break
        picked, best = [*picked, top], scores[top]
    return KeyLayers(tuple(votes[vote] for vote in picked), _recall(stacked[:, picked], right, top=1), 1 / len(PLACES))


def _recall(ballots: torch.Tensor, right: torch.Tensor, top: int = 0) -> float:
    """Return how often the sharpest of votes (questions, votes, pages) finds the page: mean over the best 1 and 3."""
    sharpest = ballots.amax(-1).argmax(-1)
    order = ballots[torch.arange(len(right)), sharpest].argsort(-1, descending=True)
    hits = order == right[:, None]
    at = {n: float(hits[:, :n].any(-1).float().mean()) for n in (1, 3)}
    return at[top] if top else (at[1] + at[3]) / 2


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
