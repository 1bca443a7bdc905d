"""Question + memory -> scores -> plan: selectors and budgets."""

from videox2l.select.attention import AttentionSelector
from videox2l.select.base import Budget, Constraints, Selector
from videox2l.select.budgets import ByteBudget, EverythingAt, MassBudget, TokenBudget, TopK
from videox2l.select.embedding import EmbeddingSelector, EmbedDotSelector
from videox2l.select.fusion import FusionSelector
from videox2l.select.keys import KeysSelector
from videox2l.select.latency import LatencyBudget, bound
from videox2l.select.parsing import (
    BUDGET_FORMS,
    SELECTOR_FORMS,
    SELECTORS,
    budget_for,
    selector_by_name,
)
from videox2l.select.simple import ManualSelector, OracleSelector, RandomSelector, TextSelector, UniformSelector

__all__ = [
    "BUDGET_FORMS",
    "SELECTORS",
    "SELECTOR_FORMS",
    "AttentionSelector",
    "Budget",
    "ByteBudget",
    "Constraints",
    "EmbedDotSelector",
    "EmbeddingSelector",
    "EverythingAt",
    "FusionSelector",
    "KeysSelector",
    "LatencyBudget",
    "ManualSelector",
    "MassBudget",
    "OracleSelector",
    "RandomSelector",
    "Selector",
    "TextSelector",
    "TokenBudget",
    "TopK",
    "UniformSelector",
    "bound",
    "budget_for",
    "selector_by_name",
]
