"""Question + memory -> scores -> plan: selectors and budgets."""

from collections.abc import Callable, Sequence

from videox2l.errors import SettingsError
from videox2l.select.attention import AttentionSelector
from videox2l.select.base import Budget, Selector
from videox2l.select.budgets import EverythingAt, Range, TokenBudget, TopK
from videox2l.select.simple import ManualSelector, RandomSelector
from videox2l.select.text import TextSelector

SELECTORS: dict[str, Callable[[], Selector]] = {
    "attention": AttentionSelector,
    "text": TextSelector,
    "random": RandomSelector,
}


def selector_by_name(name: str) -> Selector:
    """Return a new selector by its name; raises SettingsError that lists the names."""
    if name not in SELECTORS:
        raise SettingsError(f"selector '{name}' is not known: use {', '.join(SELECTORS)}")
    return SELECTORS[name]()


def budget_for(reload: int | str | Budget, pinned: Sequence[Range] = (), excluded: Sequence[Range] = ()) -> Budget:
    """Return the budget for a `reload` setting.

    A number of chunks, "all", "none", "tokens:N" (N tokens split by score), or a budget of the caller's.
    """
    if isinstance(reload, bool) or not isinstance(reload, (int, str)):
        if hasattr(reload, "plan"):
            return reload  # type: ignore[return-value]
        raise SettingsError(f"reload={reload!r} is not possible: use a number of chunks, 'all' or 'none'")
    if isinstance(reload, str) and reload.isdecimal():
        reload = int(reload)
    if reload == "all":
        return EverythingAt("L")
    if reload == "none":
        return TopK(0, pinned, excluded)
    if isinstance(reload, str) and reload.startswith("tokens:") and reload[7:].isdecimal():
        return TokenBudget(int(reload[7:]), pinned, excluded)
    if isinstance(reload, str):
        raise SettingsError(f"reload='{reload}' is not possible: use a number of chunks, 'all', 'none' or 'tokens:N'")
    return TopK(reload, pinned, excluded)


__all__ = [
    "SELECTORS",
    "AttentionSelector",
    "Budget",
    "EverythingAt",
    "ManualSelector",
    "RandomSelector",
    "Range",
    "Selector",
    "TextSelector",
    "TokenBudget",
    "TopK",
    "budget_for",
    "selector_by_name",
]
