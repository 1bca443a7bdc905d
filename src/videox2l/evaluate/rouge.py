"""ROUGE-L, a local measure of generated text."""

from __future__ import annotations

import re


def rouge_l(prediction: str, reference: str) -> float:
    """Return the F-measure (0 to 1) of the longest common subsequence of words (Lin, 2004); case is ignored."""
    said, wanted = (re.findall(r"\w+", text.lower()) for text in (prediction, reference))
    if not said or not wanted:
        return 0.0
    longest = [0] * (len(wanted) + 1)
    for word in said:
        before = 0
        for i, other in enumerate(wanted, 1):
            kept = longest[i]
            longest[i] = before + 1 if word == other else max(longest[i], longest[i - 1])
            before = kept
    common = longest[-1]
    return 2 * common / (len(said) + len(wanted))
