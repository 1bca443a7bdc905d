"""Writing an answer: one token after the other on a preallocated cache."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.engine.cache import BufferCache, RaggedCache
from videox2l.errors import ModelError, SettingsError
from videox2l.options import SamplingParams

Processor = Callable[[Tensor, Tensor], Tensor]
"""From token ids (1, n) and logits (1, vocabulary) to logits, as transformers' logits processors."""

PromptIds = Callable[[], list[int]]

Constraint = Callable[[Sequence[int], Tensor], Tensor]
"""From the tokens of an answer so far and logits (vocabulary,) to logits, -inf where a token may not follow."""

_NEUTRAL: dict[str, tuple[Any, ...]] = {  # fields of a generation config that change an answer, where not one of these
    "num_beams": (None, 1),
    "num_beam_groups": (None, 1),
    "penalty_alpha": (None, 0, 0.0),
    "dola_layers": (None,),
    "guidance_scale": (None, 1, 1.0),
    "encoder_repetition_penalty": (None, 1, 1.0),
    "encoder_no_repeat_ngram_size": (None, 0),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "forced_decoder_ids": (None,),
    "exponential_decay_length_penalty": (None,),
    "constraints": (None,),
    "force_words_ids": (None,),
    "watermarking_config": (None,),
    "stop_strings": (None,),
    "renormalize_logits": (None, False),
}
_NEUTRAL_SAMPLED = {"typical_p": (None, 1, 1.0), "epsilon_cutoff": (None, 0, 0.0), "eta_cutoff": (None, 0, 0.0)}


class PresencePenalty:
    """Lowers the logits of tokens that the answer holds already: once each, or for each time that they stand there."""

    def __init__(self, presence: float, frequency: float, start: int) -> None:
        self.presence, self.frequency, self.start = presence, frequency, start

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        """Return the logits (1, vocabulary) behind token ids (1, n), of which those from `start` on are the answer."""
        tokens, counts = torch.unique(ids[0, self.start :], return_counts=True)
        scores = scores.clone()
        scores[0, tokens] -= self.presence + self.frequency * counts.to(scores.dtype)
        return scores


def processors(config: Any, sampling: SamplingParams, prompt: int) -> list[Processor]:
    """Return what a checkpoint's generation config, and the options above it, do to logits behind `prompt` tokens.

    They are transformers' own logits processors, so that greedy decoding is that of `generate`. Raises SettingsError
    for settings that are not served.
    """
    from transformers.generation import logits_process as library

    def setting(name: str, neutral: Any) -> Any:
        asked = getattr(sampling, name, None)
        found = getattr(config, name, None) if asked is None else asked
        return neutral if found is None else found

    neutral = {**_NEUTRAL, **(_NEUTRAL_SAMPLED if sampling.temperature > 0 else {})}
    wrong = [
        f"{name}={getattr(config, name)!r}" for name, fine in neutral.items() if getattr(config, name, None) not in fine
    ]
    if wrong:
        raise SettingsError(
            f"the checkpoint's generation config asks for {', '.join(wrong)}, which is not served: remove it from "
            "generation_config.json to answer without"
        )
    made: list[Any] = []
    if setting("repetition_penalty", 1.0) != 1.0:
        made.append(library.RepetitionPenaltyLogitsProcessor(float(setting("repetition_penalty", 1.0))))
    presence, frequency = float(setting("presence_penalty", 0.0)), float(setting("frequency_penalty", 0.0))
    if presence or frequency:
        made.append(PresencePenalty(presence, frequency, prompt))
    if setting("no_repeat_ngram_size", 0) > 0:
        made.append(library.NoRepeatNGramLogitsProcessor(setting("no_repeat_ngram_size", 0)))
    if getattr(config, "sequence_bias", None):
        made.append(library.SequenceBiasLogitsProcessor(sequence_bias=config.sequence_bias))
    ends = getattr(config, "eos_token_id", None)
    if getattr(config, "bad_words_ids", None):
        made.append(library.NoBadWordsLogitsProcessor(config.bad_words_ids, ends))
    least = getattr(config, "min_new_tokens", None) or max(0, (getattr(config, "min_length", None) or 0) - prompt)
    if least and ends is not None:
        made.append(library.MinNewTokensLengthLogitsProcessor(prompt, least, ends))
    if getattr(config, "suppress_tokens", None):
        made.append(library.SuppressTokensLogitsProcessor(config.suppress_tokens))
    if getattr(config, "begin_suppress_tokens", None):
        made.append(library.SuppressTokensAtBeginLogitsProcessor(config.begin_suppress_tokens, prompt))
    return made


def chooser(sampling: SamplingParams, config: Any = None) -> Callable[[Tensor], int]:
    """Return a function from logits (vocabulary,) to a token id; it draws from a generator of its own.

    With a temperature, `top_k`, `top_p` and `min_p` that are not given are those of a checkpoint's generation config.
    """
    if sampling.temperature == 0:
        return lambda logits: int(logits.argmax())

    def setting(name: str, neutral: Any) -> Any:
        asked = getattr(sampling, name)
        found = getattr(config, name, None) if asked is None else asked
        return neutral if found is None else found

    top_k, top_p, min_p = setting("top_k", 0), setting("top_p", 1.0), setting("min_p", 0.0)
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits: Tensor) -> int:
        chances = (logits.float().cpu() / sampling.temperature).softmax(-1)
        ordered, ids = chances.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        left_out = (before >= top_p) | (ordered < min_p * ordered[0])
        if top_k:
            left_out[top_k:] = True
        ordered = ordered.masked_fill(left_out, 0)  # the first always stays
        return int(ids[torch.multinomial(ordered, 1, generator=generator)])

    return draw


class TokenGenerator:
    """Writes an answer token by token; on its way it may be put behind another cache.

    `ids` are the tokens so far; `finish` is None until the answer is over: "stop" when the model ended it, "length"
    when `max_new_tokens` did. `entropies` (nats) and `surprises` (the log likelihood of each token, negated) are of the
    model's own distributions, in float32: one for each of `ids`; temperature and penalties have no part in them.
    `alternatives` are the likeliest tokens at the place of each, with their log likelihoods, where `logprobs` asks so.
    `unread` is the last token while the cache does not hold it yet. `prompt` returns the ids of the tokens before the
    answer, for penalties; a `constraint` says which tokens may follow.
    """

    def __init__(
        self,
        backbone: Backbone,
        sampling: SamplingParams,
        prompt: PromptIds = list,
        constraint: Constraint | None = None,
    ) -> None:
        self.ids: list[int] = []
        self.entropies: list[float] = []
        self.surprises: list[float] = []
        self.alternatives: list[list[tuple[int, float]]] = []
        self.finish: str | None = None
        self.unread: int | None = None
        self._backbone = backbone
        self._most, self._ends = sampling.max_new_tokens, backbone.stop_ids
        self._told = sampling.logprobs or 0
        self._constraint = constraint
        config = getattr(backbone, "generation_config", None)
        self._choose = chooser(sampling, config)
        self._prompt: list[int] = []
        self._processors = processors(config, sampling, 0)
        if self._processors:  # rarely: most checkpoints have no penalties
            self._prompt = prompt()
            self._processors = processors(config, sampling, len(self._prompt))

    def begin(self, cache: BufferCache, logits: Tensor, position: int) -> None:
        """Go on behind a cache that holds the prompt and all of `ids`.

        `logits` (vocabulary,) of the last token in it; `position` of the next one. Tokens are appended to `cache`.
        """
        self._cache, self._logits, self._position = cache, logits, position
        self.unread = None

    def step(self) -> int | None:
        """Return one more token id, or None when the answer is over; see `advance` for several answers at once.

        Raises ModelError for logits that are not finite.
        """
        if self.waits:
            advance([self])
        return self.choose()

    @property
    def waits(self) -> bool:
        """Whether the model has to read the last token before the next one can be chosen."""
        return self.finish is None and self.unread is not None

    def choose(self) -> int | None:
        """Return the token id that the last logits give, or None when the answer is over."""
        if self.finish is not None:
            return None
        token = self._choose(self._processed(self._logits))
        if token in self._ends:
            self.finish = "stop"
            return None
        self._take(token)
        self.unread = token
        if len(self.ids) == self._most:
            self.finish = "length"
        return token

    def likelihoods(self, ids: Sequence[int]) -> list[float]:
        """Return the log likelihood of each of `ids` if they came next, in float32; nothing is written."""
        found = [float(self._logits.float().log_softmax(-1)[ids[0]])]
        if len(ids) > 1:
            logits = self._backbone.logits(self._read(ids[:-1])).float().log_softmax(-1)
            found += logits[range(len(ids) - 1), ids[1:]].tolist()
            self._cache.crop(len(self._cache) - len(ids) + 1)
        return found

    def write(self, ids: Sequence[int]) -> None:
        """Write given tokens, which end the answer."""
        for token in ids:
            if self.waits:
                advance([self])
            self._take(token)
            self.unread = token
        self.finish = "stop"

    def _read(self, ids: Sequence[int]) -> Tensor:
        """Run tokens behind the cache; return their hidden states."""
        embeds = self._backbone.embed(torch.tensor(ids))
        return self._backbone.forward(embeds, self._backbone.text_positions(self._position, len(ids)), self._cache)

    def _take(self, token: int) -> None:
        """Note a token of the answer, and how sure the model was of it."""
        likelihoods = self._logits.float().log_softmax(-1)
        doubt = torch.special.entr(likelihoods.exp()).sum()
        entropy, likelihood = torch.stack((doubt, likelihoods[token])).tolist()
        self.ids.append(token)
        self.entropies.append(entropy)
        self.surprises.append(-likelihood)
        if self._told:
            best = likelihoods.topk(min(self._told, len(likelihoods)))
            self.alternatives.append(list(zip(best.indices.tolist(), best.values.tolist(), strict=True)))

    def end(self, text: str) -> None:
        """End the answer behind the tokens that `text` is whole of; those that follow are forgotten, their KVs too."""
        n = len(self.ids)
        while n and len(self._backbone.decode(self.ids[:n])) > len(text):
            n -= 1
        held = len(self.ids) - (self.unread is not None)
        if n < len(self.ids):
            self._cache.crop(len(self._cache) - (held - n))
            self.ids, self.unread = self.ids[:n], None
            self.entropies, self.surprises = self.entropies[:n], self.surprises[:n]
            self.alternatives = self.alternatives[:n]
        self.finish = "stop"

    def _processed(self, logits: Tensor) -> Tensor:
        if not math.isfinite(float(logits.max())):  # NaN wins over every number, and so does Inf
            raise ModelError(
                f"the model's logits are not finite at token {len(self.ids)} of the answer: numbers overflow in "
                f"{str(logits.dtype).removeprefix('torch.')}; load the model with dtype 'bfloat16' or 'float32'"
            )
        if self._processors:
            ids, scores = torch.tensor([[*self._prompt, *self.ids]], device=logits.device), logits[None].float()
            for process in self._processors:
                scores = process(ids, scores)
            logits = scores[0]
        return logits if self._constraint is None else self._constraint(self.ids, logits)


def advance(generators: Sequence[TokenGenerator]) -> None:
    """Have the model read the last token of several answers in one pass, each behind its own cache.

    All are of one model, and wait. The weights are read once for all of them, which is what decoding costs; answers are
    those of each alone, up to the rounding of a matrix product with more rows. Where it fails no cache is changed.
    """
    backbone, caches = generators[0]._backbone, [one._cache for one in generators]
    embeds = backbone.embed(torch.tensor([one.unread for one in generators]))
    positions = torch.cat([backbone.text_positions(one._position, 1) for one in generators], 1)
    lengths = [len(cache) for cache in caches]
    try:
        hidden = backbone.forward(embeds, positions, caches[0] if len(caches) == 1 else RaggedCache(caches))
        logits = backbone.logits(hidden)
    except Exception:
        for cache, length in zip(caches, lengths, strict=True):
            cache.crop(length)
        raise
    for one, row in zip(generators, logits, strict=True):
        one._logits, one.unread = row, None
        one._position += 1


def generate(
    backbone: Backbone,
    cache: BufferCache,
    logits: Tensor,
    position: int,
    sampling: SamplingParams,
    prompt: PromptIds = list,
) -> Iterator[int]:
    """Yield generated token ids until a stop id (which is not yielded) or `max_new_tokens`.

    `logits` (vocabulary,) of the last prompt token; `position` of the first generated token. Appends to `cache`.
    """
    generator = TokenGenerator(backbone, sampling, prompt)
    generator.begin(cache, logits, position)
    while (token := generator.step()) is not None:
        yield token


class TextStream:
    """Turns token ids into pieces of text; holds back bytes of characters that are not complete yet."""

    def __init__(self, decode_ids: Callable[[list[int]], str]) -> None:
        self._decode = decode_ids
        self._ids: list[int] = []
        self._shown = ""

    def push(self, token: int) -> str:
        """Add a token; return the text that is new, possibly none."""
        self._ids.append(token)
        return self._advance(hold=True)

    def end(self) -> str:
        """Return whatever was held back."""
        return self._advance(hold=False)

    def _advance(self, hold: bool) -> str:
        text = self._decode(self._ids)
        if hold and text.endswith("\ufffd"):
            return ""
        new = text[len(self._shown) :]
        self._shown = text
        return new


class StopText:
    """Cuts text that comes in pieces before the first of some strings; what may be the begin of one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.met = False

    def push(self, piece: str) -> str:
        """Add a piece; return the text that is certain now, possibly none."""
        if self.met:
            return ""
        text = self._held + piece
        places = [place for stop in self._stops if (place := text.find(stop)) >= 0]
        if places:
            self.met, self._held = True, ""
            return text[: min(places)]
        longest = max((len(stop) for stop in self._stops), default=1)
        begins = (
            n for n in range(min(longest - 1, len(text)), 0, -1) if any(s.startswith(text[-n:]) for s in self._stops)
        )
        keep = next(begins, 0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def end(self) -> str:
        """Return whatever was held back."""
        text, self._held = self._held, ""
        return text
