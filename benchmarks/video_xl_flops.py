"""FLOPs and bytes of Video-XL's ingest at 7B, by mode, beside the published two passes.

    python benchmarks/video_xl_flops.py --frames 256 3600

Counted from shapes by `videox2l.flops`, which tests compare with torch's FLOP counter on real passes.
"""

from __future__ import annotations

import argparse

from videox2l.flops import (
    CLIP_L_336,
    MODES,
    QWEN2_7B,
    SummaryPlan,
    even_chunks,
    ingest_cost,
    published_cost,
    question_cost,
)

RELOADED = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, nargs="+", default=[256, 3600])
    for frames in parser.parse_args().frames:
        table(frames)


def table(frames: int) -> None:
    plan = SummaryPlan(even_chunks(frames))
    chunks = len(plan.chunks)
    reloaded = [(2 * i + 1) * chunks // (2 * RELOADED) for i in range(RELOADED)]
    print(f"\n{frames} frames, {chunks} chunks, {sum(plan.chunks):,} visual tokens; L=2, H=32; PFLOP of the decoder\n")
    print("| mode | linear | attention | logits | total | against published | kept, GB (fp16) |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    theirs = published_cost(QWEN2_7B, plan)
    kept = (plan.prefix + sum(sum(counts) for counts in plan.kept.values())) * QWEN2_7B.token_bytes
    rows = [("published, two passes", theirs, kept)]
    for mode in MODES:
        cost = ingest_cost(QWEN2_7B, plan, mode, reloaded)
        rows.append((f"`{mode}`", cost.flops, cost.kept_bytes))
        if mode == "lazy":
            rows.append((f"`lazy` and L of {RELOADED} chunks", cost.flops + cost.reload_flops, cost.kept_bytes))
    for name, flops, size in rows:
        parts = " | ".join(f"{x / 1e15:.2f}" for x in (flops.linear, flops.attention, flops.head, flops.total))
        print(f"| {name} | {parts} | {theirs.total / flops.total:.1f} x less | {size / 1e9:.2f} |")
    question = question_cost(QWEN2_7B, plan, reloaded)
    vision = CLIP_L_336.flops((frames, 12, 12)) / 1e15
    print(f"\nVision (CLIP, projector): {vision:.2f} PFLOP.")
    print(f"A question of 32 tokens with {RELOADED} chunks re-loaded: {question.tokens:,} cached tokens,")
    print(f"{question.reloaded_bytes / 1e6:.0f} MB re-loaded, {question.prefill.total / 1e12:.2f} TFLOP,")
    print(f"{question.decode_bytes / 1e9:.1f} GB read per decoded token.")


if __name__ == "__main__":
    main()
