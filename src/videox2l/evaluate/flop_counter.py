"""How much a language model computes and reads: counted at the doors of its layers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from videox2l.engine.backbone import Backbone
from videox2l.flops import DecoderShape, causal_pairs


@dataclass
class Count:
    """What ran: for each pass through one layer its rows, and the columns that the layer's cache held before it."""

    shape: DecoderShape | None
    token_bytes: int
    passes: list[tuple[int, int]] = field(default_factory=list)

    @property
    def flops(self) -> int | None:
        """FLOPs of all passes, logits left out; None for a model whose sizes are not known."""
        shape = self.shape
        if shape is None:
            return None
        return sum(
            rows * shape.row // shape.layers + shape.pair * causal_pairs(rows, past) for rows, past in self.passes
        )

    @property
    def bytes_read(self) -> int | None:
        """Bytes of cached KVs that all passes attended to; None where nothing could be counted."""
        if self.shape is None:
            return None
        return sum(past for _, past in self.passes) * self.token_bytes // self.shape.layers


class FlopCounter:
    """Counts the passes through a backbone's decoder layers while `counting` is open."""

    def __init__(self, backbone: Backbone) -> None:
        self.layers = list(getattr(getattr(backbone, "decoder", None), "layers", ()))
        self.token_bytes = backbone.shape.token_bytes
        self.shape = decoder_shape(backbone) if len(self.layers) == backbone.shape.layers else None
        self._paused = False

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Count nothing until the block ends: for work that questions share, whichever comes first."""
        self._paused = True
        try:
            yield
        finally:
            self._paused = False

    @contextlib.contextmanager
    def counting(self) -> Iterator[Count]:
        """Give a count that grows with every pass until the block ends."""
        count = Count(self.shape, self.token_bytes)

        def noting(number: int) -> Callable[..., None]:
            def note(_: Any, args: tuple[Any, ...], options: dict[str, Any]) -> None:
                if self._paused:
                    return
                hidden = args[0] if args else options["hidden_states"]
                cache = options.get("past_key_values")
                count.passes.append((hidden.shape[1], 0 if cache is None else cache.layers[number].get_seq_length()))

            return note

        with contextlib.ExitStack() as hooks:
            for number, layer in enumerate(self.layers if self.shape is not None else ()):
                hooks.callback(layer.register_forward_pre_hook(noting(number), with_kwargs=True).remove)
            yield count


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
