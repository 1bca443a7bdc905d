"""What all adapters of transformers models share: text, the decoder's forward pass, identity."""

from __future__ import annotations

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from videox2l.backbones import attention
from videox2l.backbones.attention import Probe
from videox2l.backbones.base import KVShape, TextTokens, Turn, VideoCursor, VisualTokens
from videox2l.backbones.cache import BufferCache
from videox2l.backbones.chat import ChatPrompt
from videox2l.backbones.positions import text_positions
from videox2l.backbones.rope import mix_mrope
from videox2l.errors import ModelError


class TransformersBackbone(ABC):
    """A stock transformers video LLM behind the `Backbone` protocol. Subclasses add vision and positions."""

    axes = 1
    group_frames = 1
    default_chunk_frames = 8
    default_compressor = "keydiff"

    def __init__(self, model: Any, tokenizer: Any, video_config: Mapping[str, Any]) -> None:
        self.model = model.eval()
        self.decoder: nn.Module = model.get_decoder()
        self.tokenizer = tokenizer
        self.video_config = dict(video_config)
        self.name = str(model.config.model_type)
        self.text_config = model.config.get_text_config()
        refuse_unusual_layers(self.name, self.text_config)
        self.embedding: nn.Module = model.get_input_embeddings()
        heads = self.text_config.num_attention_heads
        self.shape = KVShape(
            layers=self.text_config.num_hidden_layers,
            heads=getattr(self.text_config, "num_key_value_heads", None) or heads,
            head_dim=getattr(self.text_config, "head_dim", None) or self.text_config.hidden_size // heads,
            dtype=self.embedding.weight.dtype,
        )
        self.chat = ChatPrompt(tokenizer, self._placeholder())
        attention.install(self.decoder)

    def _placeholder(self) -> str:
        """Return what stands for the video in the rendered prompt: by default a token that the config names."""
        return str(self.tokenizer.convert_ids_to_tokens(self.video_token_id))

    @property
    def video_token_id(self) -> int:
        """Id of the token that stands for a visual token."""
        config = self.model.config
        for name in ("video_token_id", "video_token_index"):
            if getattr(config, name, None) is not None:
                return int(getattr(config, name))
        raise ModelError(f"the config of {self.name} names no video token")

    @property
    def device(self) -> torch.device:
        """Device of the token embeddings."""
        return self.embedding.weight.device  # type: ignore[return-value, unused-ignore]

    # --- text -------------------------------------------------------------------------------------------------

    def prefix(self) -> TextTokens:
        """Return everything of the chat template that stands before the video."""
        before, _ = self.chat.cut("What happens?")
        return self._text(self.chat.ids(before))

    def suffix(self, question: str, history: Sequence[Turn] = ()) -> TextTokens:
        """Return everything that stands after the video, the answer's header included."""
        _, after = self.chat.cut(question, history)
        return self._text(self.chat.ids(after))

    def _text(self, ids: Sequence[int]) -> TextTokens:
        tensor = torch.tensor(ids, dtype=torch.long, device=self.device)
        return TextTokens(tensor, self.embed(tensor))

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
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end an answer: those of the generation config and the tokenizer's end of text."""
        found: set[int] = set()
        generation = getattr(self.model, "generation_config", None)
        for value in (getattr(generation, "eos_token_id", None), self.tokenizer.eos_token_id):
            if value is not None:
                found.update(value if isinstance(value, (list, tuple)) else [value])
        return frozenset(found)

    # --- vision -----------------------------------------------------------------------------------------------

    @abstractmethod
    def visual_tokens(self, frames: Sequence[np.ndarray], pts: Sequence[float], cursor: VideoCursor) -> VisualTokens:
        """Run the vision tower on the frames of one chunk."""

    # --- the decoder ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def forward(self, embeds: Tensor, positions: Tensor, cache: BufferCache, probe: Probe | None = None) -> Tensor:
        """Run the decoder on `embeds` (n, hidden) at `positions` (axes, n) behind what `cache` holds."""
        ids = positions.to(self.device)
        options = {} if probe is None else {"x2l_probe": probe}
        out = self.decoder(
            inputs_embeds=embeds[None].to(self.device),
            position_ids=ids if self.axes == 1 else ids[:, None],
            past_key_values=cache,
            use_cache=True,
            **options,
        )
        hidden: Tensor = out.last_hidden_state[0]
        return hidden

    @torch.no_grad()
    def logits(self, hidden: Tensor) -> Tensor:
        """Return the logits (n, vocabulary) of hidden states (n, hidden)."""
        out: Tensor = self.model.get_output_embeddings()(hidden)
        return out

    @torch.no_grad()
    def rotation(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Return cos and sin, float32 (n, head_dim), by which keys at `positions` (axes, n) are rotated."""
        ids = positions.to(self.device)
        like = torch.zeros(1, dtype=torch.float32, device=self.device)
        cos, sin = self.decoder.rotary_emb(like, ids if self.axes == 1 else ids[:, None])  # type: ignore[operator]
        if cos.ndim == 4:  # three tables, mixed only inside the layers, before transformers 5.15
            section = self._mrope_section()
            cos, sin = mix_mrope(cos, section), mix_mrope(sin, section)
        return cos[0], sin[0]

    def _mrope_section(self) -> list[int]:
        for name in ("rope_parameters", "rope_scaling"):
            found = getattr(self.text_config, name, None) or {}
            if "mrope_section" in found:
                return list(found["mrope_section"])
        raise ModelError(f"the config of {self.name} has no mrope_section")

    def new_cache(self, capacity: int = 0) -> BufferCache:
        """Return an empty cache with room for `capacity` tokens."""
        return BufferCache(self.shape.layers, capacity)

    # --- identity ---------------------------------------------------------------------------------------------

    def identity(self) -> dict[str, str]:
        """Return what a memory must agree on to be usable."""
        tokenizer = self.tokenizer
        vocabulary = json.dumps(sorted(tokenizer.get_vocab().items()), ensure_ascii=False)
        return {
            "architecture": self.name,
            "weights": weights_id(self.model),
            "processor": _sha256(json.dumps(self.processing(), sort_keys=True, default=str)),
            "tokenizer": _sha256(vocabulary),
            "chat_template": _sha256(str(tokenizer.chat_template)),
        }

    def processing(self) -> dict[str, Any]:
        """Return the settings by which frames become visual tokens, as plain JSON values."""
        return {}


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@torch.no_grad()
def weights_id(model: nn.Module, samples: int = 64) -> str:
    """Return a SHA-256 (hex) over name, shape, dtype and `samples` evenly spread values of every weight.

    Reading all weights of a large model would take longer than answering a question; a model that differs was
    trained or rounded differently, and so differs nearly everywhere.
    """
    digest = hashlib.sha256()
    for name, weight in sorted(model.state_dict().items()):
        flat = weight.detach().reshape(-1)
        picks = torch.linspace(0, max(len(flat) - 1, 0), min(samples, len(flat)), dtype=torch.float64).long()
        values = flat[picks.to(flat.device)].cpu().contiguous()
        digest.update(f"{name}|{tuple(weight.shape)}|{weight.dtype}|".encode())
        digest.update(values.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def refuse_unusual_layers(name: str, text_config: Any) -> None:
    """Raise ModelError where a layer keeps no per-token KV or sees only a window of it."""
    kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    unusual = sorted(kinds - {"full_attention"})
    if unusual:
        raise ModelError(
            f"{name} has layers of type {', '.join(unusual)}: their KVs cannot be compressed and re-loaded by chunk"
        )
