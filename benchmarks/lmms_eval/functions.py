"""What the task `videox2l_demo` shows, asks and scores."""

from __future__ import annotations

from typing import Any


def visuals(doc: dict[str, Any]) -> list[str]:
    """Return the path of the video."""
    return [doc["video"]]


def text(doc: dict[str, Any]) -> str:
    """Return the question."""
    return str(doc["question"])


def results(doc: dict[str, Any], answers: list[str]) -> dict[str, float]:
    """Score one answer: it has to be the true one, word for word."""
    return {"accuracy": float(answers[0].strip() == doc["answer"])}
