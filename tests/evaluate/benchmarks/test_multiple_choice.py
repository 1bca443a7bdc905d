"""Which option each official rule finds in the same replies, written down by hand from the official scripts."""

from __future__ import annotations

import pytest

from videox2l.evaluate.benchmarks import longvideobench, videomme
from videox2l.evaluate.benchmarks.files import before_bracket, earliest_in_alphabet, first_character
from videox2l.evaluate.benchmarks.mlvu import rouge_l

REPLIES = [
    # reply, Video-MME, LongVideoBench, MLVU, VNBench, LVBench
    ("C", "C", "C", "C", "C", "C"),
    ("C.", "C", "C", "", "C", "C"),
    ("(B)", "B", "B", "B", "B", "B"),
    ("(B) A blue cross", "B", "B", "B", "A", "B"),
    ("B) blue", "B", "B", "B", "B", "B"),
    (" D \n", "D", "D", "D", "D", "D"),
    ("The answer is C.", "C", "C", "", "C", ""),
    ("The best answer is (D).", "D", "D", "", "D", "D"),
    ("Best option: C", "B", "C", "", "B", "B"),
    ("Answer: B", "A", "A", "", "A", "A"),
    ("B, not A", "B", "B", "", "A", "B"),
    ("A or B", "A", "A", "", "A", "A"),
    ("An apple", "A", "A", "", "A", "A"),
    ("Because it falls", "B", "B", "", "B", "B"),
    ("the red star. C", "C", "C", "", "", ""),
    ("c", "", "", "", "", ""),
    ("the red star", "", "", "", "", ""),
    ("E", "", "E", "", "", ""),
    ("", "", "", "", "", ""),
    ("()", "", "", "", "", ""),
    ("I cannot tell from what is shown in this video, sorry for that", "", "", "", "", ""),
]


@pytest.mark.parametrize(("reply", "mme", "lvb", "mlvu", "vn", "lv"), REPLIES, ids=[repr(row[0]) for row in REPLIES])
def test_the_rules(reply: str, mme: str, lvb: str, mlvu: str, vn: str, lv: str) -> None:
    assert videomme.letter(reply) == mme
    assert longvideobench.letter(reply) == lvb
    assert before_bracket(reply, "ABCD") == mlvu
    assert earliest_in_alphabet(reply, "ABCD") == vn
    assert first_character(reply, "ABCD") == lv


def test_rouge_l_by_hand() -> None:
    assert rouge_l("the red star falls", "A red star falls down.") == pytest.approx(2 * 3 / 9)
    assert rouge_l("falls star red", "red star falls") == pytest.approx(2 * 1 / 6)
    assert rouge_l("Red STAR", "red star") == 1.0
    assert rouge_l("", "red star") == 0.0
