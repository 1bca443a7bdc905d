"""Selectors by embeddings: dual encoders (CLIP, SigLIP, SigLIP 2), and the model's own visual tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch import Tensor

from videox2l.engine.backbone import Backbone
from videox2l.engine.hub import loading_options
from videox2l.engine.identity import weights_id
from videox2l.errors import ModelError, SettingsError
from videox2l.memory import Memory
from videox2l.memory.features import PICTURES, VISUAL
from videox2l.types import TextTokens

PER_CHUNK = 4
"""Frames of a chunk that are embedded, evenly spaced."""


class DualEncoder:
    """A stock transformers dual encoder with its own image processor and tokenizer.

    Images go through the PIL version of the checkpoint's image processor, so that vectors do not depend on whether
    torchvision is installed. SigLIP's text towers were trained on texts padded to their full length, without a mask,
    and SigLIP 2's on lower case; that is how they are asked.
    """

    def __init__(self, model: Any, tokenizer: Any, image_processor: Any, name: str) -> None:
        if not (hasattr(model, "get_image_features") and hasattr(model, "get_text_features")):
            raise ModelError(
                f"'{name}' ({type(model).__name__}) is no dual encoder of images and text: use such as "
                "'openai/clip-vit-base-patch32' or 'google/siglip2-base-patch16-224'"
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.name = name

    @classmethod
    def from_pretrained(cls, name: str, device: str | torch.device = "cpu") -> DualEncoder:
        """Load a local directory or a hub id; no remote code, safetensors alone. Raises ModelError."""
        from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

        plain = {"backend": "pil"} if int(transformers.__version__.split(".")[0]) >= 5 else {"use_fast": False}
        asked = loading_options(name)
        try:
            model = AutoModel.from_pretrained(name, use_safetensors=True, dtype=torch.float32, **asked)
            tokenizer = AutoTokenizer.from_pretrained(name, **asked)
            images = AutoImageProcessor.from_pretrained(name, **asked, **plain)
        except (OSError, ValueError, ImportError) as error:
            why = next(iter(str(error).strip().splitlines()), type(error).__name__)
            raise ModelError(f"cannot load the embedder '{name}': {why}") from error
        return cls(model.to(device), tokenizer, images, name)

    def identity(self) -> dict[str, str]:
        """Return the name, and a hash over all weights."""
        return {"name": self.name, "weights": weights_id(self.model)}

    @property
    def scale(self) -> float:
        """What the model multiplies cosines with before it compares them."""
        scale = getattr(self.model, "logit_scale", None)
        return 1.0 if scale is None else float(scale.detach().exp())

    @torch.no_grad()
    def pictures(self, frames: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Return unit vectors (n, width) float32 of frames (height, width, 3) RGB, on the CPU."""
        from PIL import Image

        inputs = self.image_processor(images=[Image.fromarray(frame) for frame in frames], return_tensors="pt")
        return _unit(self.model.get_image_features(**{name: x.to(self.model.device) for name, x in inputs.items()}))

    @torch.no_grad()
    def words(self, text: str) -> Tensor:
        """Return the unit vector (width,) float32 of a text, on the CPU; what is too long is cut off."""
        most = int(self.model.config.text_config.max_position_embeddings)
        padded = str(self.model.config.model_type).startswith("siglip")
        text = text.lower() if self.model.config.model_type == "siglip2" else text
        inputs = self.tokenizer(
            [text], padding="max_length" if padded else False, max_length=most, truncation=True, return_tensors="pt"
        )
        names = ("input_ids",) if padded else ("input_ids", "attention_mask")
        return _unit(self.model.get_text_features(**{name: inputs[name].to(self.model.device) for name in names}))[0]

    def of_chunk(self, frames: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Return the vectors (at most PER_CHUNK, width) float16 that are kept of a chunk."""
        n = min(PER_CHUNK, len(frames))
        picks = [(2 * i + 1) * len(frames) // (2 * n) for i in range(n)]
        return self.pictures([frames[i] for i in picks]).half()


def _unit(found: Any) -> Tensor:
    """Return features as unit vectors; newer transformers return them inside of an output object."""
    features = (found if isinstance(found, Tensor) else found.pooler_output).float().cpu()
    unit: Tensor = features / features.norm(dim=-1, keepdim=True)
    return unit


def same_encoder(encoder: DualEncoder, wanted: Mapping[str, str]) -> DualEncoder:
    """Return the encoder if it is the one that a memory was made with; raises SettingsError that says what differs."""
    if encoder.identity()["weights"] != wanted["weights"]:
        raise SettingsError(
            f"the embedder '{encoder.name}' has other weights than the one that this memory was made with "
            f"('{wanted['name']}', {wanted['weights'][:12]}): use that one, or ingest the video again"
        )
    return encoder


@dataclass
class EmbeddingSelector:
    """Cosines of question and frames, by a dual encoder: CLIP (arXiv 2103.00020), SigLIP 2 (arXiv 2502.14786).

    A chunk's cosine is that of its best frame. Frames were embedded at ingest (`ingest(..., embedder=...)`); the
    encoder is loaded when the first question comes, and kept. `encoder`: one that is loaded already.
    """

    encoder: DualEncoder | None = None

    @property
    def features(self) -> tuple[str, ...]:
        """What is compared."""
        return (PICTURES,)

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return shares (n_chunks,): the softmax over chunks of cosine times the encoder's own scale.

        Raises SettingsError if the memory has no vectors or was made with another encoder, ModelError if that cannot
        be loaded.
        """
        wanted = memory.settings.get("embedder")
        if wanted is None or any(PICTURES not in chunk.features for chunk in memory.chunks):
            raise SettingsError(
                "selector 'embedding' needs vectors of frames, which this memory has not: ingest with --embedder"
            )
        if self.encoder is None:
            self.encoder = DualEncoder.from_pretrained(wanted["name"], backbone.device)
        encoder = same_encoder(self.encoder, wanted)
        asked = encoder.words(question.text or backbone.decode(question.ids.tolist()))
        most = max(chunk.features[PICTURES].shape[0] for chunk in memory.chunks)

        def side_by_side() -> Tensor:
            rows = [chunk.features[PICTURES] for chunk in memory.chunks]
            return torch.stack([torch.cat((row, row[:1].expand(most - len(row), -1))) for row in rows]).float()

        table = memory.feature_cache.get(PICTURES, memory.chunks, side_by_side)  # (n_chunks, pictures, width)
        return (encoder.scale * (table @ asked).amax(-1)).softmax(-1)


@dataclass(frozen=True)
class EmbedDotSelector:
    """Products of visual tokens with the question's token embeddings: the ablation in the code of arXiv 2506.21184.

    A chunk's score is the largest, over its groups of frames, of the mean product over the group's visual tokens and
    the question's tokens. That is the product of two means, so a mean per group is all that the ingest keeps.
    """

    @property
    def features(self) -> tuple[str, ...]:
        """What is compared."""
        return (VISUAL,)

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return the products (n_chunks,), which may be negative. On the CPU.

        Raises SettingsError if the memory was made by a release that kept no means.
        """
        chunks = memory.chunks
        if any(VISUAL not in chunk.features for chunk in chunks):
            raise SettingsError(
                "selector 'embed-dot' needs means of visual tokens, which this memory has not: ingest the video again"
            )
        most = max(chunk.features[VISUAL].shape[0] for chunk in chunks)

        def side_by_side() -> Tensor:
            # A chunk with fewer groups than others repeats its first one: that changes no maximum.
            rows = [chunk.features[VISUAL] for chunk in chunks]
            full = [torch.cat((row, row[:1].expand(most - len(row), -1))) for row in rows]
            return torch.stack(full).to(backbone.device).float()

        table = memory.feature_cache.get(VISUAL, chunks, side_by_side)  # (n_chunks, groups, hidden)
        return (table @ question.embeds.float().mean(0)).amax(-1).cpu()
