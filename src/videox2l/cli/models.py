"""Commands before an ingest: what is in a video, what it will need of a model, whether a model is served rightly."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from videox2l.cli.ingest import local_video
from videox2l.cli.options import AsJson, Model, command
from videox2l.errors import SettingsError
from videox2l.options import IngestOptions, LoadOptions

if TYPE_CHECKING:
    from videox2l.cli.console import Screen
    from videox2l.estimate.fit import Fit
    from videox2l.estimate.forecast import Forecast, Peak
    from videox2l.estimate.header import VideoHeader
    from videox2l.video import VideoReport


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    app.command("check")(check)
    app.command("plan")(plan)
    app.command("doctor")(doctor)


@command
def plan(
    video: Annotated[
        str,
        typer.Argument(help="A video file, of which the header is read; or a length such as 1:00:00.", metavar="VIDEO"),
    ],
    model: Model = "demo",
    gpu: Annotated[
        str, typer.Option(help='Memory of the device such as 24G, or its class: h100, a100, l4, ..., "cpu".')
    ] = "24G",
    disk: Annotated[str | None, typer.Option(help="Space on disk that the memory may take, such as 2G.")] = None,
    size: Annotated[str | None, typer.Option(help="Size of the pictures, if not the header's: 1280x720.")] = None,
    reload: Annotated[int, typer.Option(help="Chunks to re-load per question.")] = 3,
    *,
    ingesting: IngestOptions,
    loading: LoadOptions,
    as_json: AsJson = False,
) -> None:
    """Tell what a video will need: tokens, memory, disk, seconds; and settings that fit where these do not.

    From the model's config and the video's header alone: no weights are loaded, nothing is decoded.
    """
    from videox2l.cli.console import Screen
    from videox2l.estimate.header import read_header

    screen = Screen(quiet=as_json)
    found = _forecast(screen, read_header(video, size), model, gpu, disk, reload, ingesting, loading)
    if as_json:
        screen.json(found)
    if not found["fits"]:
        raise typer.Exit(1)


@command
def check(
    video: Annotated[str, typer.Argument(help="A video file, or a page of the web (with yt-dlp).", metavar="VIDEO")],
    decode: Annotated[
        bool, typer.Option("--decode", help="Decode every frame too: finds damage that the packets do not show.")
    ] = False,
    model: Annotated[
        str | None,
        typer.Option(help="Tell also what an ingest for this model will need, as x2l plan.", metavar="demo|ID|DIR"),
    ] = None,
    gpu: Annotated[str, typer.Option(help="With --model: the device's memory or class, as of x2l plan.")] = "24G",
    reload: Annotated[int, typer.Option(help="With --model: chunks to re-load per question.")] = 3,
    *,
    ingesting: IngestOptions,
    loading: LoadOptions,
    as_json: AsJson = False,
    given: set[str],
) -> None:
    """Tell what is in a video before anything is made of it: streams, times, colors, damage and holes.

    All its packets are read, and no header is trusted. Exit status 1 if something is damaged or missing.
    """
    from videox2l.cli.console import Screen
    from videox2l.video import inspect_video

    unused = sorted(given - {"--fps"})  # raw streams need --fps for their times
    if model is None and unused:
        raise SettingsError(f"{', '.join(unused)}: no effect without --model; name the model that the video is for")
    screen = Screen(quiet=as_json)
    video = local_video(video, screen)
    with screen.waiting(f"reading {video}"):
        report = inspect_video(video, decode_all=decode, fps=ingesting.fps)
    _show_report(screen, report)
    planned = {}
    if model is not None:
        from videox2l.estimate.header import VideoHeader

        shown = VideoHeader(report.name, report.height, report.width, report.duration, report.fps)
        planned = {"plan": _forecast(screen, shown, model, gpu, None, reload, ingesting, loading)}
    if as_json:
        screen.json({**report.to_dict(), **planned})
    if report.damaged or (planned and not planned["plan"]["fits"]):
        raise typer.Exit(1)


def _forecast(
    screen: Screen,
    shown: VideoHeader,
    model: str,
    gpu: str,
    disk: str | None,
    reload: int,
    ingesting: IngestOptions,
    loading: LoadOptions,
) -> dict[str, Any]:
    """Plan for a video, print what it will need, and return that as JSON values; `fits` says whether it does."""
    from videox2l.estimate.devices import device_for
    from videox2l.estimate.fit import Limits, estimator, fitting
    from videox2l.estimate.forecast import EstimateRequest
    from videox2l.units import parse_bytes

    request = EstimateRequest(ingesting, loading, reload)
    device = device_for(gpu)
    limits = Limits(device.memory, None if disk is None else parse_bytes(disk, "disk"))
    with screen.waiting(f"planning for {model}"):
        from transformers.utils import logging

        logging.disable_progress_bar()
        estimate = estimator(model, shown, device)
        found = estimate(request)
        too_much = any(limits.excess(found))
        fit = fitting(request, found, limits, estimate) if too_much else None
    _show(screen, found, too_much)
    if too_much:
        _show_fit(screen, fit)
    suggestion = None if fit is None else {"changes": list(fit.changes), **fit.forecast.to_dict()}
    return {**found.to_dict(), "fits": not too_much, "suggestion": suggestion}


def _show_report(screen: Screen, report: VideoReport) -> None:
    """Print what is in a video."""
    from videox2l.units import format_bytes, format_range, format_time

    screen.line(f"{report.name}: {report.container}, {format_bytes(report.bytes)}, {format_time(report.duration)}")
    for stream in report.streams:
        told = (stream.codec, stream.detail, stream.language, "this one is read" if stream.used else "")
        screen.line(f"  {stream.kind:<9} {', '.join(word for word in told if word)}")
    rate = "variable frame rate" if report.variable else "constant frame rate"
    screen.line(
        f"  times     {report.frames:,} frames in {report.duration:.3f} s, {report.fps:.4g} per second on average, "
        f"{rate}; key frames at most {report.key_interval:.3g} s apart"
    )
    turned = f", turned by {report.rotation} degrees" if report.rotation else ""
    turned += ", mirrored" if report.mirrored else ""
    turned += f", pixels {report.pixel_aspect:.4g} wide to 1 high" if abs(report.pixel_aspect - 1) > 0.002 else ""
    screen.line(f"  picture   {report.width}x{report.height} as shown{turned}; {report.bits} bits")
    colors = f"transfer {report.transfer or 'not told'}, primaries {report.primaries or 'not told'}"
    hdr = f"HDR ({report.hdr})" if report.hdr else "no HDR"
    screen.line(f"  colors    {hdr}: {colors}")
    if report.decoded is not None:
        screen.line(f"  decoded   {report.decoded:,} of {report.frames:,} frames")
    for start, end in report.holes:
        screen.line(f"  hole      {format_range(start, end)}, {end - start:.1f} s")
    for problem in report.problems:
        screen.line(f"  problem   {problem}")
    how = "every frame was decoded" if report.decoded is not None else "all packets were read, not decoded"
    screen.line(f"{'damaged' if report.damaged else 'no damage found'}: {how}")


@command
def doctor(
    model: Annotated[str, typer.Argument(help="demo, a local directory, or a hub id.", metavar="MODEL")],
    rope_theta: Annotated[
        float | None, typer.Option(help="The rope theta that the model was trained with, if it is an unusual one.")
    ] = None,
    *,
    loading: LoadOptions,
    as_json: AsJson = False,
) -> None:
    """Load a model and prove on the spot that it is served rightly; end with "ok", or with the first difference."""
    from transformers.utils import logging

    from videox2l.cli.console import Screen
    from videox2l.conformance.doctor import diagnose

    logging.disable_progress_bar()
    screen, results = Screen(quiet=as_json), []
    with screen.err.status("files") as status:
        for result in diagnose(
            model, loading, rope_theta=rope_theta, say=lambda step: status.update(f"checking: {step}")
        ):
            results.append(result)
            screen.line(f"{'ok  ' if result.ok else 'FAIL'}  {result.name}: {result.detail}")
    wrong = next((result for result in results if not result.ok), None)
    if as_json:
        screen.json({"model": model, "ok": wrong is None, "findings": [asdict(result) for result in results]})
    screen.line("ok" if wrong is None else f"first difference: {wrong.name}: {wrong.detail}")
    if wrong is not None:
        raise typer.Exit(1)


def _show(screen: Screen, found: Forecast, too_much: bool) -> None:
    """Print a forecast."""
    from videox2l.units import format_bytes, format_time

    asked, seconds = found.question, found.seconds
    disk = ", ".join(f"{name} {format_bytes(count)}" for name, count in found.disk.items())
    ingest, length = seconds["ingest"], seconds["video"] or 0.0
    screen.line(
        f"{found.video} ({format_time(length)}), {found.model}, {found.device} with {format_bytes(found.memory)}"
    )
    screen.line(
        f"  video     {found.frames:,} frames, {found.tokens:,} visual tokens, {found.chunks:,} chunks of "
        f"{found.tokens_per_chunk:,}, {found.settings['window_chunks']:,} in a forward"
    )
    screen.line(
        f"  prefill   {_flops(found.vision_flops)} in the vision tower, {_flops(found.language_flops)} in the language "
        "model"
    )
    screen.line(f"  ingest    {_peak(found.ingest)}")
    screen.line(f"  question  {_peak(asked.peak)}")
    screen.line(
        f"            {asked.tokens:,} of {asked.full:,} tokens attended ({asked.tokens / asked.full:.1%}), "
        f"{format_bytes(asked.reloaded)} re-loaded; "
        f"{_flops(asked.flops)} ({_flops(asked.selection_flops)} to select), then {_flops(asked.decode_flops)} a token"
    )
    screen.line(
        f"  disk      {format_bytes(sum(found.disk.values()))}: {disk}; in host memory {format_bytes(found.host)}"
    )
    screen.line(
        f"  peak      about {format_bytes(found.peak)} (weights + H + activations of one window): an estimate, "
        "docs/loading.md"
    )
    if ingest is None or asked.first_token is None or asked.next_token is None:
        screen.line(f"  seconds   {found.calibration}")
    else:
        screen.line(
            f"  seconds   about {_time(ingest)} to ingest, {_time(asked.first_token)} to the first token, "
            f"{_time(asked.next_token)} for each other; measured: {found.calibration}"
        )
    for note in found.notes:
        screen.line(f"  note: {note}")
    screen.line("this fits" if not too_much else "this does not fit")


def _show_fit(screen: Screen, fit: Fit | None) -> None:
    """Print settings that fit, or that there are none."""
    from videox2l.units import format_bytes

    if fit is None:
        screen.line("nothing near these settings fits: a smaller model, a larger device, or a shorter part is needed")
        return
    found = fit.forecast
    screen.line(
        f"this would: {'; '.join(fit.changes)}\n  {found.tokens:,} visual tokens, "
        f"{format_bytes(found.peak)} on the device, {format_bytes(sum(found.disk.values()))} on disk"
    )


def _peak(peak: Peak) -> str:
    from videox2l.units import format_bytes

    parts = [("weights", peak.weights), ("caches", peak.caches), ("activations", peak.activations)]
    parts += [("levels", peak.levels)] * (peak.levels > 0) + [("CUDA itself", peak.overhead)] * (peak.overhead > 0)
    return f"about {format_bytes(peak.total)} on the device: " + ", ".join(
        f"{name} {format_bytes(count)}" for name, count in parts
    )


def _flops(count: float) -> str:
    for unit in ("MFLOP", "GFLOP", "TFLOP"):
        count /= 1e6 if unit == "MFLOP" else 1e3
        if count < 1000:
            return f"{count:.3g} {unit}"
    return f"{count / 1e3:.3g} PFLOP"


def _time(seconds: float) -> str:
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms" if seconds >= 0.01 else f"{seconds * 1e3:.2g} ms"
    return f"{seconds:.2g} s" if seconds < 100 else f"{seconds / 60:.0f} min"
