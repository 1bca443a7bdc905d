"""Answers as one page of HTML that stands alone: words, time line, pictures, costs; nothing is fetched."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from urllib.parse import quote

from videox2l.ask.answer import Answer, Evidence
from videox2l.memory import Memory
from videox2l.options import check_target_file
from videox2l.plot.thumbnails import Thumbnail, thumbnails_of
from videox2l.takeaway.clips import fitting_videos
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
    video: str | Path | Sequence[str | Path] | None = None,
    link: str | Path | Sequence[str | Path] | None = None,
) -> None:
    """Write questions, or the turns of a dialogue, and their answers as one page.

    Pictures are those that the memory keeps, or frames of `video`, the file that it was made of. Moments are links into
    `link`, a file of the video, by default `video`. Of several memories these are lists, of the files that are at hand.
    Raises SettingsError, and VideoError where `video` is another file.
    """
    target, link = check_report(path), video if link is None else link
    places = {
        name: quote(os.path.relpath(file.resolve(), target.parent.resolve())) + "#t={start:.3f},{end:.3f}"
        for name, file in _files(memory, link).items()
    }
    target.write_text(report_page(answers, memory, _files(memory, video), places), encoding="utf-8")


def _files(memory: Memory, videos: str | Path | Sequence[str | Path] | None) -> dict[str, Path]:
    """Return files by the names of their memories; a single one is checked when it is opened."""
    several = [videos] if isinstance(videos, (str, Path)) else videos or ()
    parts = memory.by_name
    return fitting_videos(parts, several) if len(parts) > 1 else dict(zip(parts, map(Path, several), strict=False))


def report_page(
    answers: Sequence[Answer],
    memory: Memory,
    video: Mapping[str, Path] | None = None,
    place: str | Mapping[str, str] = "",
) -> str:
    """Return the page of `write_report`.

    `place`: the address of a moment, with {start} and {end} (seconds) in it. Of several memories it is a map of names
    to addresses, as `video` is to files.
    """
    video, places = video or {}, {"": place} if isinstance(place, str) else place
    source = escape(str(memory.manifest.get("source", "video")))
    head = f"<!doctype html>\n<html lang='en'><meta charset='utf-8'><title>{source}</title><style>{_STYLE}</style>"
    facts = "; ".join(
        f"{escape(name)}: {told}" if name else told
        for name, part in memory.by_name.items()
        for told in [f"{format_time(part.duration)}, {len(part)} chunks"]
    )
    parts = [_section(answer, memory, thumbnails_of(answer.reloaded, memory, video), places) for answer in answers]
    body = f"<h1>{source}</h1><p class='quiet'>{facts}</p>" + "\n".join(parts)
    return f"{head}\n<body>{body}</body></html>\n"


def _section(answer: Answer, memory: Memory, pictures: Sequence[Thumbnail], places: Mapping[str, str]) -> str:
    images = {(picture.moment.memory, picture.moment.chunk): _data_uri(picture) for picture in pictures}
    figures, parts = [], memory.by_name
    for moment in answer.reloaded:
        key, place = (moment.memory, moment.chunk), places.get(moment.memory)
        image = f"<img alt='' src='{images[key]}'>" if key in images else ""
        said = " ".join(line.text for line in cues_within(parts[moment.memory].subtitles, moment.start, moment.end))
        score = "" if moment.score is None else f", score {moment.score:.3g}"
        times = escape(moment.where)
        if place:
            times = f"<a href='{escape(place.format(start=moment.start, end=moment.end))}'>{times}</a>"
        told = f"{times} <span class='quiet'>{escape(moment.reason)}{score}</span>"
        words = f"<br><q>{escape(said)}</q>" if said else ""
        figures.append(f"<figure>{image}<figcaption>{told}{words}</figcaption></figure>")
    thought = f"<details><summary>thought</summary>{escape(answer.thought)}</details>" if answer.thought else ""
    return (
        f"<h2>{escape(answer.question)}</h2>{thought}<p class='answer'>{escape(answer.text) or '(no text)'}</p>"
        f"{_time_lines(answer)}<div>{''.join(figures)}</div><p class='quiet'>{escape(answer.cost_line())}</p>"
    )


def _time_lines(answer: Answer) -> str:
    """Return the scores of the chunks over time, a line for each video; all have one scale."""
    scores = [moment.score for moment in answer.evidence if moment.score is not None]
    low, span = min(scores, default=0.0), (max(scores, default=0.0) - min(scores, default=0.0)) or 1.0
    lines = []
    for name in dict.fromkeys(moment.memory for moment in answer.evidence):
        heading = f"<p class='quiet'>{escape(name)}</p>" if name else ""
        lines.append(heading + _time_line([m for m in answer.evidence if m.memory == name], low, span))
    return "".join(lines)


def _time_line(moments: Sequence[Evidence], low: float, span: float) -> str:
    """Return the scores, from `low` up to `span` above it, over time as SVG; what was re-loaded is orange."""
    start, end = moments[0].start, max(moment.end for moment in moments)
    bars = []
    for moment in moments:
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
