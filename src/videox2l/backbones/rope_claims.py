"""What a checkpoint says about its rotary positions, against what the loaded model rotates by.

Written as `rope_theta` and `rope_scaling` by transformers 4 and as `rope_parameters` by 5, at the top or in the text
part, they get lost or contradict each other when configs are edited or converted; the model then runs, and is wrong.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor

from videox2l.errors import ModelError

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
