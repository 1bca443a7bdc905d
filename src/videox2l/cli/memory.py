"""The commands `x2l memory ...`, about memories on disk."""

from __future__ import annotations

import sys
from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from videox2l.cli.options import AsJson, MemoryArg, check_there, user_errors
from videox2l.errors import SettingsError
from videox2l.units import parse_bytes

FolderArg = Annotated[Path, typer.Argument(help="A folder that holds memories.", metavar="FOLDER")]
app = typer.Typer(
    help="Memories on disk: list, inspect, verify, move, delete.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.command("inspect")
def inspect(memory: MemoryArg, as_json: AsJson = False) -> None:
    """Show what a memory is made of: levels, bytes, times, settings, and the model that made it."""
    with user_errors():
        check_there(memory, memory=True)
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
        screen.line(
            f"  {found['frames']} frames, {found['chunks']} chunks, at most {found['window_chunks']} in a forward, "
            f"{found['visual_tokens']:,} visual tokens"
        )
        for ratio, tokens in found["levels"].items():
            screen.line(f"  level 1/{ratio}: {tokens:,} tokens")
        screen.line("  bytes: " + ", ".join(f"{name} {format_bytes(count)}" for name, count in found["bytes"].items()))
        for name in ("settings", "identity", "shape", "content"):
            screen.line(f"  {name}: " + ", ".join(f"{key} {_brief(value)}" for key, value in found[name].items()))


@app.command("verify")
def verify(memory: MemoryArg) -> None:
    """Read every byte of a memory against its hash. Exit status 1 and the names of what is damaged, if anything is."""
    with user_errors():
        check_there(memory, memory=True)
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.folder import verify as check
        from videox2l.memory.disk.source import open_source
        from videox2l.memory.disk.stores import open_store

        wrong = check(memory)
        for line in wrong:
            sys.stderr.write(f"error: {line}\n")
        if wrong:
            raise typer.Exit(1)
        journal = open_source(open_store(memory)).journal
        rest = "" if journal.facts is not None else "; the ingest is not complete"
        Screen().line(f"{memory}: {len(journal.chunks)} chunks, every byte as it was written{rest}")


@app.command("ls")
def list_memories(folder: FolderArg = Path(), as_json: AsJson = False) -> None:
    """List the memories in a folder."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.cli.remote import server_client
        from videox2l.units import format_bytes, format_time

        server = server_client()
        if server is not None:
            if folder != Path():
                raise SettingsError(f"'{folder}' is a folder of this machine: leave it out with --server")
            found, wrong = server.get("/v1/library")["data"], list[str]()
        else:
            from videox2l.memory.disk.library import find

            entries, wrong = find(folder)
            found = [entry.to_dict() for entry in entries]
        screen = Screen(quiet=as_json)
        if as_json:
            screen.json(found)
        for entry in reversed(found):
            used = datetime.fromtimestamp(entry["used"]).strftime("%Y-%m-%d %H:%M")
            state = "" if entry["complete"] else "  not complete"
            screen.line(
                f"{Path(entry['path']).name}  {format_time(entry['seconds'])}  {entry['chunks']} chunks  "
                f"{format_bytes(entry['nbytes'])}  used {used}  {entry['source']}{state}"
            )
        for line in wrong:
            sys.stderr.write(f"warning: {line}\n")


@app.command("rm")
def remove(
    memories: Annotated[list[Path], typer.Argument(help="Folders of memories.", metavar="MEMORY...")],
) -> None:
    """Delete memories. Other files in their folders are left alone."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.cli.remote import server_client
        from videox2l.units import format_bytes

        server = server_client()
        if server is not None:
            for path in memories:
                server.get(f"/v1/memories/{path}", "DELETE")
                Screen().line(f"deleted {path}")
            return
        check_there(*memories, memory=True)
        from videox2l.memory.disk.library import remove as delete

        for path in memories:
            Screen().line(f"deleted {path}, {format_bytes(delete(path))}")


@app.command("export")
def export(
    memory: MemoryArg,
    file: Annotated[Path, typer.Argument(help="The file to write, such as lecture.zip.", metavar="FILE")],
) -> None:
    """Pack a memory into one file (a zip archive without compression), to be moved or kept."""
    with user_errors():
        check_there(memory, memory=True)
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import export as pack
        from videox2l.units import format_bytes

        Screen().line(f"{file}: {format_bytes(pack(memory, file))}")


@app.command("import")
def import_memory(
    file: Annotated[Path, typer.Argument(help="A file that `x2l memory export` wrote.", metavar="FILE")],
    memory: Annotated[Path, typer.Argument(help="The folder to write.", metavar="MEMORY")],
) -> None:
    """Unpack an exported memory into a folder; every byte is checked before it is put there."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import entry_of, import_

        import_(file, memory)
        Screen().line(f"{memory}: {entry_of(memory).chunks} chunks")


subtitles = typer.Typer(help="Subtitles of a memory.", no_args_is_help=True)
app.add_typer(subtitles, name="subtitles")


@subtitles.command("add")
def add_subtitles(
    memory: MemoryArg,
    file: Annotated[
        str,
        typer.Argument(
            help='SRT or VTT, or a video with a text track; with --server also "embedded": that of its own video.',
            metavar="FILE",
        ),
    ],
) -> None:
    """Give a memory subtitles, in place of those that it has. Selector text searches them."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.cli.remote import server_client

        screen, server = Screen(), server_client()
        if server is not None:
            count = server.add_subtitles(memory, file, screen)
        else:
            from videox2l.memory import Memory
            from videox2l.video.subtitles import subtitles_in

            lines = subtitles_in(file)
            Memory.load(memory).set_subtitles(lines)
            count = len(lines)
        screen.line(f"{memory}: {count} lines of subtitles")


@app.command("transcribe")
def transcribe(
    memory: MemoryArg,
    video: Annotated[Path, typer.Argument(help="The video file that the memory was made of.", metavar="VIDEO")],
    model: Annotated[str, typer.Option(help="Whisper model: a size, a folder or a hub id.", metavar="MODEL")] = "base",
    language: Annotated[str | None, typer.Option(help="Such as en. [default: found in the sound]")] = None,
    audio_track: Annotated[int, typer.Option(min=1, help="Which sound track, counted from 1.")] = 1,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, ...")] = "cpu",
) -> None:
    """Write down what is said in a memory's video, as subtitles in place of those there. Goes on when stopped."""
    with user_errors():
        from videox2l.cli.console import Screen
        from videox2l.ingest import transcribe as write_down
        from videox2l.memory import Memory
        from videox2l.units import format_time

        screen, opened = Screen(), Memory.load(memory)
        length = int(opened.manifest.get("duration") or 0) or None
        with screen.bar(f"transcribing {video.name}") as update:
            write_down(
                opened,
                video,
                model,
                language=language,
                audio_track=audio_track,
                device=device,
                progress=lambda second: update(int(second), length, f"seconds, at {format_time(second)}"),
            )
        screen.line(f"{memory}: {len(opened.subtitles)} lines of subtitles")


@app.command("gc")
def collect(
    folder: FolderArg,
    quota: Annotated[str, typer.Option(help="What all may take together, such as 500MB or 20GB.")],
) -> None:
    """Delete memories, those not opened for longest first, until the rest is within the quota."""
    with user_errors():
        limit = parse_bytes(quota, "quota")
        from videox2l.cli.console import Screen
        from videox2l.memory.disk.library import collect as sweep
        from videox2l.units import format_bytes

        gone = sweep(folder, limit)
        for entry in gone:
            Screen().line(f"deleted {entry.path}, {format_bytes(entry.nbytes)}")
        if not gone:
            Screen().line("nothing to delete")


def _brief(value: object) -> str:
    text = str(value)
    return text[:12] + "..." if len(text) == 64 else text
