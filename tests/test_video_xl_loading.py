"""Video-XL from a folder in the published layout, its vision side, its prompt, and stock Qwen2 as the oracle."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModel, Qwen2Config, Qwen2ForCausalLM

from tests.conftest import CORPUS, make_video_xl
from videox2l import ArraySource, Memory, ModelError, SettingsError, VideoX2L
from videox2l.backbones.checkpoint import Checkpoint, locate
from videox2l.backbones.frames import CropFrames, stack
from videox2l.backbones.video_xl_loading import beacon_projections
from videox2l.errors import ModelWarning
from videox2l.select import TopK

LAYERS, HIDDEN, HEADS, KV, MLP, VOCAB = 2, 64, 4, 2, 96, 320
TOWER_LAYERS, TOWER, PATCH, SIDE = 4, 128, 4, 6


def published_tensors() -> dict[str, torch.Tensor]:
    """Every key of the published checkpoint, at a tiny size; written from the list of its keys, not from our model."""
    torch.manual_seed(0)
    d, kv = HIDDEN, HIDDEN // HEADS * KV
    shapes: dict[str, tuple[int, ...]] = {
        "lm_head.weight": (VOCAB, d),
        "model.embed_tokens.weight": (VOCAB, d),
        "model.norm.weight": (d,),
        "model.beacon_embed_tokens.weight": (1, d),
        "model.mm_projector.0.weight": (d, TOWER),
        "model.mm_projector.0.bias": (d,),
        "model.mm_projector.2.weight": (d, d),
        "model.mm_projector.2.bias": (d,),
    }
    for i in range(LAYERS):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.input_layernorm.weight": (d,), f"{at}.post_attention_layernorm.weight": (d,)}
        shapes |= {f"{at}.mlp.{name}_proj.weight": (MLP, d) for name in ("gate", "up")}
        shapes |= {f"{at}.mlp.down_proj.weight": (d, MLP), f"{at}.self_attn.o_proj.weight": (d, d)}
        for name, rows in (("q", d), ("k", kv), ("v", kv)):
            for kind in ("", "beacon_"):
                shapes[f"{at}.self_attn.{kind}{name}_proj.weight"] = (rows, d)
                shapes[f"{at}.self_attn.{kind}{name}_proj.bias"] = (rows,)
    tower = "model.vision_tower.vision_tower.vision_model"
    shapes |= {
        f"{tower}.embeddings.class_embedding": (TOWER,),
        f"{tower}.embeddings.patch_embedding.weight": (TOWER, 3, PATCH, PATCH),
        f"{tower}.embeddings.position_embedding.weight": (SIDE**2 + 1, TOWER),
    }
    for name in ("pre_layrnorm", "post_layernorm"):
        shapes |= {f"{tower}.{name}.weight": (TOWER,), f"{tower}.{name}.bias": (TOWER,)}
    for i in range(TOWER_LAYERS):
        at = f"{tower}.encoder.layers.{i}"
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= {f"{at}.self_attn.{name}.weight": (TOWER, TOWER), f"{at}.self_attn.{name}.bias": (TOWER,)}
        shapes |= {f"{at}.layer_norm{j}.{part}": (TOWER,) for j in (1, 2) for part in ("weight", "bias")}
        shapes |= {f"{at}.mlp.fc1.weight": (160, TOWER), f"{at}.mlp.fc1.bias": (160,)}
        shapes |= {f"{at}.mlp.fc2.weight": (TOWER, 160), f"{at}.mlp.fc2.bias": (TOWER,)}
    return {name: 0.2 * torch.randn(shape) for name, shape in shapes.items()}


def published_config() -> dict[str, Any]:
    return {
        "architectures": ["LlavaQwenForCausalLM"],
        "model_type": "llava_qwen",
        "hidden_size": HIDDEN,
        "intermediate_size": MLP,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KV,
        "vocab_size": VOCAB,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1e6,
        "rope_scaling": None,
        "max_position_embeddings": 32768,
        "tie_word_embeddings": False,
        "torch_dtype": "float16",
        "transformers_version": "4.40.0.dev0",
        "beacon_window": 1440,
        "beacon_stride": 1440,
        "beacon_pos": "interleave",
        "beacon_attn": "full-coverage",
        "beacon_attend_prev": True,
        "beacon_sink_size": 0,
        "beacon_ratio": [2, 4, 8],
        "beacon_ratio_mix": "step-random",
        "beacon_param": ["q", "k", "v"],
        "beacon_embed_init": "eos",
        "beacon_parallel_window": 1,
        "beacon_accum": True,
        "enable_beacon": True,
        "mm_vision_tower": "/share/some-author/models/clip-vit-large-patch14-336",
        "mm_vision_select_feature": "patch",
        "mm_vision_select_layer": -2,
        "mm_projector_type": "mlp2x_gelu",
        "mm_hidden_size": TOWER,
        "mm_patch_merge_type": "unires",
        "mm_resampler_type": "spatial_pool",
        "mm_spatial_pool_stride": 2,
        "mm_spatial_pool_mode": "average",
        "mm_spatial_pool_out_channels": TOWER,
        "image_aspect_ratio": "anyres",
    }


def write_checkpoint(folder: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Config, shards with an index, and a tokenizer of vocab.json and merges.txt with three added tokens."""
    from tokenizers import ByteLevelBPETokenizer

    folder.mkdir(parents=True, exist_ok=True)
    config, tensors = published_config(), published_tensors()
    change(config, tensors)
    (folder / "config.json").write_text(json.dumps(config))
    names = sorted(tensors)
    shards = {f"model-0000{i + 1}-of-00004.safetensors": names[i::4] for i in range(4)}
    for file, held in shards.items():
        save_file({name: tensors[name].half() for name in held}, folder / file, metadata={"format": "pt"})
    index = {"metadata": {}, "weight_map": {name: file for file, held in shards.items() for name in held}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator([*CORPUS, "You are a helpful assistant. system user"], 300, show_progress=False)
    bpe.save_model(str(folder))
    added = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    size = bpe.get_vocab_size()
    (folder / "added_tokens.json").write_text(json.dumps({name: size + i for i, name in enumerate(added)}))
    special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
    decoder = {str(size + i): {"content": name, **special} for i, name in enumerate(added)}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "added_tokens_decoder": decoder,
                "additional_special_tokens": added[1:],
                "bos_token": None,
                "eos_token": "<|im_end|>",
                "pad_token": "<|endoftext|>",
                "errors": "replace",
                "model_max_length": 32768,
                "tokenizer_class": "Qwen2Tokenizer",
                "unk_token": None,
            }
        )
    )


def nothing(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    pass


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("Video_XL")
    write_checkpoint(root / "VideoXL_weight_8", nothing)
    return root


@pytest.fixture(scope="module")
def x2l(repository: Path) -> VideoX2L:
    return VideoX2L.from_pretrained(str(repository), device="cpu")


def test_the_published_layout_loads_and_answers(x2l: VideoX2L) -> None:
    frames = np.random.default_rng(0).integers(0, 255, (25, 40, 60, 3), np.uint8)
    memory = x2l.ingest(ArraySource(frames), ratios=(2, 9), history="own")
    assert [chunk.tokens for chunk in memory.chunks] == [90, 90, 45]  # ten frames of 3 x 3 tokens
    assert [len(chunk.level(2)) for chunk in memory.chunks] == [45, 45, 22]
    assert [len(chunk.level(9)) for chunk in memory.chunks] == [45, 10, 22]
    assert memory.reposition == "compact"
    assert memory.settings["compressor"] == "summary"
    answer = x2l.ask(memory, "What happens?", reload=1, max_new_tokens=4)
    assert answer.cost.tokens in (len(x2l.backbone.prefix()) + 45 + extra + 22 for extra in (10, 45))


def test_every_weight_is_where_its_name_says(x2l: VideoX2L, repository: Path) -> None:
    model = x2l.backbone.model
    tensors: dict[str, torch.Tensor] = {}
    for file in sorted((repository / "VideoXL_weight_8").glob("*.safetensors")):
        tensors |= load_file(file)
    ours = {name.replace(".vision_model", ""): value for name, value in model.state_dict().items()}
    theirs = {name.replace(".vision_model", ""): value.float() for name, value in tensors.items()}
    unused = {name for name in theirs if ".encoder.layers.3." in name}  # behind the selected layer
    assert set(ours) == set(theirs) - unused
    for name, value in ours.items():
        assert torch.equal(value, theirs[name]), name


def test_the_prompt_is_the_published_one(x2l: VideoX2L) -> None:
    before, after = x2l.backbone.chat.cut("Who rings?")
    assert before == "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
    assert after == "\nWho rings?\n<|im_end|>\n<|im_start|>assistant\n"
    known = x2l.backbone.tokenizer.convert_tokens_to_ids
    assert x2l.backbone.stop_ids >= {known("<|im_end|>"), known("<|endoftext|>")}
    assert x2l.backbone.prefix().ids[0] == known("<|im_start|>")
    with pytest.raises(SettingsError, match="<image>"):
        x2l.backbone.suffix("What is in <image>?")


@pytest.mark.parametrize("selected", [-1, -2, 2])
def test_vision_is_clip_then_the_projector_then_pooling(selected: int, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, lambda config, _: config.update(mm_vision_select_layer=selected))
    model = VideoX2L.from_pretrained(str(tmp_path), device="cpu").backbone.model
    tensors = {name: value.half().float() for name, value in published_tensors().items()}
    config = CLIPVisionConfig(
        hidden_size=TOWER,
        intermediate_size=160,
        num_hidden_layers=TOWER_LAYERS,
        num_attention_heads=TOWER // 64,
        image_size=SIDE * PATCH,
        patch_size=PATCH,
    )
    clip = CLIPVisionModel(config).eval()
    prefix = "model.vision_tower.vision_tower."
    nested = any(name.startswith("vision_model.") for name in clip.state_dict())
    state = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
    state = state if nested else {name.removeprefix("vision_model."): value for name, value in state.items()}
    clip.load_state_dict(state)
    pixels = torch.randn(3, 3, SIDE * PATCH, SIDE * PATCH)
    with torch.no_grad():
        features = clip(pixels, output_hidden_states=True).hidden_states[selected][:, 1:]
        first, second = (
            (tensors[f"model.mm_projector.{i}.weight"], tensors[f"model.mm_projector.{i}.bias"]) for i in (0, 2)
        )
        tokens = F.linear(F.gelu(F.linear(features, *first)), *second)  # all patches, as published
        grid = tokens.view(3, SIDE, SIDE, HIDDEN).permute(0, 3, 1, 2)
        expect = F.avg_pool2d(grid, 2).permute(0, 2, 3, 1)
    torch.testing.assert_close(model.encode_frames(pixels), expect, atol=1e-3, rtol=1e-4)


def clip_processor(**config: Any) -> Any:
    """CLIP's image processor on PIL, under the name that this version of transformers has for it."""
    name = "CLIPImageProcessorPil" if hasattr(transformers, "CLIPImageProcessorPil") else "CLIPImageProcessor"
    return getattr(transformers, name)(**config)


@pytest.mark.parametrize("size", [(40, 70), (70, 40), (33, 33), (24, 24)])
def test_frames_are_cut_as_clip_does(size: tuple[int, int]) -> None:
    config = {
        "size": {"shortest_edge": 24},
        "crop_size": {"height": 24, "width": 24},
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
        "resample": 3,
    }
    coarse = torch.rand(2, 3, 5, 5, generator=torch.Generator().manual_seed(0))
    frames = F.interpolate(coarse, size, mode="bilinear").mul(255).byte().permute(0, 2, 3, 1).numpy()
    ours = CropFrames.from_config(config)(stack(list(frames)))
    theirs = clip_processor(**config)(list(frames), return_tensors="pt")["pixel_values"]
    assert ours.shape == theirs.shape
    assert (ours - theirs).abs().max() < 2.5 / 255 / 0.26  # PIL and torch round a resized byte differently


def broken(what: str) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(config: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        if what == "missing":
            del tensors["model.layers.1.mlp.up_proj.weight"]
        elif what == "unknown":
            tensors["model.image_newline"] = torch.zeros(HIDDEN)
        elif what == "shape":
            tensors["lm_head.weight"] = torch.zeros(VOCAB, HIDDEN + 1)
        elif what == "no-tower":
            for name in [name for name in tensors if "vision_tower" in name]:
                del tensors[name]
        elif what == "no-o":
            config["beacon_param"] = ["q", "k", "v", "o"]
        elif what == "mlp":
            tensors["model.layers.0.mlp.beacon_up_proj.weight"] = torch.zeros(MLP, HIDDEN)
        else:
            config["beacon_attn"] = "segmentation"

    return change


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("missing", "missing: model.layers.1.mlp.up_proj.weight$"),
        ("unknown", "unknown: model.image_newline$"),
        ("shape", r"of another shape: lm_head.weight \(320, 65\) instead of \(320, 64\)$"),
        ("no-tower", r"no weights of its vision tower \(clip-vit-large-patch14-336\)"),
        ("no-o", "beacon_param=.*'o'.* no beacon projections for o: they have them for k, q, v"),
        ("mlp", "beacon projections for up: only q, k, v, o are supported"),
        ("attn", "beacon_attn='segmentation' .* only 'full-coverage' is"),
    ],
)
def test_what_does_not_fit_is_named(what: str, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, broken(what))
    with pytest.raises(ModelError, match=message):
        VideoX2L.from_pretrained(str(tmp_path), device="cpu")


def test_projections_that_the_config_does_not_name_are_used_with_a_warning() -> None:
    shapes = {f"model.layers.0.self_attn.beacon_{name}_proj.weight": (1, 1) for name in "qkvo"}
    with pytest.warns(ModelWarning, match=r"beacon_param=\['k', 'q', 'v'\] .* also have .* o: these are used"):
        assert beacon_projections({"beacon_param": ["q", "k", "v"]}, shapes) == ("q", "k", "v", "o")
    assert beacon_projections({}, shapes) == ("q", "k", "v", "o")


def test_a_shard_that_is_missing_is_named(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, nothing)
    (tmp_path / "model-00003-of-00004.safetensors").unlink()
    with pytest.raises(ModelError, match=r"files that are missing: model-00003-of-00004\.safetensors"):
        VideoX2L.from_pretrained(str(tmp_path), device="cpu")


def test_where_a_model_lies(repository: Path, tmp_path: Path) -> None:
    assert locate(str(repository)) == Checkpoint(str(repository / "VideoXL_weight_8"))
    assert locate(str(tmp_path)) == Checkpoint(str(tmp_path))
    assert locate("sy1998/Video_XL") == Checkpoint("sy1998/Video_XL", "VideoXL_weight_8")
    assert locate("owner/name/some/folder", "v1") == Checkpoint("owner/name", "some/folder", "v1")
    assert locate("owner/name") == Checkpoint("owner/name")
    with pytest.raises(ModelError, match="'/no/such/folder' is no folder"):
        locate("/no/such/folder")
    with pytest.raises(ModelError, match="device_map is not supported"):
        VideoX2L.from_pretrained(str(repository), device_map="auto")
    with pytest.raises(SettingsError, match="max_pixels has no effect"):
        VideoX2L.from_pretrained(str(repository), max_pixels=1000, device="cpu")


@torch.no_grad()
def test_without_summary_tokens_it_is_stock_qwen2() -> None:
    """Promise 1 for this family: ratio 1 by ranking, all re-loaded, against one pass of Qwen2 over the same vectors."""
    model, processor = make_video_xl()
    config = Qwen2Config(
        **{k: v for k, v in model.config.to_dict().items() if k not in ("model_type", "architectures")}
    )
    stock = Qwen2ForCausalLM(config).eval()
    stock.load_state_dict(
        {k: v for k, v in model.state_dict().items() if not any(x in k for x in ("beacon", "vision", "projector"))}
    )
    stock.set_attn_implementation("eager")
    x2l = VideoX2L.from_model(model, processor)
    backbone = x2l.backbone
    frames = np.random.default_rng(0).integers(0, 255, (7, 20, 30, 3), np.uint8)
    memory = x2l.ingest(ArraySource(frames), ratios=(1,), compressor="keydiff", chunk_frames=3)
    cursor = SimpleNamespace(start=0, tokens=0)
    visual = backbone.visual_tokens(list(frames), list(range(7)), cursor)
    sequence = torch.cat((backbone.prefix().embeds, visual.embeds, backbone.suffix("Who rings?").embeds))
    expect = []
    for _ in range(8):
        logits = stock(inputs_embeds=sequence[None], use_cache=False).logits[0, -1]
        expect.append(int(logits.argmax()))
        sequence = torch.cat((sequence, backbone.embed(torch.tensor(expect[-1:]))))
    backbone.tokenizer.eos_token, model.generation_config.eos_token_id = None, None
    type(backbone).stop_ids, kept = frozenset(), type(backbone).stop_ids
    try:
        assert list(x2l.ask(memory, "Who rings?", reload="all", max_new_tokens=8).ids) == expect
    finally:
        type(backbone).stop_ids = kept


@pytest.mark.parametrize("history", ["own", "fused"])
@pytest.mark.slow
def test_a_memory_of_summary_tokens_is_saved_and_asked_again(x2l: VideoX2L, history: str, tmp_path: Path) -> None:
    """The ends' levels are one set of KVs under two ratios."""
    frames = np.random.default_rng(1).integers(0, 255, (35, 24, 24, 3), np.uint8)
    memory = x2l.ingest(ArraySource(frames), ratios=(2, 9), history=history)
    memory.save(tmp_path / "xl.x2l")
    again = Memory.load(tmp_path / "xl.x2l")
    again.check_model(x2l.identity)
    for reload in (2, "all", "none"):
        one, two = (x2l.ask(each, "Who rings?", reload=reload, max_new_tokens=6) for each in (memory, again))
        assert one.ids == two.ids
        assert one.evidence == two.evidence


@pytest.mark.parametrize("tier", ["stored", "lazy"])
def test_ends_that_hold_as_much_at_h_take_no_place(x2l: VideoX2L, tier: str) -> None:
    frames = np.random.default_rng(1).integers(0, 255, (45, 24, 24, 3), np.uint8)
    memory = x2l.ingest(ArraySource(frames), ratios=(2, 9), l_tier=tier)
    scores = torch.tensor([0.4, 0.1, 0.3, 0.2, 0.35])
    assert TopK(2).plan(scores, memory).ratios == (9, 9, 2, 2, 9)
    assert TopK(1, pinned=[(0, 1)]).plan(scores, memory).ratios == (2, 9, 2, 9, 9)
    assert TopK(9).plan(scores, memory).ratios == (9, 2, 2, 2, 9)
