"""What a video costs at the shape of a real model, beside the floor of the device and beside plain transformers.

Weights are random: honest for cost, not for answers. Frames are made up and already decoded. Floors are measured on the
device: FLOPs over the rate of a large product of matrices, bytes over the rate of a large copy.

    python benchmarks/gpu_7b.py                        # Qwen2.5-VL 7B on a GPU, bfloat16: under 4 minutes
    python benchmarks/gpu_7b.py --shape 2b --frames 900
    python benchmarks/gpu_7b.py --shape small --frames 256   # on a CPU, with OMP_NUM_THREADS=1 where others use it
    python benchmarks/gpu_7b.py --shape tiny --frames 64     # anywhere, to try the script
    python benchmarks/gpu_7b.py --write docs/performance.md
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import transformers
from cpu_cost import Operations

from videox2l import ArraySource, Memory, VideoX2L
from videox2l.ask.run import AskOptions
from videox2l.engine.decode import advance
from videox2l.memory import Plan, build_cache
from videox2l.types import UNKNOWN_VIDEO, VideoCursor

START, END = "<!-- written by benchmarks/gpu_7b.py -->", "<!-- end -->"
QUESTION = "what digit appears with the red star ?"
SHAPES = {  # layers, hidden, MLP, heads, kv heads, vocabulary; depth and width of the vision tower, side of a frame
    "7b": (28, 3584, 18944, 28, 4, 152064, 32, 1280, 224),
    "2b": (28, 1536, 8960, 12, 2, 151936, 32, 1280, 224),
    "small": (12, 1024, 4096, 16, 4, 32000, 4, 256, 224),
    "tiny": (4, 128, 256, 4, 2, 512, 2, 64, 56),
}


class Bench:
    """A model of a shape on a device, with clocks."""

    def __init__(self, shape: str, device: str) -> None:
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32
        layers, hidden, mlp, heads, kv_heads, vocabulary, depth, width, self.side = SHAPES[shape]
        tokenizer: Any = VideoX2L.from_pretrained("demo", device="cpu").backbone.tokenizer  # type: ignore[attr-defined]
        ids = {name: tokenizer.convert_tokens_to_ids(f"<|{name}|>") for name in ("video_pad", "vision_start", "im_end")}
        each = hidden // heads
        sections = [each // 8, each // 16 * 3, each // 2 - each // 8 - each // 16 * 3]
        rope = {"rope_type": "default", "type": "default", "mrope_section": sections}
        text = {
            "hidden_size": hidden, "intermediate_size": mlp, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": kv_heads, "vocab_size": vocabulary, "max_position_embeddings": 1 << 20,
            "rope_theta": 1e6, "rope_scaling": rope, "rope_parameters": {**rope, "rope_theta": 1e6},
            "bos_token_id": None, "eos_token_id": ids["im_end"],
        }  # fmt: skip
        vision = {
            "depth": depth, "hidden_size": width, "intermediate_size": width * 8 // 3,
            "num_heads": 16 if width > 64 else 2, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "out_hidden_size": hidden,
            "window_size": 112, "fullatt_block_indexes": [depth - 1], "tokens_per_second": 2,
        }  # fmt: skip
        config = transformers.Qwen2_5_VLConfig(
            text_config=text, vision_config=vision, video_token_id=ids["video_pad"], image_token_id=vocabulary - 1,
            vision_start_token_id=ids["vision_start"], tie_word_embeddings=False,
        )  # fmt: skip
        before = torch.get_default_dtype()
        torch.manual_seed(0)
        torch.set_default_dtype(self.dtype)
        with self.device:
            self.model: Any = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
        torch.set_default_dtype(before)
        pixels = {
            "image_mean": [0.5] * 3,
            "image_std": [0.5] * 3,
            "patch_size": 14,
            "merge_size": 2,
            "max_pixels": self.side**2,
        }
        self.x2l = VideoX2L.from_model(self.model, SimpleNamespace(tokenizer=tokenizer, video_processor=pixels))
        self.backbone = self.x2l.backbone
        self.weights = sum(weight.nbytes for weight in self.model.parameters())
        self.parameters = sum(weight.numel() for weight in self.model.get_decoder().parameters())

    def sync(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, call: Callable[[], object], repeats: int = 1) -> float:
        """Return the median seconds of a call."""
        found = []
        for _ in range(repeats):
            self.sync()
            start = time.perf_counter()
            call()
            self.sync()
            found.append(time.perf_counter() - start)
        return median(found)

    def peak(self) -> float:
        """Return the peak of device memory in bytes since the last call; 0 where it is not known."""
        if self.device.type != "cuda":
            return 0.0
        found = float(torch.cuda.max_memory_allocated())
        torch.cuda.reset_peak_memory_stats()
        return found

    def floors(self) -> tuple[float, float]:
        """Return measured FLOP/s of a product of matrices, and bytes/s of a copy, reading and writing."""
        n = 8192 if self.device.type == "cuda" else 1024
        a, b = (torch.randn(n, n, device=self.device, dtype=self.dtype) for _ in range(2))
        flops = 2 * n**3 / self.seconds(lambda: a @ b, 5)
        big = torch.empty(1 << 28 if self.device.type == "cuda" else 1 << 24, device=self.device, dtype=torch.uint8)
        other = torch.empty_like(big)
        return flops, 2 * big.nbytes / self.seconds(lambda: other.copy_(big), 5)

    def source(self, frames: int) -> ArraySource:
        """Return made-up frames, a few of them again and again."""
        few = np.random.default_rng(0).integers(0, 255, (16, self.side, self.side, 3), np.uint8)
        return ArraySource(few[np.arange(frames) % 16], fps=1.0)

    @contextmanager
    def watched(self, name: str, into: dict[str, float]) -> Iterator[None]:
        """Add the seconds that the backbone's method `name` takes to `into`."""
        own = getattr(type(self.backbone), name)

        def timed(*args: Any, **options: Any) -> Any:
            found = []
            into[name] = into.get(name, 0.0) + self.seconds(lambda: found.append(own(*args, **options)))
            return found[0]

        setattr(type(self.backbone), name, timed)
        try:
            yield
        finally:
            setattr(type(self.backbone), name, own)

    def ingest(self, frames: int) -> tuple[Memory, list[list[str]], float]:
        """Ingest; return the memory, rows of the table, and the tokens of a frame."""
        source, stages, made = self.source(frames), dict[str, float](), list[Memory]()
        self.peak()
        whole = self.seconds(lambda: made.append(self.x2l.ingest(source)))
        peak = self.peak()
        with self.watched("visual_tokens", stages), self.watched("forward", stages):
            self.x2l.ingest(self.source(min(frames, 128)))
        share = min(frames, 128) / frames
        memory = made[0]
        rows = [
            [f"ingest {frames} frames, s", f"{whole:.2f}"],
            [
                "of it vision / decoder, s (from 128 frames)",
                " / ".join(f"{stages[key] / share:.2f}" for key in ("visual_tokens", "forward")),
            ],
        ]
        if peak:
            rows.append(
                ["peak device memory of the ingest, GB (weights)", f"{peak / 1e9:.2f} ({self.weights / 1e9:.2f})"]
            )
        return memory, rows, (memory.full_tokens - memory.text_tokens) / frames

    @torch.no_grad()
    def plain(self, frames: int) -> float:
        """Return the seconds of vision, 64 frames a call, and a prefill of blocks of 2,048 tokens, all KVs kept."""

        def run() -> None:
            tokens, parts = list(self.source(frames)), []
            prefix = self.backbone.prefix()
            cursor = VideoCursor(len(prefix), 0.0, 0, len(prefix), 0, UNKNOWN_VIDEO)
            for start in range(0, frames, 64):
                some = tokens[start : start + 64]
                found = self.backbone.visual_tokens([f.image for f in some], [f.pts for f in some], cursor)
                cursor = cursor.after(found, len(some))
                parts.append(found)
            embeds = torch.cat([part.embeds for part in parts])
            positions = torch.cat([part.positions for part in parts], 1)
            cache = self.backbone.new_cache(len(embeds))
            for start in range(0, len(embeds), 2048):
                self.backbone.forward(embeds[start : start + 2048], positions[:, start : start + 2048], cache)

        return self.seconds(run)

    def questions(self, memory: Memory) -> list[list[str]]:
        """Return rows about the first token of a second question, operations, and reload."""
        chunks, options = len(memory), {"max_new_tokens": 1, "reload": 0}
        firsts = []
        for chunk in range(4):  # each at a length that was not seen before
            span = (memory.chunks[chunk].start, memory.chunks[min(chunk + chunk, chunks - 1)].end)
            firsts.append(self.seconds(lambda span=span: self.x2l.ask(memory, QUESTION, pinned=[span], **options)))
        again = self.seconds(lambda: self.x2l.ask(memory, QUESTION, pinned=[span], **options), 5)
        exact = self.seconds(lambda: self.x2l.ask(memory, QUESTION, reload=3, max_new_tokens=1), 5)
        fine = set(range(0, min(chunks, 12), 4))
        plan = Plan.at([memory.finest if i in fine else memory.coarsest for i in range(chunks)])
        with Operations() as counted:
            build_cache(memory, plan, self.backbone)
        reload = self.seconds(lambda: build_cache(memory, plan, self.backbone), 5)
        size = sum(memory.chunks[i].size(memory.finest) for i in fine) * memory.shape.token_bytes
        resident = memory.resident.nbytes()
        fit = max(0, int((80e9 - self.weights) // resident))
        return [
            ["first token of a second question, length not seen before, ms", f"{1e3 * median(firsts[1:]):.1f}"],
            ["the same, length seen before, ms", f"{1e3 * again:.1f}"],
            ["the same, moments chosen by the default selector, ms", f"{1e3 * exact:.1f}"],
            [f"cache of {chunks} chunks, {len(fine)} at L: operations", f"{counted.count}"],
            ["the same, ms (L, MB)", f"{1e3 * reload:.2f} ({size / 1e6:.1f})"],
            ["H on the device, MB; videos that fit beside the weights in 80 GB", f"{resident / 1e6:.1f}; {fit:,}"],
        ]

    def decode(self, memory: Memory, bandwidth: float) -> list[list[str]]:
        """Return rows about decoding: milliseconds of a token of `batch` answers."""
        rows = []
        read = self.parameters * self.dtype.itemsize
        for batch in (1, 4, 16):
            options = AskOptions(max_new_tokens=64, reload="none")
            begun = [self.x2l.answering(memory, QUESTION, options) for _ in range(batch)]
            generators = [next(one) for one in begun]

            def step(generators: list[Any] = generators) -> None:
                advance(generators)
                for one in generators:
                    one.unread = 5  # any token: random weights would end an answer at once

            step()
            held = sum(one._cache.nbytes() for one in generators)
            took = self.seconds(step, 16)
            floor = 1e3 * (read + held) / bandwidth
            rows.append([f"decode, batch {batch}: ms per step (floor)", f"{1e3 * took:.2f} ({floor:.2f})"])
        return rows


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b")
    parser.add_argument("--frames", type=int, default=3600)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--write", type=Path, help="put the table into this document")
    args = parser.parse_args()
    if args.shape not in ("tiny", "small") and args.device == "cpu":
        parser.error(f"shape {args.shape} takes hours on a CPU: use --shape tiny to try the script")
    bench = Bench(args.shape, args.device)
    flops, bandwidth = bench.floors()
    bench.x2l.ingest(bench.source(32))  # warm
    memory, rows, each = bench.ingest(args.frames)
    floor = 2 * bench.parameters * each * args.frames / flops
    rows.append(["floor of the decoder's products, s", f"{floor:.2f}"])
    rows.append(
        [
            "plain: vision of 64 frames a call, prefill of 2,048 tokens, all KVs kept, s",
            f"{bench.plain(args.frames):.2f}",
        ]
    )
    rows += bench.questions(memory) + bench.decode(memory, bandwidth)
    name = torch.cuda.get_device_name() if bench.device.type == "cuda" else f"CPU, {torch.get_num_threads()} thread(s)"
    head = (
        f"Shape {args.shape}, {str(bench.dtype).removeprefix('torch.')}, {each:.0f} tokens a frame, "
        f"{len(memory)} chunks; {name}; torch {torch.__version__}, transformers {transformers.__version__}, "
        f"Python {platform.python_version()}. "
        f"Measured floors: {flops / 1e12:.2f} TFLOP/s, {bandwidth / 1e9:.0f} GB/s."
    )
    lines = [head, "", "| what | measured |", "| --- | ---: |", *(f"| {' | '.join(row)} |" for row in rows)]
    print("\n".join(lines))
    if args.write is not None:
        text = args.write.read_text()
        before, _, rest = text.partition(START)
        args.write.write_text(f"{before}{START}\n\n" + "\n".join(lines) + f"\n\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
