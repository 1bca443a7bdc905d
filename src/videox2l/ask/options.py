"""How a question is to be answered: the options of `ask`, checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypedDict

from videox2l.ask.escalation import Escalation, escalation_for
from videox2l.engine.decode import SamplingParams
from videox2l.errors import SettingsError
from videox2l.select import DEFAULT_SELECTOR, Budget, Selector, TimeRange, budget_for, selector_by_name


@dataclass(frozen=True)
class ResolvedOptions:
    """How a question is to be answered; see `VideoX2L.ask`."""

    budget: Budget
    selector: Selector
    sampling: SamplingParams
    pinned: Sequence[TimeRange] = ()
    subtitles: bool = False
    escalation: Escalation | None = None
    reselect_every: int | None = None
    why: Sequence[float] = ()
    on_text: Callable[[str], None] | None = None

    def __post_init__(self) -> None:
        if self.reselect_every is not None and self.reselect_every < 1:
            raise SettingsError(f"reselect_every={self.reselect_every} is not possible: use 1 or more tokens")
        if self.reselect_every is not None and self.escalation is not None:
            raise SettingsError("reselect_every and escalate both change what is re-loaded: use one of them")


class AskKeywords(TypedDict, total=False):
    """The options of a question that `VideoX2L.ask` and `Chat.ask` share; the former describes them."""

    reload: int | str | Budget
    selector: str | Selector
    pinned: Sequence[TimeRange]
    excluded: Sequence[TimeRange]
    subtitles: bool
    escalate: bool | Escalation
    reselect_every: int | None
    why: Sequence[float]
    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    on_text: Callable[[str], None] | None


def resolve_options(
    *,
    reload: int | str | Budget = 3,
    selector: str | Selector = DEFAULT_SELECTOR,
    pinned: Sequence[TimeRange] = (),
    excluded: Sequence[TimeRange] = (),
    subtitles: bool = False,
    escalate: bool | Escalation = False,
    reselect_every: int | None = None,
    why: Sequence[float] = (),
    max_new_tokens: int = 128,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
    on_text: Callable[[str], None] | None = None,
) -> ResolvedOptions:
    """Return what these options of a question ask for; see `VideoX2L.ask`. Raises SettingsError."""
    return ResolvedOptions(
        budget=budget_for(reload, pinned, excluded),
        selector=selector_by_name(selector) if isinstance(selector, str) else selector,
        sampling=SamplingParams(max_new_tokens, temperature, top_p, seed),
        pinned=pinned,
        subtitles=subtitles,
        escalation=escalation_for(escalate),
        reselect_every=reselect_every,
        why=tuple(why),
        on_text=on_text,
    )
