"""Models whose KVs cannot be kept by chunk, recognised by what their configs and front ends say."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers import AutoConfig

from videox2l.errors import ModelError

_WHOLE = {"full_attention", "attention"}
_PART = {"sliding_attention", "chunked_attention"}
# Config fields that say that attention is more than scaled dot products of keys that were seen before.
_EXTRAS = {
    "attn_logit_softcapping": "caps its attention logits",
    "cross_attention_layers": "reads pictures by cross-attention, so that its KVs do not hold them",
    "use_bidirectional_attention": "lets tokens see what comes after them",
    "kv_lora_rank": "keeps keys and values in a joint compressed form",
}


def reason_against(config: Any) -> str | None:
    """Return in half a sentence why a model with this config cannot be served, or None if nothing speaks against it."""
    if getattr(config, "is_encoder_decoder", False):
        return "is an encoder with a decoder: pictures and question are not one sequence"
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ["full_attention"]
    unusual = sorted(set(kinds) - _WHOLE)
    if set(unusual) - _PART:
        return (
            f"has layers of type {', '.join(sorted(set(unusual) - _PART))}, which keep no keys and values of single "
            "tokens: there is nothing to compress and re-load by chunk"
        )
    window = getattr(text, "sliding_window", None)
    without_types = not getattr(text, "layer_types", None)
    if unusual or (window and without_types and getattr(text, "use_sliding_window", None) is not False):
        size = window or getattr(text, "attention_chunk_size", None)
        kind = ", ".join(unusual) or "sliding_attention"
        tokens = f"the last {size} tokens" if size else "the last tokens"
        return f"has layers of type {kind}, which see only {tokens}: re-loaded chunks would be out of their sight"
    for field, sentence in _EXTRAS.items():
        if getattr(text, field, None):
            return sentence
    return None


def refuse_unusual_layers(name: str, text_config: Any) -> None:
    """Raise ModelError where a layer keeps no per-token KV, sees only a part of them, or does more than attend."""
    reason = reason_against(text_config)
    if reason is not None:
        raise ModelError(f"{name} cannot be served: it {reason}")


def refuse_own_mask(name: str, mask: Any) -> None:
    """Raise ModelError where a front end hands its decoder a mask of its own making, for pictures that see ahead."""
    if isinstance(mask, Mapping) or getattr(mask, "ndim", 0) > 2:
        raise ModelError(
            f"{name} cannot be served: its visual tokens see one another in both directions, which chunks behind a "
            "causal cache do not"
        )


def reason_against_fields(model_type: str, fields: Mapping[str, Any]) -> str | None:
    """Return what `reason_against` says of a config.json, or None where transformers does not know the family."""
    try:
        config = AutoConfig.for_model(model_type, **{k: v for k, v in fields.items() if k != "model_type"})
    except Exception:  # a family that is not known, or fields that it does not take: there is nothing to say then
        return None
    return reason_against(config)
