"""Selection by a dual encoder: the question's vector against vectors of the frames."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.memory.marks import PICTURES
from videox2l.select.encoders import DualEncoder, same_encoder


@dataclass
class EmbeddingSelector:
    """Cosines of question and frames, by a dual encoder: CLIP (arXiv 2103.00020), SigLIP 2 (arXiv 2502.14786).

    A chunk's cosine is that of its best frame. Frames were embedded at ingest (`ingest(..., embedder=...)`); the
    encoder is loaded when the first question comes, and kept. `encoder`: one that is loaded already.
    """

    encoder: DualEncoder | None = None

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return shares (n_chunks,): the softmax over chunks of cosine times the encoder's own scale.

        Raises SettingsError if the memory has no vectors or was made with another encoder, ModelError if that cannot
        be loaded.
        """
        wanted = memory.settings.get("embedder")
        if wanted is None or any(PICTURES not in chunk.marks for chunk in memory.chunks):
            raise SettingsError(
                "selector 'embedding' needs vectors of frames, which this memory has not: ingest with --embedder"
            )
        if self.encoder is None:
            self.encoder = DualEncoder.from_pretrained(wanted["name"], backbone.device)
        encoder = same_encoder(self.encoder, wanted)
        asked = encoder.words(question.text or backbone.decode(question.ids.tolist()))
        most = max(chunk.marks[PICTURES].shape[0] for chunk in memory.chunks)

        def side_by_side() -> Tensor:
            rows = [chunk.marks[PICTURES] for chunk in memory.chunks]
            return torch.stack([torch.cat((row, row[:1].expand(most - len(row), -1))) for row in rows]).float()

        table = memory.tables.get(PICTURES, memory.chunks, side_by_side)  # (n_chunks, pictures, width)
        return (encoder.scale * (table @ asked).amax(-1)).softmax(-1)
