"""How much a language model computes and reads: counted at its decoder's door."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from videox2l.backbones.base import Backbone
from videox2l.cost import DecoderShape, causal_pairs


@dataclass
class Count:
    """What ran: for each forward its rows and the columns that each layer's cache held before it."""

    shape: DecoderShape | None
    token_bytes: int
    forwards: list[tuple[int, tuple[int, ...]]] = field(default_factory=list)

    @property
    def flops(self) -> int | None:
        """FLOPs of all forwards, logits left out; None for a model whose sizes are not known."""
        shape = self.shape
        if shape is None:
            return None
        return sum(
            rows * shape.row + shape.pair * sum(causal_pairs(rows, past) for past in layers)
            for rows, layers in self.forwards
        )

    @property
    def bytes_read(self) -> int | None:
        """Bytes of cached KVs that all forwards attended to; None where nothing could be counted."""
        if self.shape is None:
            return None
        layers = max(self.shape.layers, 1)
        return sum(sum(past) for _, past in self.forwards) * self.token_bytes // layers


class Meter:
    """Counts the forwards of a backbone's decoder while `counting` is open."""

    def __init__(self, backbone: Backbone) -> None:
        self.decoder: Any = getattr(backbone, "decoder", None)
        self.token_bytes = backbone.shape.token_bytes
        self.shape = decoder_shape(backbone) if hasattr(self.decoder, "register_forward_pre_hook") else None

    @contextlib.contextmanager
    def counting(self) -> Iterator[Count]:
        """Give a count that grows with every forward until the block ends."""
        count = Count(self.shape, self.token_bytes)
        if self.shape is None:
            yield count
            return

        def note(_: Any, __: Any, options: dict[str, Any]) -> None:
            cache = options.get("past_key_values")
            held = tuple(layer.get_seq_length() for layer in cache.layers) if cache is not None else ()
            count.forwards.append((options["inputs_embeds"].shape[1], held))

        handle = self.decoder.register_forward_pre_hook(note, with_kwargs=True)
        try:
            yield count
        finally:
            handle.remove()


def decoder_shape(backbone: Backbone) -> DecoderShape | None:
    """Return the sizes of a backbone's language model, or None where its config does not tell them."""
    config = getattr(backbone, "text_config", None)
    heads = getattr(config, "num_attention_heads", None)
    mlp = getattr(config, "intermediate_size", None)
    if heads is None or mlp is None:
        return None
    shape = backbone.shape
    return DecoderShape(
        layers=shape.layers,
        hidden=config.hidden_size,  # type: ignore[union-attr]
        heads=heads,
        kv_heads=shape.heads,
        head_dim=shape.head_dim,
        mlp=mlp,
        vocabulary=config.vocab_size,  # type: ignore[union-attr]
        bytes_per_value=shape.dtype.itemsize,
    )
