"""Answers that are JSON of a schema: at each token, only those that keep it so (llguidance)."""

from __future__ import annotations

import json
import weakref
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.errors import ModelError, SettingsError

_LOOK: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}  # free whitespace may go on for ever
_tokenizers: weakref.WeakKeyDictionary[object, Any] = weakref.WeakKeyDictionary()


class SchemaGrammar:
    """A JSON schema over the vocabulary of a model; `begin` an answer with it.

    Raises SettingsError for a schema that cannot be followed, for a tokenizer that llguidance does not read, and where
    it is not installed.
    """

    def __init__(self, schema: Mapping[str, Any], backbone: Backbone) -> None:
        try:
            from llguidance import LLMatcher
        except ImportError:
            raise SettingsError("json_schema needs 'llguidance': pip install 'videox2l[schema]'") from None
        try:
            grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema), overrides=_LOOK)
        except (TypeError, ValueError) as error:
            raise SettingsError(f"json_schema is no JSON schema: {error}") from None
        self._matcher = LLMatcher(_tokenizer_of(backbone), grammar, log_level=0)
        if self._matcher.is_error():
            raise SettingsError(f"json_schema cannot be followed: {self._matcher.get_error().splitlines()[0]}")

    def begin(self) -> SchemaConstraint:
        """Return the constraint of one answer."""
        return SchemaConstraint(self._matcher.deep_copy())


class SchemaConstraint:
    """Keeps one answer to a schema; the end of the answer is possible only where its JSON is whole."""

    def __init__(self, matcher: Any) -> None:
        self._matcher, self._read = matcher, 0

    def __call__(self, ids: Sequence[int], logits: Tensor) -> Tensor:
        """Return logits (vocabulary,) behind the tokens of the answer so far, -inf where a token may not follow.

        Raises ModelError where none may: the vocabulary cannot write what the schema wants.
        """
        new, self._read = list(ids[self._read :]), len(ids)
        if new and not self._matcher.consume_tokens(new):
            raise ModelError(f"the answer left its JSON schema: {self._matcher.get_error()}")
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = torch.zeros(len(logits), dtype=torch.bool)
        known = torch.from_numpy(np.unpackbits(bits, bitorder="little")[: len(logits)].astype(bool))
        allowed[: len(known)] = known
        masked = logits.masked_fill(~allowed.to(logits.device), float("-inf"))
        if not bool(masked.isfinite().any()):
            raise ModelError("the model has no token that may follow: its vocabulary cannot write JSON of this schema")
        return masked


def _tokenizer_of(backbone: Backbone) -> Any:
    """Return the tokenizer of a backbone as llguidance reads it, made once: that takes up to a second."""
    found = _tokenizers.get(backbone)
    if found is None:
        from llguidance.hf import from_tokenizer

        try:
            found = from_tokenizer(getattr(backbone, "tokenizer", None), eos_token=sorted(backbone.stop_ids))
        except ValueError as error:
            raise SettingsError(
                f"the tokenizer of {backbone.name} is none that llguidance reads ({error}): ask this model without a "
                "JSON schema"
            ) from None
        _tokenizers[backbone] = found
    return found
