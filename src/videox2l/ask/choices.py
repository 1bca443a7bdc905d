"""A question with given answers: the likelihood of each, from the logits that writing it would take."""

from __future__ import annotations

from collections.abc import Sequence

from videox2l.ask.answer import Choice
from videox2l.engine.backbone import Backbone
from videox2l.engine.decode import TokenGenerator
from videox2l.types import TextTokens


def weigh(
    texts: Sequence[str], backbone: Backbone, generator: TokenGenerator, unseen: TokenGenerator | None = None
) -> tuple[Choice, ...]:
    """Return each text with its likelihood as the answer that `generator` would write; nothing is written.

    `unseen` stands behind the same prompt without the video: with it choices are calibrated.
    """
    found = []
    for text in texts:
        ids = backbone.reply(text)
        likelihood = sum(generator.likelihoods(ids))
        blind = None if unseen is None else sum(unseen.likelihoods(ids))
        calibrated = None if blind is None else likelihood - blind
        found.append(Choice(text, likelihood, likelihood / len(ids), len(ids), calibrated))
    return tuple(found)


def best_choice(choices: Sequence[Choice]) -> Choice:
    """Return the choice that is likeliest per token, or, where they are calibrated, gains most from the video."""
    return max(choices, key=lambda choice: choice.mean if choice.calibrated is None else choice.calibrated)


def without_video(backbone: Backbone, text: TextTokens, generator: TokenGenerator) -> TokenGenerator:
    """Let a generator stand behind the text of a prompt, all of it, without a video in it."""
    cache = backbone.new_cache(len(text) + 64)
    hidden = backbone.forward(text.embeds, backbone.text_positions(0, len(text)), cache)
    generator.begin(cache, backbone.logits(hidden[-1:])[0], len(text))
    return generator
