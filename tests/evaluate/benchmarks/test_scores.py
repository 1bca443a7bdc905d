"""Each benchmark's fixture scores exactly what a hand computation of the official rule says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.evaluate.benchmarks.layouts import VNBENCH, Scripted, rows_of
from videox2l.evaluate.base import BenchmarkOptions
from videox2l.evaluate.benchmarks import PUBLIC, LongVideoBench
from videox2l.evaluate.benchmarks.mlvu import for_judge

Go = Callable[..., tuple[dict[str, Any], Scripted]]

VIDEOMME = {
    "001-1": "C",  # right
    "001-2": "(B)",  # wrong, A is right
    "001-3": "The answer is D.",  # right
    "002-1": "",  # not answered
    "002-2": "An apple",  # right, by the letter of the rule
    "002-3": "Best option: C",  # wrong: the rule reads the B of Best
    "003-1": "A or B",  # right: the first counts
    "003-2": "b",  # not answered
    "003-3": "the red star",  # not answered
}


def test_videomme(scripted: Go) -> None:
    """4 of 9 right; 4 of the 6 that have a letter, by duration 2 of 3, 1 of 2, 1 of 1."""
    summary, method = scripted("videomme", VIDEOMME)
    assert summary["accuracy"] == pytest.approx(4 / 9)
    assert summary["n"] == 9
    assert summary["metrics"] == pytest.approx(
        {
            "official": 100 * 4 / 6,
            "official_short": 100 * 2 / 3,
            "official_medium": 50.0,
            "official_long": 100.0,
            "unanswered": 3.0,
        }
    )
    assert summary["kinds"]["Counting Problem"]["accuracy"] == pytest.approx(2 / 3)
    assert method.asked["003-2"] == (
        "Select the best answer to the following multiple-choice question based on the video. Respond with only the "
        "letter (A, B, C, or D) of the correct option.\n"
        "What is shown in part 2?\n"
        "A. A red star.\nB. A blue cross.\nC. A green square.\nD. Nothing.\n"
        "The best answer is:"
    )


def test_videomme_with_subtitles(scripted: Go) -> None:
    """At 1 fps frames are at 0, 1, ..., 5 s: lines shown at one of them are listed, equal ones once, no others."""
    _, method = scripted("videomme", VIDEOMME, subtitles=True)
    begin = "This video's subtitles are listed below:\nLook at the star.\nIt is gone.\nSelect the best answer to the"
    assert method.asked["003-1"].startswith(begin)
    assert method.asked["001-1"].startswith("This video's subtitles are listed below:\nA short one.\nSelect the best")
    assert method.asked["002-1"].startswith("Select the best answer")  # this video has none


def test_videomme_part(scripted: Go) -> None:
    """Two frames of each long video: 0 s and later; the lines of the others are gone."""
    summary, method = scripted("videomme", VIDEOMME, tasks=("long",), subtitles=True, frames=2)
    assert summary["n"] == 3
    assert set(summary["metrics"]) == {"official", "official_long", "unanswered"}
    assert "It is gone." not in method.asked["003-1"]


MLVU = {
    "1_plotQA.json[0]": "B) blue",  # right
    "1_plotQA.json[1]": "The answer is A",  # wrong: the letter has to stand alone
    "2_needle.json[0]": "(C) x",  # right
    "2_needle.json[1]": "A",  # right
    "3_ego.json[0]": "",  # wrong
    "4_count.json[0]": " D",  # right
    "5_order.json[0]": "A) B",  # wrong: the first counts, B is right
    "6_anomaly_reco.json[0]": "a",  # wrong
    "7_topic_reasoning.json[0]": "C.",  # wrong: the letter has to stand alone
    "8_sub_scene.json[0]": "the red star falls",  # 3 words in common, of 4 and of 5
    "9_summary.json[0]": "",
}


def test_mlvu(scripted: Go, tmp_path: Path) -> None:
    """Tasks with options: 50, 100, 0, 100, 0, 0, 0 %; their mean is 250 / 7. The others are not scored."""
    summary, method = scripted("mlvu", MLVU)
    assert summary["metrics"] == pytest.approx(
        {"M-Avg": 250 / 7, "rouge_l_subPlot": 100 * 6 / 9, "rouge_l_summary": 0.0, "needs_judge": 2.0}
    )
    assert summary["accuracy"] == pytest.approx(4 / 9)
    assert summary["n"] == 9
    assert method.asked["2_needle.json[0]"] == (
        "Carefully watch this video and pay attention to every detail. Based on your observations, select the best "
        "option that accurately addresses the question.\n"
        "Question: Which colour has the findNeedle star?\n"
        "Options:\n(A) red\n(B) green\n(C) blue\n(D) white\n"
        "Only give the best option.\nBest option:("
    )
    assert for_judge(rows_of(tmp_path / "out"), "subPlot") == [
        {
            "video_name": "subPlot_1.mp4",
            "Q": "Describe what the red star does.",
            "A": "A red star falls down.",
            "pred": "the red star falls",
        }
    ]


def test_mlvu_lengths(layout: Callable[[str], Path]) -> None:
    """Answers may be as long as in the official code: 100 tokens for options, 1,000 where a text is generated."""
    root = layout("mlvu")
    assert PUBLIC["mlvu"](BenchmarkOptions(data=root)).max_new_tokens == 1000
    assert PUBLIC["mlvu"](BenchmarkOptions(data=root, tasks=("needle", "ego"))).max_new_tokens == 100


LONGVIDEOBENCH = {
    "86CxyhFV9MI_0": "C",  # right
    "86CxyhFV9MI_1": "Best option: B",  # right
    "@user-7123_0": "Because",  # wrong: B, A is right
    "@user-7123_1": "nothing",  # guessed: C with seed 0, A is right
    "@user-7123_2": "E",  # wrong: there is no such option
}


def test_longvideobench(scripted: Go) -> None:
    """2 of 2 right in the group of 15 s, 0 of 3 in that of 600 s."""
    summary, method = scripted("longvideobench", LONGVIDEOBENCH)
    assert summary["accuracy"] == pytest.approx(2 / 5)
    assert summary["metrics"] == pytest.approx({"duration_15": 100.0, "duration_600": 0.0, "guessed": 1.0})
    assert method.asked["@user-7123_2"] == (
        "Question: When the star comes, what is left?\nA. a cross\nB. a square\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_longvideobench_with_subtitles(scripted: Go) -> None:
    """Lines are moved to the part's own time; those during which no frame was sampled are left out."""
    _, method = scripted("longvideobench", LONGVIDEOBENCH, subtitles=True)
    # Frames at 0 ... 5 s. 41.2-41.8 s (a second wide around 1.5, without 1 and 2) has none; 41.9-42.3 s is widened to
    # 1.6-2.6 and has 2; 43.5-45.0 is 3.5-5.0 and has 4.
    first = "[00:01] Now the star comes.\n[00:03] It stays for a while.\nQuestion: When the star"
    assert method.asked["86CxyhFV9MI_0"].startswith(first)
    assert method.asked["@user-7123_0"].startswith("[00:00] Hello.\n[00:04] Bye.\nQuestion: When the star")


def test_longvideobench_guesses(layout: Callable[[str], Path]) -> None:
    """A guess follows from seed and question, and no option is preferred."""
    root = layout("longvideobench")
    bench = LongVideoBench(BenchmarkOptions(data=root))
    guesses = [bench.guess(f"question {i}", "ABCD") for i in range(2000)]
    assert guesses == [LongVideoBench(BenchmarkOptions(data=root)).guess(f"question {i}", "ABCD") for i in range(2000)]
    assert all(0.2 < guesses.count(letter) / 2000 < 0.3 for letter in "ABCD")
    other = LongVideoBench(BenchmarkOptions(data=root, seed=1))
    assert guesses != [other.guess(f"question {i}", "ABCD") for i in range(2000)]


def test_vnbench(scripted: Go) -> None:
    """An item is right only if all its four tries are: ret_edit1 1 of 2, ord_insert1 1 of 1, cnt_edit1 0 of 1."""
    said = {
        "9917483_ret_edit1": ["B", "C.", "(D)", "A. w"],  # all right
        "44120_ret_edit1": ["A", "B", "C", "A"],  # three right
        "9917483_ord_insert1": ["The best is D", "C", "B", "A"],  # all right
        "9917483_cnt_edit1": ["", "a", "B", "the right one"],  # none right
    }
    assert list(said) == list(VNBENCH)
    replies = {f"{item}_{number}": reply for item, tries in said.items() for number, reply in enumerate(tries)}
    summary, method = scripted("vnbench", replies)
    assert summary["metrics"] == pytest.approx(
        {
            "cnt_edit1": 0.0,
            "ord_insert1": 100.0,
            "ret_edit1": 50.0,
            "ret": 50.0,
            "ord": 100.0,
            "cnt": 0.0,
            "overall": 50.0,
        }
    )
    assert (summary["accuracy"], summary["n"]) == (pytest.approx(2 / 4), 4)
    assert method.asked["44120_ret_edit1_2"] == (
        "What was inserted?\nA. w\nB. x\nC. the right one\nD. y\n"
        "Answer with the option's letter from the given choices directly."
    )


def test_vnbench_keeps_items_whole_and_joins_their_source(layout: Callable[[str], Path]) -> None:
    root = layout("vnbench")
    part = PUBLIC["vnbench"](BenchmarkOptions(data=root, questions=11)).samples()
    assert len(part) == 8
    assert all(sum(s.group == one.group for s in part) == 4 for one in part)
    whole = PUBLIC["vnbench"](BenchmarkOptions(data=root)).samples()
    assert {s.cluster for s in whole} == {"9917483", "44120"}  # one haystack, several needles
    assert whole[0].moments == ((2.0, 3.0), (4.0, 5.0))


def test_lvbench(scripted: Go) -> None:
    """2 of 4 right; entity recognition 2 of 2, reasoning 1 of 2, temporal grounding 0 of 1."""
    replies = {"1": "(B) red", "2": "A", "3": "The answer is C.", "4": "d"}
    summary, method = scripted("lvbench", replies)
    assert summary["accuracy"] == pytest.approx(2 / 4)
    assert summary["metrics"] == pytest.approx({"ER": 100.0, "Rea": 50.0, "TG": 0.0, "Overall": 50.0})
    assert method.asked["1"] == (
        "What is seen?\n(A) A red star\n(B) A blue cross\n(C) A green square\n(D) Nothing\n"
        "Answer the question with the option letter"
    )


def test_lvbench_moments(layout: Callable[[str], Path]) -> None:
    samples = {s.id: s for s in PUBLIC["lvbench"](BenchmarkOptions(data=layout("lvbench"))).samples()}
    assert [samples[uid].moments for uid in "1234"] == [((1.0, 3.0),), ((0.0, 6.0),), (), ()]
