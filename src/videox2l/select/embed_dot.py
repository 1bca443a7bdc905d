"""Selection by the visual tokens themselves, as they enter the language model."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from videox2l.backbones.base import Backbone, TextTokens
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.memory.marks import VISUAL


@dataclass(frozen=True)
class EmbedDotSelector:
    """Products of visual tokens with the question's token embeddings: the ablation in the code of arXiv 2506.21184.

    A chunk's score is the largest, over its groups of frames, of the mean product over the group's visual tokens and
    the question's tokens. That is the product of two means, so a mean per group is all that the ingest keeps.
    """

    def score(self, question: TextTokens, memory: Memory, backbone: Backbone) -> Tensor:
        """Return the products (n_chunks,), which may be negative. On the CPU.

        Raises SettingsError if the memory was made by a release that kept no means.
        """
        chunks = memory.chunks
        if any(VISUAL not in chunk.marks for chunk in chunks):
            raise SettingsError(
                "selector 'embed-dot' needs means of visual tokens, which this memory has not: ingest the video again"
            )
        most = max(chunk.marks[VISUAL].shape[0] for chunk in chunks)

        def side_by_side() -> Tensor:
            # A chunk with fewer groups than others repeats its first one: that changes no maximum.
            rows = [chunk.marks[VISUAL] for chunk in chunks]
            full = [torch.cat((row, row[:1].expand(most - len(row), -1))) for row in rows]
            return torch.stack(full).to(backbone.device).float()

        table = memory.tables.get(VISUAL, chunks, side_by_side)  # (n_chunks, groups, hidden)
        return (table @ question.embeds.float().mean(0)).amax(-1).cpu()
