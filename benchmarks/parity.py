"""Check the Video-XL backbone against recorded outputs of the published Video-X2L code.

    python benchmarks/parity.py tests/golden/a tests/golden/b tests/golden/c

Each folder holds config.json, model.safetensors, inputs.safetensors, outputs.safetensors and meta.json. Prefill, both
passes, reload, question and decoding run through the package's own pipeline parts. Prints the largest difference per
output; exits 1 when one is beyond the tolerance. `--control` breaks one rule on purpose: the check must then fail.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from videox2l.backbones.video_xl import VideoXLBackbone
from videox2l.backbones.video_xl_loading import load_video_xl_model, weight_files
from videox2l.compress import ChunkEncoder, History, SummaryTokenCompressor
from videox2l.engine.decode import SamplingParams, generate
from videox2l.engine.rope import unrotate
from videox2l.memory import Chunk, LevelKV, Memory, Plan, build_cache
from videox2l.types import TextTokens, VisualTokens

ATOL, RTOL = 1e-3, 1e-4
CONTROLS = ("ordinary-projections", "ratio-at-ends", "keys-not-rerotated", "position-off-by-one")


class NumberTokenizer:
    """Stands in for a tokenizer: the recorded inputs are ids already."""

    chat_template = None
    all_special_tokens: tuple[str, ...] = ()
    eos_token_id = None

    def get_added_vocab(self) -> dict[str, int]:
        """Return nothing: there are no texts."""
        return {}

    get_vocab = get_added_vocab


def load_backbone(folder: Path, control: str = "") -> VideoXLBackbone:
    config = json.loads((folder / "config.json").read_text())
    model = load_video_xl_model(config, weight_files(lambda name: folder / name if (folder / name).exists() else None))
    if control == "ordinary-projections":
        for layer in model.model.layers:
            attention = layer.self_attn
            for name in model.beacons:
                setattr(attention, f"beacon_{name}_proj", getattr(attention, f"{name}_proj"))
    return VideoXLBackbone(model, NumberTokenizer(), {})


def prefill(backbone: VideoXLBackbone, prefix: Tensor, features: Tensor, meta: dict[str, Any], control: str) -> Memory:
    """Both passes over the recorded visual tokens, chunk by chunk, into a memory."""
    ratios = (float(meta["L"]), float(meta["H"]))
    compressor = SummaryTokenCompressor(end_ratio=None) if control == "ratio-at-ends" else SummaryTokenCompressor()
    encoder = ChunkEncoder(backbone, compressor, ratios, History.parse("own"))
    memory = Memory(
        identity={},
        settings={},
        manifest={},
        shape=backbone.shape,
        ratios=ratios,
        prefix=encoder.prefix(TextTokens(prefix, backbone.embed(prefix))),
        next_position=len(prefix),
        reposition="keep" if control == "keys-not-rerotated" else "compact",
    )
    chunks = features.split(meta["chunk_tokens"])
    start = len(prefix)
    for number, rows in enumerate(chunks):
        frames = len(rows) // meta["tpf"]
        tokens = VisualTokens(rows, backbone.text_positions(start, len(rows)), (frames, 1, meta["tpf"]))
        levels = encoder.add(tokens, last=number == len(chunks) - 1)
        memory.add(Chunk(float(number), number + 1.0, frames, tokens.positions, levels))
        start += len(rows)
    memory.next_position = start
    return memory


def outputs(folder: Path, control: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield every recorded output by its name, computed by this package."""
    meta = json.loads((folder / "meta.json").read_text())
    inputs = load_file(folder / "inputs.safetensors")
    backbone = load_backbone(folder, control)
    prefix = inputs["input_ids"][: meta["prefix"]]
    memory = prefill(backbone, prefix, inputs["image_features"], meta, control)

    def plain(keys: Tensor, positions: Tensor) -> Tensor:
        cos, sin = backbone.rotation(positions)
        return unrotate(keys, cos, sin)

    yield "system.k", plain(memory.prefix[0], backbone.text_positions(0, len(prefix)))
    yield "system.v", memory.prefix[1]
    for number, chunk in enumerate(memory.chunks):
        for name, ratio in zip("LH", memory.ratios, strict=True):
            level = chunk.level(ratio)
            assert level.positions is not None
            yield f"{name}.chunk{number}.k", plain(level.keys, level.positions)
            yield f"{name}.chunk{number}.v", level.values
            yield f"{name}.chunk{number}.is_vst", is_summary(level, chunk.tokens)
    shift = 1 if control == "position-off-by-one" else 0
    question = inputs["question_ids"]
    for number, selected in enumerate(meta["selections"]):
        plan = Plan.at([memory.ratios[0 if i in selected else 1] for i in range(len(memory))])
        mixed = build_cache(memory, plan, backbone)
        first = mixed.next_position + shift
        hidden = backbone.forward(backbone.embed(question), backbone.text_positions(first, len(question)), mixed.cache)
        logits = backbone.logits(hidden)
        yield f"sel{number}.question_logits", logits
        greedy = [logits[-1]]
        ids = [int(logits[-1].argmax())]
        for token in range(meta["new_tokens"] - 1):
            at = backbone.text_positions(first + len(question) + token, 1)
            hidden = backbone.forward(backbone.embed(torch.tensor(ids[-1:])), at, mixed.cache)
            greedy.append(backbone.logits(hidden)[0])
            ids.append(int(greedy[-1].argmax()))
        yield f"sel{number}.greedy_logits", torch.stack(greedy)
        mixed = build_cache(memory, plan, backbone)
        backbone.forward(backbone.embed(question), backbone.text_positions(first, len(question)), mixed.cache)
        loop = generate(
            backbone, mixed.cache, logits[-1], first + len(question), SamplingParams(max_new_tokens=meta["new_tokens"])
        )
        yield f"sel{number}.greedy_ids", torch.tensor(list(loop))


def is_summary(level: LevelKV, tokens: int) -> Tensor:
    """Rebuild which rows of the interleaved chunk were summary tokens, from the visual token each one follows."""
    count = len(level)
    flags = torch.zeros(tokens + count, dtype=torch.uint8)
    flags[level.index[0, 0].long() + 1 + torch.arange(count)] = 1
    return flags


def check(folder: Path, control: str = "") -> dict[str, float]:
    """Return the largest difference per kind of output, in units of the tolerance; infinity for a wrong shape."""
    recorded = load_file(folder / "outputs.safetensors")
    worst: dict[str, float] = defaultdict(float)
    for name, ours in outputs(folder, control):
        theirs = recorded.pop(name)
        kind = name if name.startswith("sel") else name.replace(name.split(".")[1], "*") if "chunk" in name else name
        worst[kind] = max(worst[kind], excess(ours, theirs))
    assert not recorded, f"outputs that were not compared: {sorted(recorded)}"
    return dict(worst)


def excess(ours: Tensor, theirs: Tensor) -> float:
    """Return max |ours - theirs| / (ATOL + RTOL |theirs|); integers must be equal; NaN counts as infinity."""
    if ours.shape != theirs.shape:
        return float("inf")
    if not theirs.is_floating_point():
        return 0.0 if torch.equal(ours.to(theirs.dtype), theirs) else float("inf")
    ratio = ((ours - theirs).abs() / (ATOL + RTOL * theirs.abs())).nan_to_num(nan=float("inf"))
    return float(ratio.max())


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR")
    parser.add_argument("--control", choices=CONTROLS, default="", help="break one rule; the check must fail")
    options = parser.parse_args()
    torch.set_num_threads(1)
    failed = False
    for folder in options.folders:
        print(f"{folder}: largest difference, in units of the tolerance (atol {ATOL:g} + rtol {RTOL:g})")
        for kind, worst in check(folder, options.control).items():
            failed |= worst > 1
            print(f"  {kind:24} {worst:10.2e}  {'FAIL' if worst > 1 else 'ok'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
