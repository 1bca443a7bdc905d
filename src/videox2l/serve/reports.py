"""Answers that a client sends back, as a page or as a list of their moments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any
from urllib.parse import quote

from videox2l.ask.answer import Answer
from videox2l.errors import SettingsError
from videox2l.memory import JointMemory, Memory
from videox2l.serve.catalog import MemoryRecord
from videox2l.serve.errors import APIError
from videox2l.takeaway import moments_text, report_page


def report_of_answers(
    told: Sequence[dict[str, Any]], kind: str, records: Sequence[MemoryRecord], memories: Sequence[Memory], base: str
) -> bytes:
    """Return answers about memories as a file: `kind` is html, or a list of their moments: srt, vtt, csv or edl.

    Moments are places on the page of the server at `base`. Raises SettingsError, and APIError for what is no answer.
    """
    names = [record.name for record in records]
    labels = [f"{name} ({n})" if name in names[: n - 1] else name for n, name in enumerate(names, 1)]
    shown = [
        replace(memory, manifest={**memory.manifest, "source": label})  # the file may be an upload's, that has no name
        for label, memory in zip(labels, memories, strict=True)
    ]
    ids = [record.id for record in records]
    places = [f"{base}#m={quote(name)}&t={{start:.3f}}" for name in ids]
    try:
        answers = [Answer.from_dict(values) for values in told]
        if len(ids) == 1:
            about, place = shown[0], {"": places[0]}
            answers = [_alone(answer, ids[0]) for answer in answers]
        else:
            about, place = JointMemory.told_of(shown, labels), dict(zip(labels, places, strict=True))
            answers = [_named(answer, dict(zip(ids, labels, strict=True))) for answer in answers]
        html = kind == "html"
        text = report_page(answers, about, place=place) if html else moments_text(answers, f".{kind}", about)
        return text.encode()
    except SettingsError:
        raise
    except (TypeError, ValueError, AttributeError, LookupError, ArithmeticError) as error:
        raise APIError(400, f"these are no answers about this memory: {error}", param="answers") from None


def _named(answer: Answer, labels: Mapping[str, str]) -> Answer:
    """Return an answer whose evidence has the names of videos in place of the ids of memories."""
    return replace(answer, evidence=tuple(replace(moment, memory=labels[moment.memory]) for moment in answer.evidence))


def _alone(answer: Answer, name: str) -> Answer:
    """Return what of an answer about several memories is about one, as an answer about that."""
    evidence = (replace(moment, memory="") for moment in answer.evidence if moment.memory in ("", name))
    return replace(answer, evidence=tuple(evidence))
