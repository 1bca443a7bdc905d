"""Selectors and budgets as they are written: names, numbers and words to objects."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from videox2l.errors import SettingsError
from videox2l.options import TimeRange
from videox2l.select.attention import AttentionSelector
from videox2l.select.base import Budget, Selector
from videox2l.select.budgets import ByteBudget, EverythingAt, MassBudget, TokenBudget, TopK
from videox2l.select.embedding import EmbeddingSelector, EmbedDotSelector
from videox2l.select.exact import ExactSelector
from videox2l.select.fusion import FusionSelector
from videox2l.select.keys import KeysSelector
from videox2l.select.latency import LatencyBudget
from videox2l.select.simple import ManualSelector, RandomSelector, TextSelector, UniformSelector
from videox2l.units import parse_range

SELECTORS: dict[str, Callable[[], Selector]] = {
    "keys": KeysSelector,
    "exact": ExactSelector,
    "exact:nothing": lambda: ExactSelector(behind="nothing"),
    "attention": AttentionSelector,
    "attention:H": lambda: AttentionSelector(shortlist=0),
    "attention:L": lambda: AttentionSelector(shortlist=1 << 30),
    "attention:keys": lambda: AttentionSelector(scout=KeysSelector()),
    "embedding": EmbeddingSelector,
    "embed-dot": EmbedDotSelector,
    "text": TextSelector,
    "uniform": UniformSelector,
    "random": RandomSelector,
}
SELECTOR_FORMS = "manual:A-B,... or fuse:keys+text (fuse-zscore:, fuse-share:; keys*2 for a weight)"
BUDGET_FORMS = (
    "a number of chunks, all, none, tokens:N, bytes:200M, mass:0.9 or latency:0.5s; "
    "after a comma also max:N (mass, latency), ends, neighbours:N"
)
_UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "KI": 2**10, "MI": 2**20, "GI": 2**30}


def selector_by_name(name: str) -> Selector:
    """Return a new selector by its name or form; raises SettingsError that lists what there is."""
    if name in SELECTORS:
        return SELECTORS[name]()
    kind, colon, rest = name.partition(":")
    if kind == "oracle":
        raise SettingsError(
            "selector 'oracle' needs the true moments: it is for evaluation, as OracleSelector(moments)"
        )
    if kind == "manual" and colon:
        return ManualSelector([parse_range(text) for text in rest.split(",")])
    if kind in ("fuse", "fuse-rank", "fuse-zscore", "fuse-share") and colon:
        parts, weights = zip(*(_weighted(text) for text in rest.split("+")), strict=True)
        return FusionSelector(parts, weights, kind.partition("-")[2] or "rank")
    raise SettingsError(f"selector '{name}' is not known: use {', '.join(SELECTORS)}, {SELECTOR_FORMS}")


def _weighted(text: str) -> tuple[Selector, float]:
    name, star, weight = text.partition("*")
    try:
        number = float(weight) if star else 1.0
    except ValueError:
        raise SettingsError(f"weight '{weight}' of '{name}' is no number: write such as keys*2+text") from None
    return selector_by_name(name), number


def budget_for(
    reload: int | str | Budget,
    pinned: Sequence[TimeRange] = (),
    excluded: Sequence[TimeRange] = (),
    *,
    ends: bool = False,
    neighbours: int = 0,
) -> Budget:
    """Return the budget for a `reload` setting: a number of chunks, a text (see BUDGET_FORMS), or the caller's own.

    The other arguments are those of `Constraints`; they add to what the text says, and have no effect on the caller's
    own budget or on "all". Raises SettingsError that names the value and lists what is possible.
    """
    if isinstance(reload, bool) or not isinstance(reload, (int, str)):
        if hasattr(reload, "plan"):
            return reload  # type: ignore[return-value]
        raise SettingsError(f"reload={reload!r} is not possible: use {BUDGET_FORMS}")
    head, *options = str(reload).replace(" ", "").split(",")
    wishes: dict[str, Any] = {"pinned": pinned, "excluded": excluded, "ends": ends, "neighbours": neighbours}
    most: int | None = None
    for option in options:
        name, _, value = option.partition(":")
        if option == "ends":
            wishes["ends"] = True
        elif name == "neighbours" and value.isdecimal():
            wishes["neighbours"] = int(value)
        elif name == "max" and value.isdecimal():
            most = int(value)
        else:
            raise SettingsError(f"reload='{reload}' is not possible ('{option}'): use {BUDGET_FORMS}")
    kind, _, value = head.partition(":")
    if most is not None and kind not in ("mass", "latency"):
        raise SettingsError(f"reload='{reload}' is not possible: max goes with mass and latency alone")
    limit: dict[str, Any] = {} if most is None else {"most": most}
    if head == "all":
        if options:
            raise SettingsError(f"reload='{reload}' is not possible: 'all' leaves nothing to add")
        return EverythingAt("L")
    if head == "none":
        return TopK(0, **wishes)
    if re.fullmatch(r"-?\d+", head):
        return TopK(int(head), **wishes)
    if kind == "tokens" and value.isdecimal():
        return TokenBudget(int(value), **wishes)
    if kind == "bytes" and (size := re.fullmatch(r"(\d+(?:\.\d+)?)([KMG]?I?)B?", value.upper())) and size[2] in _UNITS:
        return ByteBudget(int(float(size[1]) * _UNITS[size[2]]), **wishes)
    if kind == "mass" and re.fullmatch(r"\d*\.?\d+%?", value):
        share = float(value.rstrip("%")) / (100 if value.endswith("%") else 1)
        return MassBudget(share, **limit, **wishes)
    if kind == "latency" and (time := re.fullmatch(r"(\d*\.?\d+)(ms|s)", value)):
        return LatencyBudget(float(time[1]) / (1000 if time[2] == "ms" else 1), **limit, **wishes)
    raise SettingsError(f"reload='{reload}' is not possible: use {BUDGET_FORMS}")
