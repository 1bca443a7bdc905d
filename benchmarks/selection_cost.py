"""What selection costs on a model that is as deep as those in use: 28 layers, random weights, 1,024 frames.

    python benchmarks/selection_cost.py [--layers 28] [--hidden 512] [--frames 1024] [--runs 15]

The demo model has few layers, and a selector that ends at the second or third has run a good part of it. Here the
decoder has the depth of Qwen2.5-VL-7B at a smaller width; vision tower, tokenizer and frames are the demo model's.
Weights are random, so only times mean something: medians on one thread, as shares of the question's own prefill to
its first token, and of reload and prefill.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from time import perf_counter
from types import SimpleNamespace

import torch
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from videox2l import ArraySource, VideoX2L
from videox2l.demo.world import make_video
from videox2l.select import selector_by_name

NAMES = ("keys", "embed-dot", "attention:H", "attention:keys", "attention", "attention:L")
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
    """Return the median milliseconds of some runs after one that warms up."""
    found = []
    for _ in range(runs + 1):
        start = perf_counter()
        work()
        found.append(1000 * (perf_counter() - start))
    return median(found[1:])


def main() -> None:
    """Run the benchmark and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--layers", type=int, default=28)
    parser.add_argument("--hidden", type=int, default=512)
    parser.add_argument("--frames", type=int, default=1024)
    parser.add_argument("--runs", type=int, default=15)
    args = parser.parse_args()
    torch.set_num_threads(1)
    x2l = deep(VideoX2L.from_pretrained("demo", device="cpu", dtype="float32"), args.layers, args.hidden)
    memory = x2l.ingest(ArraySource(make_video(1, args.frames, "dev").render()))
    prompt = x2l.backbone.suffix(QUESTION)
    costs = [x2l.ask(memory, QUESTION, max_new_tokens=1).cost.seconds for _ in range(args.runs)]
    first = 1000 * median(cost["prefill"] for cost in costs)
    whole = first + 1000 * median(cost["reload"] for cost in costs)
    size = f"{args.layers} layers of {args.hidden}, {args.frames} frames in {len(memory)} chunks"
    print(f"{size}: prefill of {len(prompt)} tokens {first:.1f} ms, with reload {whole:.1f} ms\n")
    print("| selector | ms | of prefill | of reload + prefill |\n| --- | --- | --- | --- |")
    for name in NAMES:
        selector = selector_by_name(name)
        ms = timed(lambda selector=selector: selector.score(prompt, memory, x2l.backbone), args.runs)
        print(f"| {name} | {ms:.2f} | {100 * ms / first:.1f} % | {100 * ms / whole:.1f} % |")


if __name__ == "__main__":
    main()
