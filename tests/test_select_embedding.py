"""The embedding selector, on tiny dual encoders saved as the real ones are."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from typer.testing import CliRunner

from tests.conftest import byte_tokenizer, make_qwen25
from videox2l import ArraySource, Memory, ModelError, SettingsError, VideoX2L
from videox2l.cli.app import app
from videox2l.memory.features import PICTURES
from videox2l.select import EmbeddingSelector
from videox2l.select.embedding import DualEncoder

QUESTION = "Which one RINGS the bell?"
SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
STRONG = {"initializer_range": 0.25, "initializer_factor": 12.0}


def save_encoder(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random CLIP, SigLIP or SigLIP 2 (patches of any aspect ratio) with tokenizer and image processor."""
    torch.manual_seed(seed)
    known = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<unk>", "<pad>", "<bos>", "<eos>"]  # some of Gemma's
    tokenizer = byte_tokenizer(known, "none")
    text = {**SIZES, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0}
    if kind == "clip":
        text |= {"max_position_embeddings": 77, **STRONG}
        vision = {**SIZES, "image_size": 32, "patch_size": 8, **STRONG}
        config: Any = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        model: Any = transformers.CLIPModel(config)
        # CLIP reads a text's vector at its end token, which its tokenizer appends.
        from tokenizers.processors import TemplateProcessing

        tokenizer._tokenizer.post_processor = TemplateProcessing(
            single="$A <|im_end|>", special_tokens=[("<|im_end|>", tokenizer.eos_token_id)]
        )
        image = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}}
        image |= {"crop_size": {"height": 32, "width": 32}, "do_center_crop": True, "resample": 3}
        image |= {"image_mean": [0.48, 0.46, 0.41], "image_std": [0.27, 0.26, 0.28]}
    else:
        text |= {"max_position_embeddings": 64, "projection_size": 32}
        if kind == "siglip":
            vision = {**SIZES, "image_size": 32, "patch_size": 8}
            config = transformers.SiglipConfig(text_config=text, vision_config=vision)
            model = transformers.SiglipModel(config)
            image = {"image_processor_type": "SiglipImageProcessor", "size": {"height": 32, "width": 32}, "resample": 3}
        else:
            vision = {**SIZES, "num_patches": 16, "patch_size": 8}
            config = transformers.Siglip2Config(text_config=text, vision_config=vision)
            model = transformers.Siglip2Model(config)
            image = {"image_processor_type": "Siglip2ImageProcessor", "patch_size": 8, "max_num_patches": 16}
        image |= {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    for name, weight in model.named_parameters():
        if weight.ndim > 1:
            torch.nn.init.normal_(weight, std=0.3)
        elif "logit_scale" in name:
            torch.nn.init.constant_(weight, 3.0)
    model.eval().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "preprocessor_config.json").write_text(json.dumps({"do_normalize": True, "do_resize": True, **image}))
    return folder


KINDS = ("clip", "siglip", "siglip2")


@pytest.fixture(params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return save_encoder(request.param, tmp_path / request.param)


@torch.no_grad()
def test_vectors_are_those_of_the_stock_model(folder: Path, video: np.ndarray) -> None:
    """The stock forward of images and texts together, with inputs made by the stock processors."""
    from PIL import Image

    encoder = DualEncoder.from_pretrained(str(folder))
    model = transformers.AutoModel.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    padded = folder.name != "clip"
    texts = [QUESTION.lower() if folder.name == "siglip2" else QUESTION]
    inputs = dict(tokenizer(texts, padding="max_length" if padded else False, max_length=64, return_tensors="pt"))
    if padded:
        inputs = {"input_ids": inputs["input_ids"]}
        assert inputs["input_ids"].shape == (1, 64)
    images = processor([Image.fromarray(frame) for frame in video[:3]], return_tensors="pt")
    out = model(**inputs, **images)
    torch.testing.assert_close(encoder.pictures(list(video[:3])), out.image_embeds, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(encoder.words(QUESTION), out.text_embeds[0], atol=1e-5, rtol=1e-4)
    logits = encoder.scale * encoder.pictures(list(video[:3])) @ encoder.words(QUESTION)
    bias = getattr(model, "logit_bias", torch.zeros(1))
    torch.testing.assert_close(logits + bias, out.logits_per_image[:, 0], atol=1e-4, rtol=1e-3)
    if padded:  # without padding the text tower says something else
        short = model.get_text_features(tokenizer(texts, return_tensors="pt")["input_ids"])
        short = short if isinstance(short, torch.Tensor) else short.pooler_output
        assert (short / short.norm() - encoder.words(QUESTION)).abs().max() > 1e-2
    assert torch.isfinite(encoder.words("word " * 200)).all()  # cut off at the tower's length


def test_a_chunk_scores_as_its_best_frame(folder: Path, tmp_path: Path, video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*make_qwen25())
    settings: dict[str, Any] = {"ratios": (2, 8), "chunk_frames": 6, "embedder": str(folder)}
    x2l.ingest(ArraySource(video), store=tmp_path / "m", **settings)
    memory = Memory.load(tmp_path / "m")  # chunks of six and five frames; four of each are embedded
    encoder = DualEncoder.from_pretrained(str(folder))
    picked = [[0, 2, 3, 5], [6, 7, 9, 10]]
    asked = encoder.words(QUESTION)
    best = torch.stack([(encoder.pictures([video[i] for i in frames]) @ asked).max() for frames in picked])
    scores = EmbeddingSelector().score(SimpleNamespace(text=QUESTION), memory, x2l.backbone)  # type: ignore[arg-type]
    torch.testing.assert_close(scores, (encoder.scale * best).softmax(-1), atol=2e-2, rtol=0)  # kept in half precision
    assert memory.chunks[0].features[PICTURES].dtype == torch.float16
    assert memory.chunks[0].features[PICTURES].shape[0] == 4
    answer = x2l.ask(memory, QUESTION, selector="embedding", reload=1, max_new_tokens=1)
    assert answer.reloaded[0].start == memory.chunks[int(scores.argmax())].start
    assert x2l.ask(memory, QUESTION, selector="fuse:keys+embedding", reload=1, max_new_tokens=1).reloaded
    x2l.append(memory, ArraySource(video[:3]))
    assert all(PICTURES in chunk.features for chunk in Memory.load(tmp_path / "m").chunks)


def test_what_cannot_be_an_embedder_is_said(tmp_path: Path, video: np.ndarray) -> None:
    x2l = VideoX2L.from_model(*make_qwen25())
    with pytest.raises(ModelError, match="is neither a folder here nor a hub id"):
        x2l.ingest(ArraySource(video), embedder=str(tmp_path / "none"))
    clip = save_encoder("clip", tmp_path / "clip")
    encoder = DualEncoder.from_pretrained(str(clip))
    with pytest.raises(ModelError, match="no dual encoder"):
        DualEncoder(encoder.model.text_model, encoder.tokenizer, encoder.image_processor, "half")
    memory = x2l.ingest(ArraySource(video), embedder=encoder)
    other = DualEncoder.from_pretrained(str(save_encoder("clip", tmp_path / "other", seed=1)))
    with pytest.raises(SettingsError, match="has other weights"):
        x2l.ask(memory, QUESTION, selector=EmbeddingSelector(other), max_new_tokens=1)
    with pytest.raises(SettingsError, match="has other weights"):
        x2l.append(memory, ArraySource(video), embedder=other)
    with pytest.raises(SettingsError, match="ingest with --embedder"):
        x2l.ask(x2l.ingest(ArraySource(video)), QUESTION, selector="embedding")
    assert x2l.ask(memory, QUESTION, selector=EmbeddingSelector(encoder), max_new_tokens=1).cost.new_tokens


def test_the_command_line_embeds_selects_and_budgets(tmp_path: Path) -> None:
    clip = save_encoder("clip", tmp_path / "clip")
    run = partial(CliRunner().invoke, app, catch_exceptions=False)
    video = Path(__file__).parent / "media" / "nasa_13013.mp4"
    done = run(["ingest", str(video), str(tmp_path / "m"), "--embedder", str(clip), "--max-frames", "40", "--json"])
    assert done.exit_code == 0, done.stderr
    choice = ["--selector", "fuse-share:keys+embedding", "--reload", "mass:0.1,max:1,ends", "--max-new-tokens", "1"]
    done = run(["ask", str(tmp_path / "m"), QUESTION, *choice, "--json"])
    assert done.exit_code == 0, done.stderr
    evidence = json.loads(done.stdout)["answers"][0]["evidence"]
    reasons = [moment["reason"] for moment in evidence]
    assert (reasons[0], reasons[-1]) == ("first chunk", "last chunk")
    assert sum(moment["score"] for moment in evidence) == pytest.approx(2, abs=1e-3)  # two shares of one
    assert sum(map(bool, reasons)) == 3 or sum(moment["score"] for moment in (evidence[0], evidence[-1])) >= 0.2
