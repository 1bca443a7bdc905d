"""From a reply to the letter of an option, by the rule of each benchmark.

The rules differ, and some are odd ("An apple" is an A for most of them). They are kept as they are, because published
numbers rest on them; `docs/benchmarks.md` has a table of what each makes of the same replies. All return the letter, or
an empty string where the rule finds none of the options' letters.
"""

from __future__ import annotations

import re

VIDEOMME_PREFIXES = ("The best answer is", "The correct answer is", "The answer is", "The answer")
"""The official script lists four more, which its missing commas join into two that no reply contains."""

LONGVIDEOBENCH_PREFIXES = (
    *VIDEOMME_PREFIXES,
    "The best option is",
    "The correct option is",
    "Best answer:",
    "Best option:",
)


def letters(count: int) -> str:
    """Return the letters of so many options."""
    return "ABCDEFGHIJKLMNOPQRSTUVWXYZ"[:count]


def first_letter(reply: str, options: str, prefixes: tuple[str, ...]) -> str:
    """Return the first of the capital letters `options` anywhere in a reply, `prefixes` taken out wherever they stand.

    The rule of Video-MME (`evaluation/eval_your_results.py`) and of LongVideoBench's author (in lmms-eval).
    """
    for prefix in prefixes:
        reply = reply.replace(prefix, "")
    found = re.search(f"[{options}]", reply)
    return found[0] if found else ""


def before_bracket(reply: str, options: str) -> str:
    """Return what stands before the first closing bracket, if that is the letter of an option and nothing else.

    The rule of MLVU (`choice_bench.py`). There the model goes on behind an opening bracket; here it may write its own.
    """
    said = reply.strip().partition(")")[0].removeprefix("(").strip()
    return said if len(said) == 1 and said in options else ""


def earliest_in_alphabet(reply: str, options: str) -> str:
    """Return the first of `options`, in the order of the alphabet, that a reply has before its first full stop.

    The rule of VNBench (`evaluation/eval.py`).
    """
    said = reply.partition(".")[0]
    return next((letter for letter in options if letter in said), "")


def first_character(reply: str, options: str) -> str:
    """Return the first character, after what stands in brackets is taken out of them, if it is the letter of an option.

    The rule of LVBench (`lvbench/utils/answer_util.py`).
    """
    said = reply.strip().partition(")")[0].strip()
    if "(" in said:
        said = said.split("(")[1].strip()
    return said[:1] if said[:1] and said[:1] in options else ""
