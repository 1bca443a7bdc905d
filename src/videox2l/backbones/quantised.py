"""Weights in 4 or 8 bits, by the quantization configs of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import torch

from videox2l.errors import ModelError, SettingsError

CHOICES = ("4bit", "8bit")
PACKAGES = {  # what transformers needs for a checkpoint that is quantized already, by its quant_method; any one of them
    "awq": ("gptqmodel", "awq"),
    "gptq": ("gptqmodel", "auto_gptq"),
    "bitsandbytes": ("bitsandbytes",),
    "bitsandbytes_4bit": ("bitsandbytes",),
    "bitsandbytes_8bit": ("bitsandbytes",),
    "compressed-tensors": ("compressed_tensors",),
    "torchao": ("torchao",),
    "quanto": ("optimum.quanto",),
    "hqq": ("hqq",),
    "aqlm": ("aqlm",),
    "eetq": ("eetq",),
    "fp8": ("accelerate",),
    "fbgemm_fp8": ("fbgemm_gpu",),
    "higgs": ("flute",),
    "vptq": ("vptq",),
    "spqr": ("spqr_quant",),
    "auto-round": ("auto_round",),
    "quark": ("quark",),
}


def quantization_of(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the quantization settings that a checkpoint's config.json holds, {} for none."""
    for part in (config, config.get("text_config") or {}, config.get("llm_config") or {}):
        found = part.get("quantization_config") or part.get("compression_config")
        if found:
            return dict(found)
    return {}


def check_packages(config: Mapping[str, Any]) -> bool:
    """Return whether a checkpoint is quantized already; raises ModelError where no package for it is installed."""
    found = quantization_of(config)
    if not found:
        return False
    method = str(found.get("quant_method") or ("bitsandbytes" if "load_in_4bit" in found else "unknown"))
    wanted = PACKAGES.get(method, ())
    if wanted and not any(_installed(package) for package in wanted):
        names = wanted[0].replace("_", "-").replace(".", "-")
        raise ModelError(f"the checkpoint is quantized ({method}), which needs a package: pip install {names}")
    return True


def _installed(package: str) -> bool:
    try:
        return find_spec(package) is not None
    except ModuleNotFoundError:  # the parent of a dotted name
        return False


def check_not_quantized(checkpoint: Any, wish: Any) -> None:
    """Raise SettingsError where a checkpoint that is quantized already is to be quantized again."""
    method = quantization_of(checkpoint.config).get("quant_method")
    if quantization_of(checkpoint.config):
        raise SettingsError(
            f"quantize={wish!r} is not possible: '{checkpoint.where}' is quantized already ({method or 'unknown'}); "
            "leave it out, or take the checkpoint that this one was made from"
        )


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
