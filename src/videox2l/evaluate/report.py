"""Reports of runs: what was run, who was right how often, at what cost, and what that proves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from videox2l.evaluate.document import Block, Figure, Heading, Text, to_html, to_markdown
from videox2l.evaluate.runfile import RunData
from videox2l.evaluate.tables import of_run, runs_table, side_by_side


def write_report(runs: Sequence[Path], out: Path) -> list[Path]:
    """Write `report.md`, its PNG figures, and `report.html` with everything in it; return what was written.

    Raises SettingsError where a folder holds no finished run, or matplotlib is missing.
    """
    from videox2l.evaluate import plots

    loaded = [RunData.load(path) for path in runs]
    out.mkdir(parents=True, exist_ok=True)
    blocks: list[Block] = [Heading(1, "Evaluation"), Text(INTRO), *runs_table(loaded)]
    for number, run in enumerate(loaded, 1):
        blocks += [Heading(2, run.title), *of_run(run)]
        for kind, draw in plots.FIGURES.items():
            file = out / f"{number}-{kind}.png"
            caption = draw(run, file)
            if caption:
                blocks.append(Figure(file, caption))
    if len(loaded) > 1:
        blocks += [Heading(2, "The runs side by side"), *side_by_side(loaded)]
        file = out / "overview.png"
        blocks.append(Figure(file, plots.overview(loaded, file)))
        file = out / "density.png"
        caption = plots.by_density(loaded, file)
        if caption:
            blocks.append(Figure(file, caption))
    blocks += [Heading(2, "How to read this"), Text(LEGEND)]
    (out / "report.md").write_text(to_markdown(blocks, out), encoding="utf-8")
    (out / "report.html").write_text(to_html(blocks), encoding="utf-8")
    return [out / "report.md", out / "report.html", *sorted(out.glob("*.png"))]


INTRO = (
    "All methods answered the same questions about the same videos. Percent right; intervals are 95 % bootstrap "
    "intervals over videos. A budget is the share of full KV, in bytes, that a question attends to."
)
LEGEND = (
    "p: exact McNemar test, paired by question, two-sided; p (Holm) is corrected for the number of rivals at that "
    "budget; p (videos) comes from flipping whole videos and allows for questions that share a video. "
    "Attended: KV bytes that the question's first pass reads. Kept: KV bytes that stay between questions, wherever "
    "they lie. Device: the part of them that has to stay on the device. Re-loaded: brought there for the question. "
    "Selection reads: what was read to choose. Ingest and question: FLOPs of the language model alone. First token: "
    "seconds from the question to its first token on the machine named above, for comparison within a run. "
    "q: looks at the question. 1: serves one question only, then has to read or compress the video again. "
    "!: attended bytes are off the budget by more than 5 %."
)
