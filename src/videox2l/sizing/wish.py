"""What is planned for: the settings of an ingest and of a question."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from videox2l.engine.backbone import Backbone
from videox2l.ingest import IngestSettings


@dataclass(frozen=True)
class EstimateRequest:
    """Settings of an ingest (as of `VideoX2L.ingest`), of the model, and of a question of `question` tokens.

    `reload` chunks at L; None for `compressor` and `chunk_frames` means the model's own.
    """

    fps: float | None = 1.0
    max_frames: int | None = None
    start: float = 0.0
    end: float | None = None
    ratios: tuple[float, ...] = (2.0, 32.0)
    history: str = "H"
    compressor: str | None = None
    chunk_frames: int | None = None
    l_tier: str = "stored"
    l_bits: int | None = None
    h_bits: int | None = None
    max_pixels: int | None = None
    dtype: str = "auto"
    quantize: str | None = None
    reload: int = 3
    question: int = 32
    new_tokens: int = 128

    def settings(self, backbone: Backbone) -> IngestSettings:
        """Return the settings of the ingest. Raises SettingsError for what cannot work."""
        alone = self.l_tier == "none"
        return IngestSettings(
            ratios=self.ratios[-1:] if alone else self.ratios,
            history=self.history,
            compressor=self.compressor or backbone.default_compressor,
            chunk_frames=self.chunk_frames or backbone.default_chunk_frames,
            l_tier="stored" if alone else self.l_tier,
            l_bits=self.l_bits,
            h_bits=self.h_bits,
        )

    def but(self, **changes: Any) -> EstimateRequest:
        """Return the wish with some settings changed."""
        return replace(self, **changes)
