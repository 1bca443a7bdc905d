"""What a model's own multimodal front end hands to its decoder, without running the decoder."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


class _StopError(Exception):
    """Raised at the decoder's door."""


def decoder_of(model: Any) -> nn.Module:
    """Return the text decoder of a model: what has the layers. SmolVLM of transformers 4 names another module."""
    found: nn.Module = model.get_decoder()
    return found if hasattr(found, "layers") else found.text_model  # type: ignore[return-value]


@torch.no_grad()
def decoder_inputs(model: Any, decoder: nn.Module, **inputs: Any) -> dict[str, Any]:
    """Run `model.model` up to its text decoder and return the keyword arguments that the decoder was called with.

    Return types of `get_video_features` differ between versions of transformers; what reaches the decoder does
    not. `inputs_embeds` (1, n, hidden) holds the visual tokens at the placeholders of `input_ids`.
    """
    seen: dict[str, Any] = {}

    def grab(_: nn.Module, __: tuple[Tensor, ...], kwargs: dict[str, Any]) -> None:
        seen.update(kwargs)
        raise _StopError

    handle = decoder.register_forward_pre_hook(grab, with_kwargs=True)
    try:
        model.model(**inputs)
    except _StopError:
        pass
    finally:
        handle.remove()
    return seen
