"""Weights in 4 or 8 bits, by the quantization configs of transformers."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from videox2l.errors import ModelError, SettingsError

CHOICES = ("4bit", "8bit")


def quantization_config(wish: Any, dtype: torch.dtype | str) -> Any:
    """Return the quantization config that a wish means: "4bit", "8bit", a config of transformers, or None.

    "4bit" is NF4 with computation in `dtype` and "8bit" is LLM.int8 (arXiv 2305.14314, 2208.07339), both of
    bitsandbytes. The vision tower is quantised with the rest, the output layer is not. Raises SettingsError for
    another word, ModelError that names the package where it is missing.
    """
    if wish is None or not isinstance(wish, str):
        return wish
    if wish not in CHOICES:
        raise SettingsError(
            f"quantize='{wish}' is not known: use {', '.join(CHOICES)}, or pass a quantization config of transformers"
        )
    for package, extra in (("bitsandbytes", "quantize"), ("accelerate", "accelerate")):
        require(package, f"quantize='{wish}'", extra)
    from transformers import BitsAndBytesConfig

    if wish == "8bit":
        return BitsAndBytesConfig(load_in_8bit=True)
    compute = dtype if isinstance(dtype, torch.dtype) else torch.bfloat16
    return BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=compute)


def require(package: str, what: str, extra: str) -> None:
    """Raise ModelError that says how to install `package` where it is missing; `what` needs it."""
    if find_spec(package) is None:
        raise ModelError(f"{what} needs {package}: pip install 'videox2l[{extra}]'")
