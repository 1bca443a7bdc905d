"""Models whose KVs cannot be kept by chunk, recognised before anything is computed."""

from __future__ import annotations

from typing import Any

from videox2l.errors import ModelError


def refuse_unusual_layers(name: str, text_config: Any) -> None:
    """Raise ModelError where a layer keeps no per-token KV or sees only a window of it."""
    kinds = set(getattr(text_config, "layer_types", None) or ["full_attention"])
    unusual = sorted(kinds - {"full_attention"})
    if unusual:
        raise ModelError(
            f"{name} has layers of type {', '.join(unusual)}: their KVs cannot be compressed and re-loaded by chunk"
        )
