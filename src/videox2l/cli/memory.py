"""Commands about memories on disk. torch and transformers are imported inside those that need a model."""

from __future__ import annotations

import contextlib
import sys
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videox2l.cli.options import (
    AsJson,
    Check,
    ChunkFrames,
    CompressorName,
    Device,
    DeviceMap,
    Dtype,
    Embedder,
    End,
    Fps,
    HBits,
    History,
    LBits,
    LTier,
    MaxFrames,
    MaxPixels,
    Model,
    Quantize,
    Ratios,
    Revision,
    SamplingMode,
    Start,
    Subtitles,
    load_from_options,
    number,
    user_errors,
)
from videox2l.errors import SettingsError

if TYPE_CHECKING:
    from videox2l.video import FrameSource

MemoryArg = Annotated[str, typer.Argument(help="A memory: a folder, or a URL such as s3://...", metavar="MEMORY")]
FolderArg = Annotated[Path, typer.Argument(help="A folder that holds memories.", metavar="FOLDER")]


def register(app: typer.Typer) -> None:
    """Add the commands to the command line."""
    for name, command in (
        ("ingest", ingest),
        ("inspect", inspect),
        ("verify", verify),
        ("ls", list_memories),
        ("rm", remove),
        ("export", export),
        ("import", import_memory),
        ("gc", collect),
    ):
        app.command(name)(command)


def ingest(
    video: Annotated[str, typer.Argument(help="A video file; with --follow also - or a URL.", metavar="VIDEO")],
    memory: Annotated[Path, typer.Argument(help="The folder to write, or to go on with.", metavar="MEMORY")],
    model: Model = "demo",
    fps: Fps = None,
    max_frames: MaxFrames = None,
    start: Start = None,
    end: End = None,
    sampling: SamplingMode = "auto",
    ratios: Ratios = "2,32",
    compressor: CompressorName = None,
    history: History = "H",
    l_tier: LTier = "stored",
    l_bits: LBits = None,
    h_bits: HBits = None,
    chunk_frames: ChunkFrames = None,
    embedder: Embedder = None,
    max_pixels: MaxPixels = None,
    subtitles: Subtitles = None,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="The video still runs: a file that grows, - for a pipe, or a URL such as rtsp://... that you trust. "
            "A memory that is there is appended to.",
        ),
    ] = False,
    idle: Annotated[float, typer.Option(help="With --follow: a file that did not grow for so many seconds ended.")] = 5,
    device: Device = None,
    dtype: Dtype = "auto",
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    revision: Revision = None,
    check: Check = True,
    as_json: AsJson = False,
) -> None:
    """Read a video into a memory on disk. Stopped at any time, the same command goes on from the last whole chunk."""
    with user_errors():
        parsed = tuple(number(part, "ratios") for part in ratios.split(","))
        if fps is None and max_frames is None:
            fps = 1.0
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.folder import is_memory
        from videox2l.memory.disk.writer import check_target
        from videox2l.memory.memory import Memory
        from videox2l.video import FollowSource, FrameSampling, open_video
        from videox2l.video.subtitles import read_subtitles

        check_target(memory)
        screen = Screen(quiet=as_json)
        frames = FrameSampling(fps=fps, max_frames=max_frames, start=start, end=end, mode=sampling)  # type: ignore[arg-type]
        lines = read_subtitles(subtitles, video) if subtitles is not None else ()
        with contextlib.ExitStack() as stack:
            source: FrameSource
            if follow:
                if max_frames is not None or start is not None or end is not None:
                    raise SettingsError("--max-frames, --start and --end do not go with --follow: its end is not known")
                source = FollowSource(video, fps=fps or 1.0, idle=idle)
            else:
                source = stack.enter_context(open_video(video, frames))
            x2l = load_from_options(
                model,
                device,
                dtype,
                max_pixels,
                screen,
                device_map=device_map,
                quantize=quantize,
                revision=revision,
                check=check,
            )
            progress = stack.enter_context(screen.ingest_bar(Path(video).name))
            if follow and is_memory(memory):
                made = Memory.load(memory)
                if made.is_new_source(source.manifest.sha256):
                    x2l.append(made, source, progress=progress)
                    screen.memory(made, saved=memory)
                    return
            made = x2l.ingest(
                source,
                ratios=parsed,
                compressor=compressor,
                history=history,
                l_tier=l_tier,
                l_bits=l_bits,
                h_bits=h_bits,
                chunk_frames=chunk_frames,
                embedder=embedder,
                store=memory,
                subtitles=lines,
                live=follow,
                progress=progress,
            )
        screen.memory(made, saved=memory)
        if as_json:
            screen.json(made.summary())


def inspect(memory: MemoryArg, as_json: AsJson = False) -> None:
    """Show what a memory is made of: levels, bytes, times, settings, and the model that made it."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import inspect as look
        from videox2l.units import format_bytes, format_range

        found = look(memory)
        screen = Screen(quiet=as_json)
        if as_json:
            screen.json(found)
            return
        times = format_range(found["start"], found["end"]) if found["chunks"] else "nothing yet"
        screen.line(f"{found['path']}: {found['source']}, {times}{'' if found['complete'] else ', not complete'}")
        screen.line(f"  {found['frames']} frames, {found['chunks']} chunks, {found['visual_tokens']:,} visual tokens")
        for ratio, tokens in found["levels"].items():
            screen.line(f"  level 1/{ratio}: {tokens:,} tokens")
        screen.line("  bytes: " + ", ".join(f"{name} {format_bytes(count)}" for name, count in found["bytes"].items()))
        for name in ("settings", "identity", "shape", "content"):
            screen.line(f"  {name}: " + ", ".join(f"{key} {_brief(value)}" for key, value in found[name].items()))


def verify(memory: MemoryArg) -> None:
    """Read every byte of a memory against its hash. Exit status 1 and the names of what is damaged, if anything is."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.folder import verify as check
        from videox2l.memory.disk.reader import open_source
        from videox2l.memory.disk.stores import open_store

        wrong = check(memory)
        for line in wrong:
            sys.stderr.write(f"error: {line}\n")
        if wrong:
            raise typer.Exit(1)
        journal = open_source(open_store(memory)).journal
        rest = "" if journal.facts is not None else "; the ingest is not complete"
        Screen().line(f"{memory}: {len(journal.chunks)} chunks, every byte as it was written{rest}")


def list_memories(folder: FolderArg = Path(), as_json: AsJson = False) -> None:
    """List the memories in a folder."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import find
        from videox2l.units import format_bytes, format_time

        found, wrong = find(folder)
        screen = Screen(quiet=as_json)
        if as_json:
            screen.json([entry.to_dict() for entry in found])
        for entry in reversed(found):
            used = datetime.fromtimestamp(entry.used).strftime("%Y-%m-%d %H:%M")
            state = "" if entry.complete else "  not complete"
            screen.line(
                f"{entry.path.name}  {format_time(entry.seconds)}  {entry.chunks} chunks  "
                f"{format_bytes(entry.nbytes)}  used {used}  {entry.source}{state}"
            )
        for line in wrong:
            sys.stderr.write(f"warning: {line}\n")


def remove(
    memories: Annotated[list[Path], typer.Argument(help="Folders of memories.", metavar="MEMORY...")],
) -> None:
    """Delete memories. Other files in their folders are left alone."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import remove as delete
        from videox2l.units import format_bytes

        for path in memories:
            Screen().line(f"deleted {path}, {format_bytes(delete(path))}")


def export(
    memory: MemoryArg,
    file: Annotated[Path, typer.Argument(help="The file to write, such as lecture.zip.", metavar="FILE")],
) -> None:
    """Pack a memory into one file (a zip archive without compression), to be moved or kept."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import export as pack
        from videox2l.units import format_bytes

        Screen().line(f"{file}: {format_bytes(pack(memory, file))}")


def import_memory(
    file: Annotated[Path, typer.Argument(help="A file that `x2l export` wrote.", metavar="FILE")],
    memory: Annotated[Path, typer.Argument(help="The folder to write.", metavar="MEMORY")],
) -> None:
    """Unpack an exported memory into a folder; every byte is checked before it is put there."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import entry_of, import_

        import_(file, memory)
        Screen().line(f"{memory}: {entry_of(memory).chunks} chunks")


def collect(
    folder: FolderArg,
    quota: Annotated[str, typer.Option(help="What all may take together, such as 500MB or 20GB.")],
) -> None:
    """Delete memories, those not opened for longest first, until the rest is within the quota."""
    with user_errors():
        limit = _bytes(quota)
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import collect as sweep
        from videox2l.units import format_bytes

        gone = sweep(folder, limit)
        for entry in gone:
            Screen().line(f"deleted {entry.path}, {format_bytes(entry.nbytes)}")
        if not gone:
            Screen().line("nothing to delete")


def _bytes(text: str) -> int:
    units = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "B": 1.0}
    upper = text.strip().upper()
    for unit, factor in units.items():
        if upper.endswith(unit):
            return int(number(upper.removesuffix(unit), "quota") * factor)
    if not upper.isdecimal():
        raise SettingsError(f"quota: '{text}' is no size; write such as 500MB or 20GB")
    return int(upper)


def _brief(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text
