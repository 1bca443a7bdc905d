"""A small document: headings, texts, tables and figures, as Markdown and as one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Heading:
    """A heading of level 1 to 3."""

    level: int
    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph of plain words."""

    text: str


@dataclass(frozen=True)
class Table:
    """A table; the row whose first cell is `emphasis` stands out."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    emphasis: str = ""


@dataclass(frozen=True)
class Figure:
    """A PNG file with what it shows."""

    path: Path
    caption: str


Block = Heading | Text | Table | Figure


def to_markdown(blocks: Sequence[Block], folder: Path) -> str:
    """Return the document as Markdown whose figures are named relative to `folder`."""
    parts = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"{'#' * block.level} {block.text}")
            case Text():
                parts.append(block.text)
            case Table():
                lines = [_line(block.header), "|" + " --- |" * len(block.header)]
                for row in block.rows:
                    bold = row[0] == block.emphasis
                    lines.append(_line([f"**{cell}**" if bold and cell else cell for cell in row]))
                parts.append("\n".join(lines))
            case Figure():
                parts.append(f"![{block.caption}]({block.path.relative_to(folder).as_posix()})")
    return "\n\n".join(parts) + "\n"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def to_html(blocks: Sequence[Block]) -> str:
    """Return the document as one page with nothing outside it: pictures are in it."""
    parts = []
    for block in blocks:
        match block:
            case Heading():
                parts.append(f"<h{block.level}>{html.escape(block.text)}</h{block.level}>")
            case Text():
                parts.append(f"<p>{html.escape(block.text)}</p>")
            case Table():
                head = "".join(f"<th>{html.escape(cell)}</th>" for cell in block.header)
                body = ""
                for row in block.rows:
                    mark = ' class="ours"' if row[0] == block.emphasis else ""
                    body += f"<tr{mark}>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>\n"
                parts.append(f'<div class="wide"><table><tr>{head}</tr>\n{body}</table></div>')
            case Figure():
                data = base64.b64encode(block.path.read_bytes()).decode()
                text = html.escape(block.caption)
                parts.append(
                    f'<figure><img alt="{text}" src="data:image/png;base64,{data}">'
                    f"<figcaption>{text}</figcaption></figure>"
                )
    title = next((block.text for block in blocks if isinstance(block, Heading)), "")
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title><style>{STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )


STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:1100px;margin:2rem auto;padding:0 1rem;color:#1c2430;background:#fff}
h1,h2,h3{line-height:1.2;margin:2rem 0 .6rem}h2{border-top:1px solid #d8dde4;padding-top:1.2rem}
.wide{overflow-x:auto;margin:1rem 0}table{border-collapse:collapse;font-size:13px;font-variant-numeric:tabular-nums}
th,td{padding:.25rem .6rem;text-align:left;white-space:nowrap}th{border-bottom:2px solid #9aa5b4}
td{border-bottom:1px solid #e6e9ee}tr.ours td{background:#e8f3ee;font-weight:600}
figure{margin:1.2rem 0}img{max-width:100%}figcaption{color:#5a6675;font-size:13px}
""".strip()
