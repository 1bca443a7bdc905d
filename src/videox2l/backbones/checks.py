"""Checks of what a model's config claims: kinds of layers, masks and RoPE that chunks of KVs cannot serve."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor
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


def unsupported_reason(config: Any) -> str | None:
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


def check_layers(name: str, text_config: Any) -> None:
    """Raise ModelError where a layer keeps no per-token KV, sees only a part of them, or does more than attend."""
    reason = unsupported_reason(text_config)
    if reason is not None:
        raise ModelError(f"{name} cannot be served: it {reason}")


def check_own_mask(name: str, mask: Any) -> None:
    """Raise ModelError where a front end hands its decoder a mask of its own making, for pictures that see ahead."""
    if isinstance(mask, Mapping) or getattr(mask, "ndim", 0) > 2:
        raise ModelError(
            f"{name} cannot be served: its visual tokens see one another in both directions, which chunks behind a "
            "causal cache do not"
        )


def unsupported_fields_reason(model_type: str, fields: Mapping[str, Any]) -> str | None:
    """Return what `unsupported_reason` says of a config.json, or None where transformers does not know the family."""
    try:
        config = AutoConfig.for_model(model_type, **{k: v for k, v in fields.items() if k != "model_type"})
    except Exception:  # a family that is not known, or fields that it does not take: there is nothing to say then
        return None
    return unsupported_reason(config)


_BLOCKS = ("rope_parameters", "rope_scaling")
_SAME = {"mrope": "default"}

PUBLISHED: dict[str, tuple[float, ...]] = {
    "llava_onevision": (1e6,),
    "llava_qwen": (1e6,),
    "qwen2_5_vl": (1e6,),
    "qwen2_vl": (1e6,),
    "qwen3_vl": (5e6, 1e6),
    "qwen3_vl_moe": (5e6, 1e6),
    "video_llama_3": (1e6,),
}
"""The thetas with which a family and the language models that it is made from were published."""


def check_rope(config: Mapping[str, Any], model: Any) -> str:
    """Return what the model rotates by, in words. Raises ModelError where config.json says something else."""
    theta = effective_theta(model)
    if theta is None:
        return "no rotary positions found"
    kind = effective_kind(model)
    for place, value in claims(config, "rope_theta"):
        if kind == "default" and abs(float(value) / theta - 1) > 1e-3:
            raise ModelError(
                f"wrong rope theta: config.json says {place}={value:g}, and the loaded model rotates by {theta:g}. "
                "Its rope settings contradict each other or were lost in a conversion: compare them with the "
                "original model's"
            )
    for name in ("rope_type", "type"):
        for place, value in claims(config, name):
            if _SAME.get(value, value) != kind:
                raise ModelError(
                    f"wrong rope scaling: config.json says {place}='{value}', and the loaded model uses '{kind}': "
                    "compare the rope settings with the original model's"
                )
    return f"theta {theta:g}" + ("" if kind == "default" else f", {kind}")


def check_theta(model_type: str, model: Any) -> str:
    """Return the theta in words. Raises ModelError where no published model of the family and no default has it."""
    theta = effective_theta(model)
    usual = PUBLISHED.get(model_type)
    if theta is None or usual is None or effective_kind(model) != "default":
        return "nothing to compare with"
    default = default_theta(model)
    known = sorted({*usual, *([default] if default is not None else [])})
    if all(abs(theta / value - 1) > 1e-3 for value in known):
        raise ModelError(
            f"wrong rope theta: the model rotates by {theta:g}, and published {model_type} models by "
            f"{' or '.join(f'{value:g}' for value in usual)}. If this one was trained with {theta:g}, say so with "
            f"--rope-theta {theta:g}"
        )
    return f"{theta:g}, as published"


def effective_theta(model: Any) -> float | None:
    """Return the theta of the angles by which the decoder rotates; None if it has none of the usual kind."""
    decoder = None if model is None else model.get_decoder()
    angles: Tensor | None = getattr(getattr(decoder, "rotary_emb", None), "inv_freq", None)
    if angles is None or len(angles) < 2 or angles.is_meta:
        return None
    n = len(angles)
    return math.exp(-math.log(float(angles[-1].double())) * n / (n - 1))


def effective_kind(model: Any) -> str:
    """Return the kind of scaling that the decoder uses."""
    kind = str(getattr(getattr(model.get_decoder(), "rotary_emb", None), "rope_type", "default"))
    return _SAME.get(kind, kind)


def default_theta(model: Any) -> float | None:
    """Return the theta that the class of the text config has by itself."""
    config = model.config.get_text_config()
    found = getattr(type(config), "default_theta", None)
    if found is None:
        plain = type(config)()
        found = (getattr(plain, "rope_parameters", None) or {}).get("rope_theta") or getattr(plain, "rope_theta", None)
    return None if found is None else float(found)


def claims(config: Mapping[str, Any], name: str) -> Iterator[tuple[str, Any]]:
    """Yield every place of a config.json's text part that gives `name`, and what it gives."""
    for part, where in ((config, ""), (config.get("text_config") or {}, "text_config.")):
        if name in part and name.startswith("rope_"):
            yield f"{where}{name}", part[name]
        for block in _BLOCKS:
            inner = part.get(block) or {}
            if name in inner and inner[name] is not None:
                yield f"{where}{block}.{name}", inner[name]


def changing_rope_limit(decoder: Any) -> int | None:
    """Return the first position at which a decoder's RoPE changes with the length, None if it never does.

    "dynamic" (NTK) and "longrope" have frequencies that depend on how long a sequence is, from the trained length on.
    """
    rope = getattr(decoder, "rotary_emb", None)
    kinds = getattr(rope, "rope_type", "default")
    kinds = set(kinds.values()) if isinstance(kinds, dict) else {kinds}
    if not kinds & {"dynamic", "longrope"}:
        return None
    config = getattr(rope, "config", None)
    parameters = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    trained = parameters.get("original_max_position_embeddings") if "longrope" in kinds else None
    found = trained or getattr(rope, "original_max_seq_len", None) or getattr(config, "max_position_embeddings", None)
    return None if found is None else int(found)


def trained_positions(config: Any) -> int | None:
    """Return how many positions a text config says that its model knows, stretched ones (YaRN, linear) included."""
    most = getattr(config, "max_position_embeddings", None)
    if not most:
        return None
    scaling = getattr(config, "rope_parameters", None) or getattr(config, "rope_scaling", None) or {}
    original, factor = scaling.get("original_max_position_embeddings"), scaling.get("factor")
    return max(int(most), int(original * factor)) if original and factor else int(most)
