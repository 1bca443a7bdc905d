"""A budget of seconds: as many chunks as can be re-loaded while the first token still comes in time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from time import perf_counter
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from videox2l.engine.attention import causal
from videox2l.engine.backbone import Backbone
from videox2l.errors import SettingsError
from videox2l.flops import causal_pairs
from videox2l.memory import Memory, Plan, planned_tokens, uniform_plan
from videox2l.select.base import Budget, Constraints, PlanBuilder
from videox2l.types import TextTokens


@dataclass(frozen=True)
class Calibration:
    """What a model was measured to do on its device.

    `row`: seconds per prompt token of a pass over an empty cache, `least`: seconds of the shortest such pass; `flops`
    per second of attention over a long cache; `bytes` per second from host memory to the device; `chunk`: seconds to
    lay out one chunk, however small. `heads`: query heads.
    """

    row: float
    least: float
    flops: float
    bytes: float
    chunk: float
    heads: int

    def seconds(self, memory: Memory, tokens: int, prompt: int) -> float:
        """Return the time to the first token of a `prompt` behind `tokens` of a memory, without selection.

        Reading levels from a disk is not in it.
        """
        shape = memory.shape
        attention = 4 * self.heads * shape.head_dim * shape.layers * causal_pairs(prompt, tokens)
        reload = len(memory) * self.chunk + tokens * shape.token_bytes / self.bytes
        return reload + max(self.least, prompt * self.row) + attention / self.flops


# Measuring takes longer than a question; a model is measured once per process, and forgotten with it.
_KNOWN: WeakKeyDictionary[Backbone, Calibration] = WeakKeyDictionary()


def calibration(backbone: Backbone) -> Calibration:
    """Return the calibration of a model, measured when it is first wanted (about ten passes of a short question)."""
    if backbone not in _KNOWN:
        _KNOWN[backbone] = _measure(backbone)
    return _KNOWN[backbone]


def _measure(backbone: Backbone) -> Calibration:
    shape, device, heads = backbone.shape, backbone.device, [0]

    def see(layer: int, query: Tensor, key: Tensor, scaling: float) -> None:
        del layer, key, scaling
        heads[0] = query.shape[1]

    text = backbone.suffix("What happens?")

    def run(embeds: Tensor) -> None:
        positions = backbone.text_positions(0, len(embeds))
        backbone.logits(backbone.forward(embeds, positions, backbone.new_cache(len(embeds)), see)[-1:])

    least = _fastest(lambda: run(text.embeds), device)
    wide = text.embeds.repeat(-(-128 // len(text)), 1)
    row = _fastest(lambda: run(wide), device, 3) / len(wide)

    column = torch.zeros(shape.layers, shape.heads, 1, shape.head_dim, dtype=shape.dtype)
    cache = backbone.new_cache(64)
    chunk = _fastest(lambda: cache.append(column, column), device)

    query = torch.zeros(1, heads[0], 32, shape.head_dim, dtype=shape.dtype, device=device)
    keys = torch.zeros(1, shape.heads, 2048, shape.head_dim, dtype=shape.dtype, device=device)
    attention = _fastest(lambda: causal(query, keys, keys, 1.0), device)
    flops = 4 * heads[0] * shape.head_dim * causal_pairs(32, 2048 - 32) / attention

    source = torch.zeros(1 << 24, dtype=torch.uint8)
    target = torch.empty_like(source, device=device)
    copying = _fastest(lambda: target.copy_(source), device)
    return Calibration(row, least, flops, source.nbytes / copying, chunk, heads[0])


def _fastest(run: Callable[[], object], device: torch.device, times: int = 5) -> float:
    """Return the least seconds of a few runs, after one that warms up."""
    found = []
    for _ in range(times + 1):
        start = perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(perf_counter() - start)
    return max(min(found[1:]), 1e-9)


@dataclass(frozen=True)
class LatencyBudget(Constraints):
    """Re-loads the best chunks as long as the first token is expected within `seconds`, at most `most` of them.

    The time is estimated from what attention reads (`cost`) and a calibration of the model on its device; selection
    and reading from a disk are not counted. Pinned chunks and the ends are re-loaded in any case. Where H alone takes
    longer, nothing is chosen. `ask` binds a budget to its model and prompt (`bound`).
    """

    seconds: float
    most: int = 64
    needs_scores: bool = True
    calibration: Calibration | None = None
    prompt: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.seconds > 0:
            raise SettingsError(f"a latency of {self.seconds:g} s is not possible: use a number above 0")
        if self.most < 1:
            raise SettingsError(f"max:{self.most} is not possible: use 1 or more chunks")

    def plan(self, scores: Tensor | None, memory: Memory) -> Plan:
        """Return the plan. Raises SettingsError if the budget is not bound to a model."""
        if self.calibration is None:
            raise SettingsError("a latency budget must be bound to a model: pass it to ask(reload=...), or use bound()")
        choice = PlanBuilder(self, memory, scores)

        def extra(i: int) -> int:
            return memory.chunks[i].size(memory.finest) - memory.chunks[i].size(memory.coarsest)

        tokens = planned_tokens(memory, uniform_plan(memory, memory.coarsest))
        tokens += sum(extra(i) for i, reason in enumerate(choice.reasons) if reason)
        for i, _ in zip(choice.candidates(), range(self.most), strict=False):
            tokens += sum(extra(j) for j in choice.group(i))
            if self.calibration.seconds(memory, tokens, self.prompt) > self.seconds:
                break
            choice.take(i)
        return choice.plan()


def bound(budget: Budget, question: TextTokens, backbone: Backbone) -> Budget:
    """Return a budget that knows the model and the prompt, where it needs to; others come back as they are."""
    if not isinstance(budget, LatencyBudget) or budget.calibration is not None:
        return budget
    return replace(budget, calibration=calibration(backbone), prompt=len(question))
