"""The text side of a transformers model: its decoder behind a cache, its tokens, its devices."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from videox2l.backbones.checks import changing_rope_limit, check_layers, trained_positions
from videox2l.backbones.positions import text_positions
from videox2l.engine import attention
from videox2l.engine.attention import Probe
from videox2l.engine.cache import BufferCache, RaggedCache
from videox2l.engine.rope import mix_mrope
from videox2l.errors import ModelError
from videox2l.types import KVShape


class DecoderBackbone:
    """The part of the `Backbone` protocol that knows nothing of videos, on a stock transformers model."""

    axes = 1

    def __init__(self, model: Any, tokenizer: Any) -> None:
        self.model = model.eval()
        self.decoder = decoder_of(model)
        if _stop_at_the_door not in self.decoder._forward_pre_hooks.values():
            self.decoder.register_forward_pre_hook(_stop_at_the_door, with_kwargs=True)
        self.tokenizer = tokenizer
        self.name = str(model.config.model_type)
        self.text_config = model.config.get_text_config()
        check_layers(self.name, self.text_config)
        self.embedding: nn.Module = model.get_input_embeddings()
        self.shape = kv_shape(self.text_config, self.embedding.weight.dtype)
        self.fixed_positions = changing_rope_limit(self.decoder)
        self.attend_with(attention.NAME)

    def attend_with(self, implementation: str) -> None:
        """Switch the decoder's attention: the package's own, or one of the library's for a check."""
        attention.install(self.decoder, implementation)

    @property
    def device(self) -> torch.device:
        """Device of the token embeddings."""
        held: torch.device = self.embedding.weight.device  # type: ignore[assignment, unused-ignore]
        return self._entrance if held.type == "meta" and self._spread else held

    @property
    def _spread(self) -> bool:
        """Whether accelerate spread the model over several devices, or keeps parts of it elsewhere."""
        return len(set((getattr(self.model, "hf_device_map", None) or {}).values())) > 1

    @cached_property
    def _entrance(self) -> torch.device:
        """The device on which embeddings come out whose weights are kept elsewhere."""
        return torch.device(self.embedding(torch.zeros(1, dtype=torch.long)).device)

    @cached_property
    def layer_devices(self) -> tuple[torch.device, ...] | None:
        """Where each layer has its KVs, found by running one token; None where the model is on one device."""
        if not self._spread:
            return None
        cache = DynamicCache()
        self.forward(self.embed(torch.zeros(1, dtype=torch.long)), self.text_positions(0, 1), cache)
        return tuple(layer.keys.device for layer in cache.layers)

    def text_positions(self, first: int, n: int) -> Tensor:
        """Return the positions (axes, n) of `n` text tokens, the first at `first`."""
        return text_positions(first, n, self.axes)

    @torch.no_grad()
    def embed(self, ids: Tensor) -> Tensor:
        """Return the embeddings (n, hidden) of token ids (n,)."""
        out: Tensor = self.embedding(ids.to(self.device))
        return out

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of generated ids, without control tokens."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))

    @property
    def generation_config(self) -> Any:
        """The checkpoint's generation settings, as transformers reads them."""
        return getattr(self.model, "generation_config", None)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: those of the generation config and the tokenizer's end of text."""
        found: set[int] = set()
        generation = self.generation_config
        for value in (getattr(generation, "eos_token_id", None), self.tokenizer.eos_token_id):
            if value is not None:
                found.update(value if isinstance(value, (list, tuple)) else [value])
        return frozenset(found)

    @torch.no_grad()
    def forward(
        self, embeds: Tensor, positions: Tensor, cache: BufferCache | RaggedCache, probe: Probe | None = None
    ) -> Tensor:
        """Run the decoder on `embeds` (n, width) at `positions` (axes, n) behind what `cache` holds."""
        self._check_positions(positions)
        embeds, ids = embeds.to(self.device), positions.to(self.device)[:, None]  # (axes, batch, n)
        inputs = self.decoder_embeds(embeds)
        if ragged := isinstance(cache, RaggedCache):  # a batch of sequences of one token each
            inputs, ids = {"inputs_embeds": embeds[:, None]}, ids.transpose(1, 2)
        options = {} if probe is None else {"x2l_probe": probe}
        with attention.kernels(self.device):
            out = self.decoder(
                **inputs,
                position_ids=ids[0] if self.axes == 1 else ids,
                past_key_values=cache,
                use_cache=True,
                **options,
            )
        hidden: Tensor = out.last_hidden_state
        return hidden[:, 0] if ragged else hidden[0]

    def decoder_embeds(self, embeds: Tensor) -> dict[str, Any]:
        """Return the decoder's arguments for embeddings (n, width)."""
        return {"inputs_embeds": embeds[None]}

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (n, vocabulary) of hidden states (n, hidden)."""
        out: Tensor = self.model.get_output_embeddings()(hidden)
        return out

    @torch.no_grad()
    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, float32 (n, head_dim), by which keys at `positions` (axes, n) are rotated."""
        self._check_positions(positions)
        ids = positions.to(self.device)
        like = torch.zeros(1, dtype=torch.float32, device=self.device)
        cos, sin = self.decoder.rotary_emb(like, ids if self.axes == 1 else ids[:, None])  # type: ignore[operator]
        if cos.ndim == 4:  # three tables, mixed only inside the layers, before transformers 5.15
            section = self._mrope_section()
            cos, sin = mix_mrope(cos, section), mix_mrope(sin, section)
        return cos[0], sin[0]

    @property
    def max_positions(self) -> int | None:
        """How many positions the decoder was trained for, as its config says; None if it does not."""
        return trained_positions(self.text_config)

    def _check_positions(self, positions: Tensor) -> None:
        """Raise ModelError where RoPE would change its frequencies: KVs that are kept would not fit later text."""
        limit = self.fixed_positions
        if limit is not None and positions.numel() and int(positions.max()) >= limit:
            raise ModelError(
                f"position {int(positions.max())} is beyond the {limit} that {self.name} was trained for, and its RoPE "
                f"({self.decoder.rotary_emb.rope_type}) changes with the length there, so that KVs cannot be kept: use "  # type: ignore[union-attr]
                "a lower fps, fewer frames or pixels, a shorter part, or a config with rope type yarn or linear"
            )

    def _mrope_section(self) -> list[int]:
        for name in ("rope_parameters", "rope_scaling"):
            found = getattr(self.text_config, name, None) or {}
            if "mrope_section" in found:
                return list(found["mrope_section"])
        raise ModelError(f"the config of {self.name} has no mrope_section")

    def new_cache(self, capacity: int = 0) -> BufferCache:
        """Return an empty cache with room for `capacity` tokens."""
        return BufferCache(self.shape.layers, capacity, self.layer_devices)


class _StopError(Exception):
    """Raised at the decoder's door."""


_capture = threading.local()  # `inputs`: where this thread's call of the decoder goes, in place of its forward


def _stop_at_the_door(_: nn.Module, __: tuple[Tensor, ...], inputs: dict[str, Any]) -> None:
    """Hook of every decoder, installed once: other threads' passes go through while one thread captures its own."""
    captured = getattr(_capture, "inputs", None)
    if captured is not None:
        captured.update(inputs)
        raise _StopError


def kv_shape(text: Any, dtype: torch.dtype) -> KVShape:
    """Return the shape of one token's KVs by a text config."""
    heads = text.num_attention_heads
    return KVShape(
        layers=text.num_hidden_layers,
        heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        dtype=dtype,
    )


def decoder_of(model: Any) -> nn.Module:
    """Return the text decoder of a model: what has the layers. SmolVLM of transformers 4 names another module."""
    found: nn.Module = model.get_decoder()
    return found if hasattr(found, "layers") else found.text_model  # type: ignore[return-value]


@torch.no_grad()
def decoder_inputs(model: Any, **inputs: Any) -> dict[str, Any]:
    """Run `model.model` up to its text decoder and return the keyword arguments that the decoder was called with.

    Return types of `get_video_features` differ between versions of transformers; what reaches the decoder does
    not. `inputs_embeds` (1, n, hidden) holds the visual tokens at the placeholders of `input_ids`. The decoder must be
    that of a `DecoderBackbone`.
    """
    captured: dict[str, Any] = {}
    _capture.inputs = captured
    try:
        model.model(**inputs)
    except _StopError:
        pass
    finally:
        _capture.inputs = None
    return captured
