"""Answers as one page of HTML that stands alone: words, time line, pictures, costs; nothing is fetched."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from urllib.parse import quote

from videox2l.ask.answer import Answer
from videox2l.memory import Memory
from videox2l.plot.thumbnails import Thumbnail, thumbnails_of
from videox2l.takeaway.moments import check_target_file
from videox2l.units import cues_within, format_range, format_time

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;color:#1f2430}"
    "h2{margin:2.5rem 0 0}.answer{color:#d9480f;white-space:pre-wrap}.quiet{color:#6b7280;font-size:.85rem}"
    "svg{width:100%;height:5rem}figure{display:inline-block;margin:.5rem .75rem .5rem 0;max-width:12rem;"
    "vertical-align:top}img{width:100%}figcaption{font-size:.85rem}"
)


def check_report(path: str | Path) -> Path:
    """Return the path of a page that can be written. Raises SettingsError for its ending or folder."""
    return check_target_file(path, (".html", ".htm"), "a report")


def write_report(
    answers: Sequence[Answer],
    path: str | Path,
    memory: Memory,
    video: str | Path | None = None,
    link: str | Path | None = None,
) -> None:
    """Write questions, or the turns of a dialogue, and their answers as one page.

    Pictures are those that the memory keeps, or frames of `video`, the file that it was made of. Moments are links into
    `link`, a file of the video, by default `video`. Raises SettingsError, and VideoError where `video` is another file.
    """
    target, link = check_report(path), video if link is None else link
    place = ""
    if link is not None:
        place = quote(os.path.relpath(Path(link).resolve(), target.parent.resolve())) + "#t={start:.3f},{end:.3f}"
    target.write_text(report_page(answers, memory, video, place), encoding="utf-8")


def report_page(
    answers: Sequence[Answer], memory: Memory | Mapping[str, Memory], video: str | Path | None = None, place: str = ""
) -> str:
    """Return the page of `write_report`.

    `memory`: of answers about several, all of them, by the names in `Evidence.memory`; KeyError is raised for a moment
    of another one. `place`: the address of a moment, with {memory} (that name), {start} and {end} (seconds) in it.
    """
    memories = {"": memory} if isinstance(memory, Memory) else memory
    names = [str(one.manifest.get("source", "video")) for one in memories.values()]
    labels = {
        name: f"{text} ({n})" if text in names[: n - 1] else text
        for n, (name, text) in enumerate(zip(memories, names, strict=True), 1)
    }
    title = escape(", ".join(labels.values()))
    head = f"<!doctype html>\n<html lang='en'><meta charset='utf-8'><title>{title}</title><style>{_STYLE}</style>"
    facts = "; ".join(f"{format_time(one.duration)}, {len(one)} chunks" for one in memories.values())
    parts = [_section(answer, memories, labels, video, place) for answer in answers]
    body = f"<h1>{title}</h1><p class='quiet'>{facts}</p>" + "\n".join(parts)
    return f"{head}\n<body>{body}</body></html>\n"


def _section(
    answer: Answer, memories: Mapping[str, Memory], labels: Mapping[str, str], video: str | Path | None, place: str
) -> str:
    images = {
        (name, picture.moment.chunk): _data_uri(picture)
        for name, memory in memories.items()
        for picture in thumbnails_of([m for m in answer.reloaded if m.memory == name], memory, video)
    }
    titles = labels if len(memories) > 1 else dict.fromkeys(labels, "")
    figures = []
    for moment in answer.reloaded:
        memory, key = memories[moment.memory], (moment.memory, moment.chunk)
        image = f"<img alt='' src='{images[key]}'>" if key in images else ""
        said = " ".join(line.text for line in cues_within(memory.subtitles, moment.start, moment.end))
        score = "" if moment.score is None else f", score {moment.score:.3g}"
        times = f"{escape(titles[moment.memory])} {format_range(moment.start, moment.end)}".strip()
        if place:
            address = place.format(memory=moment.memory, start=moment.start, end=moment.end)
            times = f"<a href='{escape(address)}'>{times}</a>"
        told = f"{times} <span class='quiet'>{escape(moment.reason)}{score}</span>"
        words = f"<br><q>{escape(said)}</q>" if said else ""
        figures.append(f"<figure>{image}<figcaption>{told}{words}</figcaption></figure>")
    thought = f"<details><summary>thought</summary>{escape(answer.thought)}</details>" if answer.thought else ""
    named = replace(answer, evidence=tuple(replace(m, memory=titles[m.memory]) for m in answer.evidence))
    lines = "".join(
        f"<p class='quiet'>{escape(title)}</p>{_time_line(named, title)}" if title else _time_line(named)
        for title in titles.values()
    )
    return (
        f"<h2>{escape(answer.question)}</h2>{thought}<p class='answer'>{escape(answer.text) or '(no text)'}</p>"
        f"{lines}<div>{''.join(figures)}</div><p class='quiet'>{escape(named.cost_line())}</p>"
    )


def _time_line(answer: Answer, memory: str = "") -> str:
    """Return the scores of the chunks of one video over time as SVG; what was re-loaded is orange."""
    evidence = [moment for moment in answer.evidence if moment.memory == memory]
    if not evidence:
        return ""
    start, end = evidence[0].start, max(moment.end for moment in evidence)
    scores = [moment.score for moment in answer.evidence if moment.score is not None]
    low, span = min(scores, default=0.0), (max(scores, default=0.0) - min(scores, default=0.0)) or 1.0
    bars = []
    for moment in evidence:
        x, width = (1000 * (t - a) / (end - start) for t, a in ((moment.start, start), (moment.end, moment.start)))
        height = 60.0 if moment.score is None else 6 + 54 * (moment.score - low) / span
        title = f"{format_range(moment.start, moment.end)}: {moment.level} {moment.reason}"
        fill = "#d9480f" if moment.reloaded else "#b7c0cf"
        bars.append(
            f"<rect x='{x:.2f}' y='{60 - height:.2f}' width='{width:.2f}' height='{height:.2f}' fill='{fill}' "
            f"stroke='white'><title>{escape(title)}</title></rect>"
        )
    ends = f"<text y='76' font-size='12'>{format_time(start)}</text>"
    ends += f"<text x='1000' y='76' font-size='12' text-anchor='end'>{format_time(end)}</text>"
    return f"<svg viewBox='0 0 1000 80' preserveAspectRatio='none' role='img'>{''.join(bars)}{ends}</svg>"


def _data_uri(picture: Thumbnail) -> str:
    from PIL import Image

    image, data = Image.fromarray(picture.image), io.BytesIO()
    image.thumbnail((384, 384))
    image.save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode("ascii")
