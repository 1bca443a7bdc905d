"""Memory per hour of video for each family, at the shape of its usual model: the table of docs/models.md.

From shapes alone (`videox2l.flops`): nothing is loaded. Frame sizes come from the package's own preprocessing under the
settings that the checkpoints were published with.

    python benchmarks/families.py --write docs/models.md
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from videox2l.backbones.frames import LongPatchFrames, PatchFrames, SharedPatchFrames
from videox2l.flops import DecoderShape, ranked_ingest_cost

HEIGHT, WIDTH, FRAMES, CHUNK = 720, 1280, 3600, 8
RATIOS = (2.0, 32.0)
MAX_PIXELS = 128 * 28 * 28
START, END = "<!-- written by benchmarks/families.py -->", "<!-- end -->"

PLAIN = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
QWEN2 = {**PLAIN, "patch_size": 14, "merge_size": 2, "temporal_patch_size": 2}
QWEN2_VL = {**QWEN2, "min_pixels": 3136, "max_pixels": 12845056}
QWEN3_VL = {**QWEN2, "patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 25165824}}
LLAMA3 = {**QWEN2, "temporal_patch_size": 1}


def patches(frames: PatchFrames) -> Callable[[], tuple[int, int]]:
    """Return a function to the visual tokens of a group of frames, and the frames of a group."""

    def count() -> tuple[int, int]:
        high, wide = frames.size(HEIGHT, WIDTH, FRAMES)
        return high * wide // (frames.patch * frames.merge) ** 2, frames.temporal

    return count


@dataclass(frozen=True)
class Row:
    """A family's usual model: layers, kv heads and head size; tokens of a group of frames; words around it, about."""

    family: str
    model: str
    layers: int
    kv_heads: int
    head_dim: int
    tokens: Callable[[], tuple[int, int]]
    words: int = 0
    note: str = ""

    def cells(self) -> list[str]:
        """Return the cells of the row."""
        visual, group = self.tokens()
        shape = DecoderShape(self.layers, 4096, 32, self.kv_heads, self.head_dim, 11008, 32000)
        sizes = [(visual + self.words) * CHUNK // group] * (FRAMES // CHUNK)
        each = f"{visual}{f' + {self.words}' if self.words else ''}" + (f" / {group} frames" if group > 1 else "")
        gigabytes = [
            ranked_ingest_cost(shape, sizes, ratios, prefix=0).kept_bytes / 1e9
            for ratios in ((1.0,), RATIOS, RATIOS[1:])
        ]
        size = f"{self.layers} x {self.kv_heads} x {self.head_dim}"
        return [
            f"{self.family}{self.note}", self.model, size, each, f"{sum(sizes):,}", *(f"{x:.1f}" for x in gigabytes)
        ]  # fmt: skip


def fixed(side: int) -> Callable[[], tuple[int, int]]:
    """Return a function to the tokens of a frame that is always a square of them."""
    return lambda: (side * side, 1)


def limited(config: dict[str, object]) -> Callable[[], tuple[int, int]]:
    """Return `patches` under `max_pixels`."""
    return patches(PatchFrames.from_config(config, MAX_PIXELS))


ROWS = [
    Row("Qwen2-VL, Qwen2.5-VL", "7B", 28, 4, 128, patches(LongPatchFrames.of_video(QWEN2_VL))),
    Row("Qwen2-VL, Qwen2.5-VL", "7B", 28, 4, 128, limited(QWEN2_VL), note=", `max_pixels`"),
    Row("Qwen3-VL", "8B", 36, 8, 128, patches(SharedPatchFrames.of_video(QWEN3_VL)), 10),
    Row("Qwen3-VL", "8B", 36, 8, 128, limited(QWEN3_VL), 10, note=", `max_pixels`"),
    Row("LLaVA-OneVision", "7B", 28, 4, 128, fixed(14)),
    Row("LLaVA-NeXT-Video", "7B", 32, 32, 128, fixed(12)),
    Row("InternVL3", "8B", 28, 4, 128, fixed(16), 9),
    Row("VideoLLaMA 3", "7B", 28, 4, 128, limited(LLAMA3), 9, note=", `max_pixels`"),
    Row("SmolVLM2", "2.2B", 24, 32, 64, fixed(9), 12),
]
HEAD = [
    "family",
    "model",
    "layers x kv heads x size",
    "tokens a frame",
    "tokens an hour",
    "full KV",
    "L 1/2 + H",
    "H alone",
]


def table() -> str:
    """Return the table in Markdown."""
    lines = [HEAD, ["---"] * 3 + ["---:"] * 5, *(row.cells() for row in ROWS)]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", type=Path, help="put the table between its marks in this file")
    given = parser.parse_args()
    if given.write is None:
        print(table())
        return
    text = given.write.read_text(encoding="utf-8")
    before, _, rest = text.partition(START)
    given.write.write_text(f"{before}{START}\n\n{table()}\n\n{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
