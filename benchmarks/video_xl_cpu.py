"""CPU seconds of Video-XL's prefill, reload and decoding at a middle size, on one thread.

    python benchmarks/video_xl_cpu.py --chunks 20 40

Random weights and visual tokens; 8 layers, hidden 512, 8/4 heads of 64, MLP 1408, vocabulary 4000, 64 tokens per frame,
10 frames per chunk, L=2, H=32, float32, no vision. The figures of the published code for this configuration (process
time, one thread, 57-69 GFLOP per CPU second) stand beside ours. Times are CPU seconds of this process.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch
from parity import NumberTokenizer

from videox2l.backbones.video_xl import VideoXLBackbone
from videox2l.backbones.video_xl_model import VideoXLConfig, VideoXLForCausalLM
from videox2l.compress import ChunkEncoder, History, SummaryTokenCompressor
from videox2l.engine.decode import SamplingParams, generate
from videox2l.memory import Chunk, Memory, Plan, build_cache, planned_tokens
from videox2l.types import TextTokens, VisualTokens

TOKENS, FRAMES, PREFIX, QUESTION, NEW = 64, 10, 14, 32, 65
RATIOS = (2.0, 32.0)
PUBLISHED_PREFILL = {20: 69.5, 40: 184.1}
PUBLISHED_DECODE = {20: {0: 39.4, 3: 59.5, 20: 184.0}, 40: {0: 48.8, 3: 69.0, 40: 291.5}}
PUBLISHED_QUESTION = {20: {0: 91, 3: 105, 20: 296}, 40: {0: 103, 3: 126, 40: 451}}
PUBLISHED_RELOAD = {20: {0: 21, 3: 33, 20: 133}, 40: {0: 57, 3: 73, 40: 554}}


def gemm_rate() -> float:
    """GFLOP per CPU second of a float32 matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    a @ b
    start = time.process_time()
    for _ in range(20):
        a @ b
    return 20 * 2 * 1024**3 / (time.process_time() - start) / 1e9


def make_backbone() -> VideoXLBackbone:
    torch.manual_seed(0)
    config = VideoXLConfig(
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=8,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=4000,
        rope_theta=1e6,
        tie_word_embeddings=False,
    )
    return VideoXLBackbone(VideoXLForCausalLM(config).float(), NumberTokenizer(), {})


@torch.no_grad()
def prefill(backbone: VideoXLBackbone, history: str, ratios: tuple[float, ...], chunks: int) -> tuple[Memory, float]:
    """A memory of random visual tokens, and the CPU seconds that it took."""
    torch.manual_seed(1)
    size = TOKENS * FRAMES
    embeds = torch.randn(chunks, size, 512)
    ids = torch.arange(PREFIX)
    start = time.process_time()
    encoder = ChunkEncoder(backbone, SummaryTokenCompressor(), ratios, History.parse(history))
    prefix = encoder.prefix(TextTokens(ids, backbone.embed(ids)))
    memory = Memory({}, {}, {}, backbone.shape, ratios, prefix, PREFIX, "compact")
    for i in range(chunks):
        at = backbone.text_positions(PREFIX + i * size, size)
        levels = encoder.add(VisualTokens(embeds[i], at, (FRAMES, 8, 8)), last=i == chunks - 1)
        memory.add(Chunk(float(i), i + 1.0, FRAMES, at, levels))
    return memory, time.process_time() - start


def clocked(work: Callable[[], object]) -> float:
    """CPU milliseconds of a call, the median of five."""
    times = []
    for _ in range(5):
        start = time.process_time()
        work()
        times.append((time.process_time() - start) * 1e3)
    return statistics.median(times)


@torch.no_grad()
def ask(backbone: VideoXLBackbone, memory: Memory, selected: int) -> tuple[int, float, float, float]:
    """Tokens in the cache, and CPU ms of reload, question and one decoded token (median of 64)."""
    step = len(memory) // max(selected, 1)
    picked = {i * step + step // 2 for i in range(selected)} if selected < len(memory) else set(range(len(memory)))
    plan = Plan.at([RATIOS[0] if i in picked else RATIOS[1] for i in range(len(memory))])
    room = QUESTION + NEW
    reload = clocked(lambda: build_cache(memory, plan, backbone, room))
    mixed = build_cache(memory, plan, backbone, room)
    embeds = backbone.embed(torch.arange(QUESTION))
    positions = backbone.text_positions(mixed.next_position, QUESTION)

    def question() -> torch.Tensor:
        mixed.cache.crop(mixed.offsets[-1])
        return backbone.logits(backbone.forward(embeds, positions, mixed.cache)[-1:])[0]

    asked = clocked(question)
    tokens = generate(
        backbone, mixed.cache, question(), mixed.next_position + QUESTION, SamplingParams(max_new_tokens=NEW)
    )
    times = [time.process_time() for _ in tokens]
    each = statistics.median((b - a) * 1e3 for a, b in pairwise(times))
    return planned_tokens(memory, plan), reload, asked, each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--chunks", type=int, nargs="+", default=[20, 40])
    options = parser.parse_args()
    torch.set_num_threads(1)
    backbone = make_backbone()
    print(f"torch {torch.__version__}, one thread, GEMM {gemm_rate():.0f} GFLOP per CPU second")
    for chunks in options.chunks:
        published = PUBLISHED_PREFILL.get(chunks)
        print(f"\nprefill of {chunks} chunks, CPU s (published code, both passes: {published})")
        for name, history, ratios in (
            ("own: both levels", "own", RATIOS),
            ("H: both levels", "H", RATIOS),
            ("fused: both levels", "fused", RATIOS),
            ("H level alone (lazy)", "H", RATIOS[1:]),
        ):
            made, seconds = prefill(backbone, history, ratios, chunks)
            if name.startswith("own"):
                memory = made
            times = f"{published / seconds:5.2f} x less" if published else ""
            print(f"  {name:22} {seconds:8.1f}  {times}  GEMM {gemm_rate():.0f}", flush=True)
        print("questions, CPU ms (published code in brackets; the last three rows are after 10 other questions)")
        print("  selected  cache tokens  reload            32-token question  per decoded token")
        for selected in (0, 3, chunks):
            row(backbone, memory, selected, chunks)
        for _ in range(10):
            ask(backbone, memory, 3)
        for selected in (0, 3, chunks):
            row(backbone, memory, selected, chunks)


def row(backbone: VideoXLBackbone, memory: Memory, selected: int, chunks: int) -> None:
    tokens, *ours = ask(backbone, memory, selected)
    tables = (PUBLISHED_RELOAD, PUBLISHED_QUESTION, PUBLISHED_DECODE)
    theirs = [table.get(chunks, {}).get(selected) for table in tables]
    cells = [f"{a:8.1f} ({'-' if b is None else b})" for a, b in zip(ours, theirs, strict=True)]
    print(f"  {selected:8}  {tokens:12}  " + "  ".join(f"{cell:16}" for cell in cells), flush=True)


if __name__ == "__main__":
    main()
