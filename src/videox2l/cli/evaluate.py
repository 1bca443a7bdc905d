"""The commands `x2l eval` and `x2l report`. torch and transformers are imported inside the first."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videox2l.cli.options import command, load_model, user_errors
from videox2l.errors import SettingsError
from videox2l.options import LoadOptions

if TYPE_CHECKING:
    from videox2l.cli.console import Screen
    from videox2l.evaluate.base import Benchmark, BenchmarkOptions
    from videox2l.pipeline import VideoX2L

MADE_FOR = {"dense": "demo-dense", "boards": "demo-boards"}
"""Benchmark -> the shipped model that was trained for it; others take "demo"."""

Bench = Annotated[
    str | None,
    typer.Argument(
        help="haystack, dense, boards, film (all generated), videomme, mlvu, longvideobench, vnbench or lvbench.",
        metavar="BENCH",
    ),
]
ModelFor = Annotated[
    str | None,
    typer.Option(
        help="As of ask. [default: demo; dense: demo-dense; boards: demo-boards; film: smollm2]", metavar="demo|ID|DIR"
    ),
]
Names = Annotated[
    str,
    typer.Option(
        help="Methods to compare, with commas, or all. x2l:SELECTOR: ours with another selector; kvpress:SCORER.",
        metavar="A,B",
    ),
]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command(name="eval")(evaluate)
    app.command(name="report")(report)


@command
def evaluate(
    bench: Bench = None,
    *,
    out: Annotated[Path, typer.Option(help="Folder of the run; a run that was stopped goes on there.")],
    describe: Annotated[
        Path | None,
        typer.Option(help="In place of BENCH: a file that describes a multiple-choice benchmark.", metavar="FILE.yaml"),
    ] = None,
    data: Annotated[Path | None, typer.Option(help="Folder of the benchmark, as downloaded.")] = None,
    model: ModelFor = None,
    methods: Names = "full,x2l,H,uniform",
    budget: Annotated[
        str, typer.Option(help="Share of full KV that a question may attend to; several with commas.")
    ] = "1/8",
    split: Annotated[str | None, typer.Option(help="Split; haystack: dev or heldout.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of generated videos.")] = 0,
    questions: Annotated[int | None, typer.Option(help="At most so many questions.")] = None,
    frames: Annotated[int | None, typer.Option(help="Sampled frames per video; of files at most.")] = None,
    fps: Annotated[float | None, typer.Option(help="Frames sampled per second of a file.")] = None,
    tasks: Annotated[str | None, typer.Option(help="Kinds of questions, with commas.", metavar="A,B")] = None,
    density: Annotated[
        int,
        typer.Option(
            help="Askable facts in every 8 frames; haystack: 1, 2, 4 or 8, 0: a few anywhere; dense: 1 to 16, 0: 8."
        ),
    ] = 0,
    redundancy: Annotated[
        int, typer.Option(help="haystack with --density: grids of two frames that show the same fact.")
    ] = 1,
    pages: Annotated[int | None, typer.Option(help="film: pages of a film, 2 to 64.")] = None,
    subtitles: Annotated[
        bool, typer.Option("--subtitles", help="With the benchmark's own protocol for subtitles.")
    ] = False,
    max_new_tokens: Annotated[int | None, typer.Option(help="Length of an answer. (default: the benchmark's)")] = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="End the run at a video or question that cannot be used.")
    ] = False,
    chunk_frames: Annotated[int | None, typer.Option(help="Sampled frames per chunk. [default: the model's]")] = None,
    loading: LoadOptions,
) -> None:
    """Run a benchmark with several methods at equal bytes, each video read once.

    Writes OUT/samples.jsonl (one row per question, method and budget) and OUT/summary.json.
    """
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.evaluate.base import BenchmarkOptions, parse_budget
        from videox2l.evaluate.registry import methods_by_names
        from videox2l.evaluate.runner import Run, run

        options = BenchmarkOptions(
            data=data,
            split=split,
            seed=seed,
            questions=questions,
            frames=frames,
            fps=fps,
            tasks=_parts(tasks),
            subtitles=subtitles,
            density=density,
            redundancy=redundancy,
            pages=pages,
            max_new_tokens=max_new_tokens,
            strict=strict,
        )
        benchmark = _benchmark(bench, describe, options)
        work = Run(
            benchmark,
            methods_by_names(_parts(methods)),
            [parse_budget(part) for part in _parts(budget)],
            chunk_frames,
            max_new_tokens,
            strict,
        )
        work.benchmark.check()  # before the model: what is missing shows at once
        screen = Screen()
        x2l = _model_for(benchmark.name, model, loading, screen)
        with screen.bar(benchmark.name) as update:
            summary = run(x2l, work, out, update)
        _show(screen, summary)
        screen.line(f"{out}: samples.jsonl, summary.json")


def _benchmark(name: str | None, description: Path | None, options: BenchmarkOptions) -> Benchmark:
    """Return the benchmark of a name or of a file. Raises SettingsError."""
    from videox2l.evaluate.registry import benchmark_by_name, from_description

    if name is not None and description is None:
        return benchmark_by_name(name, options)
    if name is not None or description is None:
        raise SettingsError("name a benchmark, or give --describe FILE.yaml: one of them")
    return from_description(description, options)


def _model_for(bench: str, model: str | None, options: LoadOptions, screen: Screen) -> VideoX2L:
    """Load the model: a film of text is read by a text decoder, all else by a video LLM."""
    if bench != "film":
        return load_model(model or MADE_FOR.get(bench, "demo"), options, screen)
    from videox2l.conformance.check_cache import votes_once
    from videox2l.evaluate.film_model import load_film_model
    from videox2l.pipeline import VideoX2L

    backbone = load_film_model(model or "smollm2", options.device, options.dtype)
    with screen.waiting("finding the layers that know what is asked"):
        votes_once(backbone, backbone.identity(), find=True)
    return VideoX2L(backbone)


def _show(screen: Screen, summary: dict[str, Any]) -> None:
    from rich.table import Table

    from videox2l.units import format_bytes

    table = Table("method", "right", "95 %", "n", "attended", "kept", "recall", box=None, padding=(0, 2, 0, 0))
    for name, cell in summary.items():
        if name == "tests":
            continue
        table.add_row(
            name,
            f"{100 * cell['accuracy']:.1f}",
            f"{100 * cell['low']:.1f}-{100 * cell['high']:.1f}",
            str(cell["n"]),
            f"{format_bytes(cell['bytes_attended'])} ({cell['attended_share']:.1%})",
            format_bytes(cell["bytes_kept"]),
            "" if cell["recall"] is None else f"{cell['recall']:.0%}",
        )
    screen.out.print(table)
    unanswered = {name: cell["unanswered"] for name, cell in summary.items() if cell.get("unanswered")}
    if unanswered:
        screen.line(f"unanswered, counted as wrong: {max(unanswered.values())} questions per method; see samples.jsonl")
    for name, cell in summary.items():
        if cell.get("metrics"):
            figures = ", ".join(f"{figure} {value:.1f}" for figure, value in cell["metrics"].items())
            screen.line(f"{name}: {figures}")


def _parts(text: str | None) -> tuple[str, ...]:
    return tuple(part.strip() for part in (text or "").split(",") if part.strip())


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of finished runs.", metavar="DIR...")],
    out: Annotated[Path, typer.Option(help="Folder for report.md, report.html and the figures.")] = Path("report"),
) -> None:
    """Compare methods and runs: accuracy with intervals, paired tests, costs, figures."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.evaluate.report import write_report

        for file in write_report(runs, out):
            Screen().line(str(file))
