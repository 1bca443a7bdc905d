"""Question + memory -> scores -> plan: selectors and budgets."""

from videox2l.select.attention import AttentionSelector
from videox2l.select.base import Budget, Selector
from videox2l.select.budgets import ByteBudget, EverythingAt, MassBudget, TopK
from videox2l.select.choice import Range, Wishes
from videox2l.select.embed_dot import EmbedDotSelector
from videox2l.select.embedding import EmbeddingSelector
from videox2l.select.fusion import FusionSelector
from videox2l.select.keys import KeysSelector
from videox2l.select.latency import LatencyBudget, bound
from videox2l.select.parsing import (
    BUDGET_FORMS,
    DEFAULT_SELECTOR,
    SELECTOR_FORMS,
    SELECTORS,
    budget_for,
    selector_by_name,
)
from videox2l.select.simple import ManualSelector, OracleSelector, RandomSelector, UniformSelector
from videox2l.select.text import TextSelector
from videox2l.select.token_budget import TokenBudget

__all__ = [
    "BUDGET_FORMS",
    "DEFAULT_SELECTOR",
    "SELECTORS",
    "SELECTOR_FORMS",
    "AttentionSelector",
    "Budget",
    "ByteBudget",
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
    "Range",
    "Selector",
    "TextSelector",
    "TokenBudget",
    "TopK",
    "UniformSelector",
    "Wishes",
    "bound",
    "budget_for",
    "selector_by_name",
]
