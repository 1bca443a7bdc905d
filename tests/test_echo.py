"""The scorer `echo`: its weights are those that the stock model's own attention gives when a chunk is fed twice."""

from __future__ import annotations

import numpy as np
import torch

from tests.conftest import make_qwen25
from videox2l import VideoX2L
from videox2l.compress import EchoScorer
from videox2l.compress.ranked import prefill_chunk
from videox2l.types import VideoCursor


def test_echo_scores_are_attention_of_the_repeated_chunk() -> None:
    x2l = VideoX2L.from_model(*make_qwen25())
    backbone = x2l.backbone
    frames = np.random.default_rng(1).integers(0, 255, (4, 32, 32, 3), np.uint8)
    tokens = backbone.visual_tokens(list(frames), [0.0, 1.0, 2.0, 3.0], VideoCursor(0, 0.0, 0, 0))
    n = len(tokens)
    with torch.no_grad():
        chunk = prefill_chunk(tokens, backbone.new_cache(2 * n), backbone, echo=True)
        scores = EchoScorer().score(chunk)
        # The oracle: eager attention of one pass over the chunk and its echo, the chunk's columns alone.
        shift = tokens.positions.max() + 1 - tokens.positions.min()
        twice = torch.cat((tokens.embeds, tokens.embeds))[None]
        positions = torch.cat((tokens.positions, tokens.positions + shift), 1)[:, None]
        model = backbone.model.model.language_model  # type: ignore[attr-defined]
        model.config._attn_implementation = "eager"
        weights = model(inputs_embeds=twice, position_ids=positions, output_attentions=True, use_cache=False).attentions
    heads = chunk.keys.shape[1]
    for layer, given in enumerate(weights):
        inside = given[0, :, n:, :n]
        shares = inside / inside.sum(-1, keepdim=True)
        best = shares.amax(1).unflatten(0, (heads, -1)).amax(1)
        torch.testing.assert_close(scores[layer], best, atol=1e-4, rtol=1e-4)
    assert scores.std() > 1e-3
    assert not torch.allclose(scores[0], scores[-1], atol=1e-3)  # a check that could fail
