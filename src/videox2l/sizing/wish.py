"""What is planned for: the settings of an ingest and of a question."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from videox2l.engine.backbone import Backbone
from videox2l.ingest import IngestSettings
from videox2l.options import IngestOptions, LoadOptions


@dataclass(frozen=True)
class EstimateRequest:
    """Settings of an ingest, of the model, and of a question of `question` tokens that re-loads `reload` chunks."""

    ingest: IngestOptions = field(default_factory=IngestOptions)
    load: LoadOptions = field(default_factory=LoadOptions)
    reload: int = 3
    question: int = 32
    new_tokens: int = 128

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        owner = self.load if name in ("max_pixels", "dtype", "quantize") else self.ingest
        value = getattr(owner, name)
        return 0.0 if name == "start" and value is None else value

    def settings(self, backbone: Backbone) -> IngestSettings:
        """Return the settings of the ingest. Raises SettingsError for what cannot work."""
        return IngestSettings.of(self.ingest, backbone)

    def but(self, **changes: Any) -> EstimateRequest:
        """Return the request with some settings changed."""
        own = {name: changes.pop(name) for name in ("reload", "question", "new_tokens") if name in changes}
        load: dict[str, Any] = {
            name: changes.pop(name) for name in ("max_pixels", "dtype", "quantize") if name in changes
        }
        return replace(
            self,
            ingest=IngestOptions.from_keywords(self.ingest, changes),
            load=LoadOptions.from_keywords(self.load, load),
            **own,
        )
