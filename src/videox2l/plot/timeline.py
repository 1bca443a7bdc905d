"""The time line of an answer as a picture: scores, levels, and what was re-loaded."""

from __future__ import annotations

import textwrap
import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from videox2l.ask.answer import Answer, Evidence
from videox2l.errors import SettingsError
from videox2l.memory import Memory
from videox2l.options import check_target_file
from videox2l.plot.thumbnails import Thumbnail, thumbnails_of
from videox2l.units import format_range, format_time

FORMATS = (".png", ".pdf", ".svg", ".jpg", ".jpeg", ".webp")
INK, QUIET, RULE = "#1f2430", "#6b7280", "#d5d9e0"
SCORE, RELOADED = "#b7c0cf", "#d9480f"
FINE, COARSE = np.array([0.85, 0.28, 0.06]), np.array([0.90, 0.92, 0.95])
WIDTH, LEFT, RIGHT = 12.0, 0.85, 0.35  # inches
BOTTOM = 0.4
SHOWN = 8
"""Pictures at most; the chunks with the best scores have one."""
MARKED = 60
"""Re-loaded chunks that get a mark each; where there are more, colour says it."""


def check_plot(path: str | Path) -> Path:
    """Return the path of a figure that can be written. Raises SettingsError: no matplotlib, format, or folder."""
    if find_spec("matplotlib") is None:
        raise SettingsError("drawing a time line needs matplotlib: pip install 'videox2l[plot]'")
    return check_target_file(path, FORMATS, "a time line")


def draw(answer: Answer, path: str | Path, memory: Memory | None = None, video: str | Path | None = None) -> None:
    """Draw the time line of an answer: question, pictures of re-loaded chunks, scores, levels, and what it cost.

    `memory` is the one that was asked, for pictures: the small ones that the ingest kept of each chunk's first frame,
    or, where `video` names the file, frames from the middle of each chunk. The kind of file follows from the name of
    `path`. Raises SettingsError, and VideoError if `video` is not the file that the memory was made of.
    """
    target = check_plot(path)
    found = thumbnails_of(_to_show(answer.evidence), memory, video)
    sheet = Sheet(answer, found)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # drawn as boxes; a user cannot mend fonts
        sheet.draw().savefig(target, dpi=120, facecolor="white")


def _to_show(evidence: Sequence[Evidence]) -> list[Evidence]:
    best = sorted((m for m in evidence if m.reloaded), key=lambda m: -(np.inf if m.score is None else m.score))
    return sorted(best[:SHOWN], key=lambda m: m.start)


class Sheet:
    """The picture in the making. Places are in inches from the lower left corner."""

    def __init__(self, answer: Answer, pictures: Sequence[Thumbnail]) -> None:
        from matplotlib.figure import Figure

        self.answer = answer
        self.evidence = answer.evidence
        self.pictures = pictures
        self.question = _wrapped(answer.question, 92, 4)
        self.text = _wrapped(answer.text or "(no text)", 118, 6)
        # Heights from the top: words, pictures with captions and lines to their moments, scores, levels, costs.
        self.words = 0.32 + 0.29 * len(self.question) + 0.23 * len(self.text) + 0.12
        self.row = 1.78 if pictures else 0.2
        self.height = self.words + self.row + 2.6 + 0.95 + BOTTOM
        self.figure = Figure(figsize=(WIDTH, self.height))

    def draw(self) -> Any:
        """Draw everything and return the figure."""
        self._words()
        bottom = BOTTOM + 0.95
        scores = self._axes(LEFT, bottom, 2.6)
        levels = self._axes(LEFT, bottom - 0.5, 0.24)
        if self.evidence:
            self._limits = self.evidence[0].start, max(m.end for m in self.evidence)
            for axes in (scores, levels):
                axes.set_xlim(*self._limits)
            self._scores(scores)
            self._marks(scores)
            self._levels(levels)
            self._thumbnails(bottom + 2.6)
        self._costs()
        return self.figure

    # --- the parts --------------------------------------------------------------------------------------------

    def _words(self) -> None:
        y = self.height - 0.32
        for line in self.question:
            self._text(0.35, y, line, size=15, color=INK, weight="bold", va="top")
            y -= 0.29
        for line in self.text:
            self._text(0.35, y - 0.04, line, size=12, color=RELOADED, va="top")
            y -= 0.23

    def _scores(self, axes: Any) -> None:
        from matplotlib.collections import PolyCollection

        known = [m for m in self.evidence if m.score is not None]
        axes.tick_params(labelbottom=False, bottom=False)
        axes.set_ylabel("score", color=QUIET, fontsize=9)
        if not known:
            why = "nothing was scored: " + ("the answer from H was settled" if _settled(self.answer) else "no need to")
            axes.text(0.5, 0.5, why, transform=axes.transAxes, ha="center", va="center", color=QUIET, fontsize=11)
            axes.set_yticks([])
            axes.set_ylim(0, 1)
            return
        values = np.array([m.score for m in known], dtype=float)
        low, high = float(values.min()), float(values.max())
        room = (high - low) or abs(high) or 1.0
        base = 0.0 if 0 <= low < 0.7 * high else low - 0.15 * room
        axes.set_ylim(base, high + 0.45 * ((high - base) or room))  # room for marks
        thin = 3 * (self._limits[1] - self._limits[0]) / ((WIDTH - LEFT - RIGHT) * 120)  # three pixels
        for moments, colour, least in (
            ([m for m in known if not m.reloaded], SCORE, 0.0),
            ([m for m in known if m.reloaded], RELOADED, thin),
        ):
            boxes = [_box(m, base, float(m.score or 0.0), least) for m in moments]
            edge = "white" if len(known) <= 120 else "none"
            axes.add_collection(PolyCollection(boxes, facecolors=colour, edgecolors=edge, linewidths=0.6))
        bars = [m.score for m in known if m.score is not None and m.reason.startswith("score rank")]
        if bars and len(bars) < len(known):
            axes.axhline(min(bars), color=INK, linewidth=0.7, linestyle=(0, (4, 3)))
            told = f"dashed: the least score that was re-loaded, {min(bars):.3g}"
            axes.text(1.0, 1.0, told, transform=axes.transAxes, ha="right", va="top", fontsize=8, color=QUIET)

    def _marks(self, axes: Any) -> None:
        """Name the reason of each re-loaded chunk above its bar; names that would touch are raised."""
        marked = [m for m in self.evidence if m.reloaded]
        if not marked or len(marked) > MARKED:
            return
        low, high = axes.get_ylim()
        step, free = 0.09 * (high - low), [-np.inf] * 3
        per_inch = (self._limits[1] - self._limits[0]) / (WIDTH - LEFT - RIGHT)
        for moment in marked:
            x = (moment.start + moment.end) / 2
            label = _reason(moment.reason)
            half = (0.035 * len(label) + 0.04) * per_inch
            row = next((i for i, end in enumerate(free) if x - half > end), len(free) - 1)
            free[row] = x + half
            top = moment.score if moment.score is not None else low
            axes.plot([x], [top + 0.18 * step], marker="v", markersize=4, color=RELOADED, clip_on=False)
            inside = min(max(x, self._limits[0] + half), self._limits[1] - half)
            axes.text(inside, top + (0.42 + row) * step, label, ha="center", va="bottom", fontsize=8, color=INK)

    def _levels(self, axes: Any) -> None:
        from matplotlib.collections import PolyCollection
        from matplotlib.patches import Patch

        ratios = sorted({m.ratio for m in self.evidence})
        names = {m.ratio: f"{m.level} 1/{m.ratio:.3g}" for m in self.evidence}
        thin = 3 * (self._limits[1] - self._limits[0]) / ((WIDTH - LEFT - RIGHT) * 120)
        for ratio in reversed(ratios):
            inside = [m for m in self.evidence if m.ratio == ratio]
            boxes = [_box(m, 0.0, 1.0, 0.0 if ratio == ratios[-1] else thin) for m in inside]
            axes.add_collection(PolyCollection(boxes, facecolors=_shade(ratio, inside[0].level), edgecolors="none"))
        axes.set_ylim(0, 1)
        axes.set_yticks([])
        axes.set_ylabel("level", color=QUIET, fontsize=9, rotation=0, ha="right", va="center")
        ticks = _ticks(*self._limits)
        axes.set_xticks(ticks, [format_time(t) for t in ticks])
        few = ratios if len(ratios) <= 4 else [ratios[0], ratios[len(ratios) // 2], ratios[-1]]
        shades = [Patch(color=_shade(r, names[r].split(" ")[0]), label=names[r]) for r in few]
        axes.legend(
            handles=shades, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=len(few), frameon=False,
            fontsize=8, handlelength=1.0, handleheight=0.8, borderpad=0, borderaxespad=0.15, columnspacing=1.2,
        )  # fmt: skip

    def _thumbnails(self, top: float) -> None:
        from matplotlib.lines import Line2D

        if not self.pictures:
            return
        width = min(1.34, (WIDTH - LEFT - RIGHT) / len(self.pictures) - 0.04)
        centres = [self._x((p.moment.start + p.moment.end) / 2) for p in self.pictures]
        places = spread(centres, width + 0.04, 0.35, WIDTH - RIGHT)
        y = top + 0.62
        for picture, at, place in zip(self.pictures, centres, places, strict=True):
            height, wide = picture.image.shape[0], picture.image.shape[1]
            scale = min(width / wide, 1.12 / height)
            w, h = wide * scale, height * scale
            axes = self._axes(place - w / 2, y, h, w)
            axes.imshow(picture.image, aspect="auto")
            axes.set_xticks([])
            axes.set_yticks([])
            for edge in axes.spines.values():
                edge.set(visible=True, color=RELOADED, linewidth=1.2)
            self._text(
                place, y - 0.05, format_range(picture.moment.start, picture.moment.end), size=8, ha="center", va="top"
            )
            line = Line2D(
                [place, place, at, at],
                [top + 0.4, top + 0.33, top + 0.1, top],
                color=RELOADED,
                linewidth=0.8,
                alpha=0.6,
                transform=self.figure.dpi_scale_trans,
            )
            self.figure.add_artist(line)

    def _costs(self) -> None:
        cost, loaded = self.answer.cost, len(self.answer.reloaded)
        said = [
            f"{loaded} of {len(self.evidence)} chunks re-loaded",
            f"{cost.tokens:,} of {cost.full_tokens:,} tokens attended ({cost.tokens / max(cost.full_tokens, 1):.1%})",
            f"{sum(cost.seconds.values()):.2f} s",
        ]
        if len(self.answer.steps) > 1:
            said.append(f"{len(self.answer.steps)} steps")
        if loaded > len(self.pictures) > 0:
            said.append(f"pictures of the {len(self.pictures)} with the best scores")
        if loaded and not self.pictures:
            said.append("no pictures: name the video or the memory")
        self._text(LEFT, 0.26, "   ·   ".join(said), size=9, color=QUIET, va="center")

    # --- helpers ----------------------------------------------------------------------------------------------

    def _axes(self, left: float, bottom: float, height: float, width: float = WIDTH - LEFT - RIGHT) -> Any:
        axes = self.figure.add_axes((left / WIDTH, bottom / self.height, width / WIDTH, height / self.height))
        axes.tick_params(colors=QUIET, labelsize=8, length=3, color=RULE)
        for name, edge in axes.spines.items():
            edge.set(visible=name in ("bottom", "left"), color=RULE)
        return axes

    def _text(self, x: float, y: float, text: str, *, size: float, color: str = QUIET, **options: Any) -> None:
        # Words of users are no formulas: a dollar sign stays one.
        self.figure.text(x / WIDTH, y / self.height, text, fontsize=size, color=color, parse_math=False, **options)

    def _x(self, seconds: float) -> float:
        start, end = self._limits
        return LEFT + (seconds - start) / (end - start) * (WIDTH - LEFT - RIGHT)


def spread(centres: Sequence[float], width: float, low: float, high: float) -> list[float]:
    """Move ascending centres of boxes apart until none overlap, between `low` and `high`, as little as is simple."""
    places = [max(c, low + width / 2) for c in centres]
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + width)
    limit = high - width / 2
    for i in range(len(places) - 1, -1, -1):
        places[i] = min(places[i], limit)
        limit = places[i] - width
    return places


def _box(moment: Evidence, low: float, high: float, least: float) -> list[tuple[float, float]]:
    """Return the corners of a chunk's box, `least` seconds wide at least."""
    more = max(0.0, least - (moment.end - moment.start)) / 2
    a, b = moment.start - more, moment.end + more
    return [(a, low), (a, high), (b, high), (b, low)]


def _shade(ratio: float, level: str) -> Any:
    """Return the colour of a level: L and H fixed, those between by their ratio on a scale of logarithms."""
    share = {"L": 0.0, "H": 1.0}.get(level, min(0.85, 0.2 + 0.15 * float(np.log2(max(ratio, 1.0)))))
    return tuple(FINE + (COARSE - FINE) * share)


def _reason(reason: str) -> str:
    """Return a reason in short, for a mark: the rank, or the first word."""
    if reason.startswith("score rank "):
        return reason.removeprefix("score rank ")
    short = reason.replace("next to rank ", "by ").replace(" rank", "").split(" chunk")[0]
    return {"share of the score": "", "all": ""}.get(reason, short)


def _settled(answer: Answer) -> bool:
    return bool(answer.steps and answer.steps[-1].settled)


def _wrapped(text: str, width: int, most: int) -> list[str]:
    lines = textwrap.wrap(" ".join(text.split()), width) or [""]
    return lines if len(lines) <= most else [*lines[: most - 1], lines[most - 1][: width - 2] + " …"]


def _ticks(start: float, end: float) -> list[float]:
    """Return round times, about ten, between two seconds."""
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 43200, 86400)
    step = next((s for s in steps if (end - start) / s <= 12), steps[-1])
    first = int(-(-start // step))
    return [float(i * step) for i in range(first, int(end // step) + 1)]
