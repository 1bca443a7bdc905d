"""What selection costs at 1,024 frames, against the question's own prefill.

    python benchmarks/selection_cost.py [--layers 28] [--hidden 512] [--frames 1024] [--runs 40]

First the demo model. It has few layers, and a selector that ends at the second or third has run a good part of it; so
the same is measured with a decoder that has the depth of Qwen2.5-VL-7B at a smaller width and random weights (of which
only times mean something) behind the demo model's own front end. CPU milliseconds of one thread, the fastest of the
runs. Prefill: the pass of the prompt behind 3 chunks at L and the others at H, to the logits of the first token.
Reload: laying that cache out. The last column has the FLOPs at the shapes of a 7B model.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import process_time
from types import SimpleNamespace

import torch
from selection import SELECTORS, flops_7b
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videox2l import ArraySource, VideoX2L
from videox2l.demo.world import make_video
from videox2l.memory import build_cache
from videox2l.select import TopK

QUESTION = "what digit appears with the red star ?"


def deep(demo: VideoX2L, layers: int, hidden: int) -> VideoX2L:
    """Return a model with the demo model's front end and a decoder of these sizes."""
    plain = demo.backbone.model.config.to_dict()  # type: ignore[attr-defined]
    known = plain["text_config"]
    known.update(num_hidden_layers=layers, hidden_size=hidden, intermediate_size=hidden * 11 // 4)
    known.update(num_attention_heads=hidden // 32, num_key_value_heads=hidden // 128, layer_types=None)
    known.update(max_window_layers=layers, initializer_range=0.02)
    plain["vision_config"]["out_hidden_size"] = hidden
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(plain)).eval().float()
    parts = SimpleNamespace(tokenizer=demo.backbone.tokenizer, video_processor=demo.backbone.video_config)  # type: ignore[attr-defined]
    return VideoX2L.from_model(model, parts)


def timed(work: Callable[[], object], runs: int) -> float:
    """Return the CPU milliseconds of the fastest of some runs: the one that other processes disturbed least."""
    found = []
    for _ in range(runs):
        start = process_time()
        work()
        found.append(1000 * (process_time() - start))
    return min(found)


def table(x2l: VideoX2L, frames: int, runs: int) -> None:
    """Print the table of one model."""
    backbone = x2l.backbone
    memory = x2l.ingest(ArraySource(make_video(1, frames, "dev").render()))
    prompt = backbone.suffix(QUESTION)
    plan = TopK(3).plan(torch.rand(len(memory)), memory)
    reload = timed(lambda: build_cache(memory, plan, backbone, room=len(prompt)), runs)
    laid = build_cache(memory, plan, backbone, room=len(prompt))
    positions = backbone.text_positions(laid.next_position, len(prompt))

    def first_token() -> None:
        hidden = backbone.forward(prompt.embeds, positions, laid.cache)
        int(backbone.logits(hidden[-1:]).argmax())
        laid.cache.crop(laid.offsets[-1])

    prefill = timed(first_token, runs)
    size = f"{memory.shape.layers} layers of {prompt.embeds.shape[-1]}, {frames} frames in {len(memory)} chunks"
    print(f"\n{size}: prefill of {len(prompt)} tokens {prefill:.2f} ms, reload {reload:.2f} ms\n")
    print("| selector | CPU ms | of prefill | of reload + prefill | of 7B FLOPs |\n| --- | --- | --- | --- | --- |")
    for name, selector in SELECTORS.items():
        ms = timed(lambda selector=selector: TopK(3).plan(selector.score(prompt, memory, backbone), memory), runs)
        share = flops_7b(name, frames)
        cells = [f"{ms:.2f}", f"{100 * ms / prefill:.1f} %", f"{100 * ms / (reload + prefill):.1f} %"]
        print(f"| {name} | " + " | ".join([*cells, "" if share is None else f"{100 * share:.1f} %"]) + " |", flush=True)


def main() -> None:
    """Run the benchmark and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=40)
    args = parser.parse_args()
    torch.set_num_threads(1)
    demo = VideoX2L.from_pretrained("demo", device="cpu", dtype="float32")
    table(demo, args.frames, args.runs)
    table(deep(demo, args.layers, args.hidden), args.frames, args.runs)


if __name__ == "__main__":
    main()
