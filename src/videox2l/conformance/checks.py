"""The checks: each looks at one promise of an adapter and returns a finding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from videox2l.conformance.case import QUESTION, TestCase, stock_greedy
from videox2l.engine.rope import unrotate
from videox2l.errors import X2LError
from videox2l.types import Turn

TURNS = (Turn("Who is there?", "No one."), Turn("Where is it?", "Outside."))


@dataclass(frozen=True)
class CheckResult:
    """The result of one check: its name, whether it passed, and the figures or the first difference."""

    name: str
    ok: bool
    detail: str


def exact(subject: TestCase) -> CheckResult:
    """Chunked prefill with everything kept and re-loaded equals the stock model's one pass."""
    stock = subject.stock_run[0][0]
    ours = subject.logits(subject.memory()).float().cpu()
    gap = float((ours - stock).abs().max())
    chunks = len(subject.memory())
    return CheckResult(
        "exact",
        gap < subject.tolerance,
        f"largest difference of logits {gap:.1e} of {subject.scale:.3g} over {chunks} chunks (limit "
        f"{subject.tolerance:.0e})",
    )


def control(subject: TestCase) -> CheckResult:
    """With the text at wrong positions the logits must differ: otherwise the other checks prove nothing."""
    exactly = subject.backbone.shape.dtype in (torch.float32, torch.float64)
    shift = 1 if exactly else 1000
    stock = subject.stock_run[0][0]
    gap = float((subject.logits(subject.memory(), shift).float().cpu() - stock).abs().max())
    return CheckResult(
        "wrong-position control",
        gap > subject.tolerance,
        f"text {shift} position{'s' * (shift > 1)} off: largest difference {gap:.1e} (must exceed "
        f"{subject.tolerance:.0e})",
    )


def greedy(subject: TestCase) -> CheckResult:
    """Greedy decoding on the re-loaded cache gives the stock model's tokens."""
    logits, wanted = subject.stock_run
    answer = subject.ask(subject.memory(), QUESTION, reload="all", max_new_tokens=subject.new)
    stop = next((i for i, token in enumerate(wanted) if token in subject.backbone.stop_ids), len(wanted))
    found, wanted = list(answer.ids), wanted[:stop]
    if found == wanted:
        return CheckResult("greedy", True, f"{len(wanted)} tokens equal")
    at = next((i for i, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b), min(len(found), len(wanted)))
    best = logits[at].topk(2).values if at < len(logits) else torch.zeros(2)
    tie = float(best[0] - best[1]) < subject.tolerance
    return CheckResult(
        "greedy", tie and at > 0, f"token {at} is {found[at : at + 1]}, the stock model's {wanted[at : at + 1]}"
        + (" (a tie within rounding)" if tie else "")
    )  # fmt: skip


def multi_turn(subject: TestCase) -> CheckResult:
    """A question behind two earlier turns equals the stock model given the whole dialogue."""
    inputs = subject.stock.stock_inputs(list(subject.clip), subject.pts, QUESTION, TURNS, subject.facts)
    stock = stock_greedy(subject.stock, inputs, 1)[0][0]
    gap = float((subject.logits(subject.memory(), history=TURNS).float().cpu() - stock).abs().max())
    limit = subject.tolerance
    return CheckResult("multi-turn", gap < limit, f"largest difference {gap:.1e} behind two turns (limit {limit:.0e})")


@torch.no_grad()
def boundaries(subject: TestCase) -> CheckResult:
    """What reaches the decoder chunk by chunk equals what reaches it when the video is one piece."""
    backbone = subject.backbone
    name, steps = "chunk boundaries", sorted({backbone.group_frames, subject.short, 2 * subject.short})
    whole = subject.at_the_door["inputs_embeds"][0]
    ends = backbone.prefix(subject.facts).embeds, backbone.suffix(QUESTION).embeds
    for step in steps:
        tokens = subject.chunks(step)
        parts = torch.cat((ends[0], *(part.embeds[:, : whole.shape[1]] for part in tokens), ends[1]))
        if parts.shape != whole.shape:
            detail = f"{len(parts)} tokens in chunks of {step} frames, {len(whole)} in the stock model's prompt"
            return CheckResult(name, False, detail)
        gaps = (parts - whole).abs().amax(-1).float()
        limit = float(whole.abs().max()) * (1e-4 if whole.dtype == torch.float32 else 0.05)
        if float(gaps.max()) > limit:
            first = int((gaps > limit).nonzero()[0])
            detail = f"token {first} of {len(whole)} differs by {float(gaps[first]):.1e} in chunks of {step} frames"
            return CheckResult(name, False, detail)
    return CheckResult(name, True, f"{len(whole)} embeddings equal in chunks of {', '.join(map(str, steps))} frames")


@torch.no_grad()
def positions(subject: TestCase) -> CheckResult:
    """Position ids, chunk by chunk, equal those of the stock model's prompt."""
    backbone, name = subject.backbone, "positions"
    stock = subject.at_the_door
    wanted = stock.get("position_ids")
    parts = [part.positions for part in subject.chunks(subject.short)]
    start = len(backbone.prefix(subject.facts))
    free = max(start, *(int(part.max()) + 1 for part in parts))
    suffix = backbone.text_positions(free, len(backbone.suffix(QUESTION)))
    ours = torch.cat((backbone.text_positions(0, start), *(part.cpu() for part in parts), suffix), 1)
    if wanted is None:  # the decoder counts by ones
        wanted = torch.arange(stock["inputs_embeds"].shape[1]).expand(backbone.axes, -1)
    wanted = wanted.reshape(-1, wanted.shape[-1])[-backbone.axes :].cpu()
    if ours.shape != wanted.shape:
        return CheckResult(name, False, f"{ours.shape[1]} positions, the stock model has {wanted.shape[1]}")
    wrong = (ours != wanted).any(0).nonzero()
    if len(wrong):
        at = int(wrong[0])
        return CheckResult(name, False, f"token {at}: {ours[:, at].tolist()}, stock {wanted[:, at].tolist()}")
    return CheckResult(name, True, f"{ours.shape[1]} tokens equal, text goes on at {free}")


@torch.no_grad()
def rotation(subject: TestCase) -> CheckResult:
    """Turning a key back by `rotation` gives the same key, whatever its position was."""
    backbone = subject.backbone
    tokens = backbone.suffix(QUESTION)
    n, found = len(tokens), []
    for first in (0, 7):
        at = torch.stack([torch.arange(n) * (axis + 1) + first for axis in range(backbone.axes)])
        cache = backbone.new_cache()
        backbone.forward(tokens.embeds, at, cache)
        keys = cache.layers[0].keys[0]  # of the first layer: they depend on nothing but token and position
        found.append((keys.float(), unrotate(keys, *(part.to(keys.device) for part in backbone.rotation(at)))))
    moved, gap = (float((found[0][i] - found[1][i]).abs().max()) for i in (0, 1))
    size = float(found[0][1].abs().max())
    limit = size * (1e-3 if backbone.shape.dtype == torch.float32 else 0.05)
    return CheckResult(
        "rotation",
        gap < limit < moved,
        f"turned back, keys differ by {gap:.1e} of {size:.3g} (turned, by {moved:.1e})",
    )


def combination(compressor: str, selector: str) -> Callable[[TestCase], CheckResult]:
    """Return the check that a compressor and a selector work together: an answer with its chunks re-loaded."""

    def works(subject: TestCase) -> CheckResult:
        name = f"{compressor} x {selector}"
        try:
            memory = subject.memory((2, 8), compressor=compressor, history="H")
            answer = subject.ask(memory, QUESTION, selector=selector, reload=1, max_new_tokens=2)
        except X2LError as error:  # such as summary tokens where a model has none: said so, not done wrong
            return CheckResult(name, True, f"not possible: {error}")
        fine = [moment for moment in answer.evidence if moment.level == "L"]
        ok = len(fine) == 1 and all(np.isfinite(moment.score or 0.0) for moment in answer.evidence)
        return CheckResult(name, ok, f"{answer.cost.tokens} of {answer.cost.full_tokens} tokens read")

    return works


EXACTNESS: dict[str, Callable[[TestCase], CheckResult]] = {
    "positions": positions,
    "chunk boundaries": boundaries,
    "rotation": rotation,
    "exact": exact,
    "wrong-position control": control,
    "greedy": greedy,
    "multi-turn": multi_turn,
}
"""The checks by name, the cheap ones first."""
