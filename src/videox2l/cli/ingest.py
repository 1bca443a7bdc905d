"""The command `x2l ingest`, and reading a video for `x2l ask`."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from videox2l.cli.options import AsJson, Model, Verbose, check_there, command, flag_names, load_model
from videox2l.errors import SettingsError
from videox2l.options import IngestOptions, LoadOptions, ScaleOptions

if TYPE_CHECKING:
    from videox2l.cli.console import Screen
    from videox2l.memory import Memory
    from videox2l.pipeline import VideoX2L

_FLAGS = [
    "--fps",
    "--max-frames",
    "--start",
    "--end",
    "--at",
    "--sampling",
    "--ratios",
    "--compressor",
    "--history",
    "--l-tier",
    "--l-bits",
    "--h-bits",
    "--chunk-frames",
    "--window-chunks",
    "--embedder",
    "--subtitles",
    "--transcribe",
    "--language",
    "--audio-track",
    "--max-pixels",
    "--detail",
]


@command
def ingest(
    video: Annotated[
        str,
        typer.Argument(
            help="A video file, or a page of the web (with yt-dlp); with --follow also - or the URL of a stream.",
            metavar="VIDEO",
        ),
    ],
    memory: Annotated[
        str | None,
        typer.Argument(
            help="The folder or URL (s3://...) to write, or to go on with. With --server left out.", metavar="MEMORY"
        ),
    ] = None,
    more: Annotated[
        list[str] | None, typer.Argument(help="With --library: all arguments are videos, folders, or lists (.txt).")
    ] = None,
    model: Model = "demo",
    *,
    library: Annotated[
        str | None,
        typer.Option(
            help="Ingest many videos with Ray into memories in this folder or URL: x2l ingest --library DIR VIDEO...",
            metavar="DIR|URL",
        ),
    ] = None,
    scaling: ScaleOptions,
    ingesting: IngestOptions,
    follow: Annotated[
        bool,
        typer.Option(
            "--follow",
            help="The video still runs: a file that grows, - for a pipe, or a URL such as rtsp://... that you trust. "
            "A memory that is there is appended to.",
        ),
    ] = False,
    idle: Annotated[float, typer.Option(help="With --follow: a file that did not grow for so many seconds ended.")] = 5,
    loading: LoadOptions,
    verbose: Verbose = False,
    as_json: AsJson = False,
    given: set[str],
) -> None:
    """Read a video into a memory on disk. Stopped at any time, the same command goes on from the last whole chunk."""
    from videox2l.cli.console import Screen
    from videox2l.cli.remote import server_client

    screen = Screen(quiet=as_json, verbose=verbose)
    server = server_client()
    many = [video, *([] if memory is None else [memory]), *(more or ())]
    if library is not None:
        if server is not None or follow:
            raise SettingsError("--library goes with neither --server nor --follow: ingest one video at a time there")
        _ingest_many(many, library, model, loading, ingesting, scaling, screen)
        return
    if more or (unused := [flag for flag in flag_names(ScaleOptions) if flag in given]):
        raise SettingsError(f"{', '.join([*(more or ()), *(unused if not more else ())])}: only with --library")
    if server is not None:
        check_remote(given, {"MEMORY": memory is not None, "--follow": follow})
        name = server.memory_of(video, ingesting, screen)
        summary = server.summary(name)
        screen.memory(summary, saved=f"memory {name} of {server.url}")
        if as_json:
            screen.json(summary)
        return
    if memory is None:
        raise SettingsError("MEMORY is missing: name the folder to write")
    from videox2l.memory.disk.locks import check_store

    check_store(memory)
    if not follow:
        video = local_video(video, screen)
    if follow:
        made = _follow(video, memory, model, loading, ingesting, screen, idle)
    else:
        _, made = read_video(video, model, loading, ingesting, screen, store=memory)
    screen.memory(made.summary(), saved=memory)
    if as_json:
        screen.json(made.summary())


def local_video(video: str, screen: Screen) -> str:
    """Return the path of a video; that of a page of the web is downloaded into the package's cache folder.

    Raises VideoError for a path at which nothing is, and what `download_page` raises.
    """
    from videox2l.video.pages import download_page, is_page

    if not is_page(video):
        check_there(video)
        return video
    from videox2l.memory.disk.object_cache import cache_folder

    with screen.waiting(f"downloading {video}"):
        path = download_page(video, cache_folder() / "pages")
    screen.line(f"downloaded: {path}")
    return str(path)


def _ingest_many(
    arguments: Sequence[str],
    library: str,
    model: str,
    loading: LoadOptions,
    options: IngestOptions,
    scaling: ScaleOptions,
    screen: Screen,
) -> None:
    """Ingest many videos; exit status 1 where some failed."""
    from videox2l.scale import ingest_many, videos_in

    videos = videos_in(arguments)
    with screen.bar(f"ingesting into {library}") as update:
        records = ingest_many(videos, library, model, options, loading=loading, scaling=scaling, progress=update)
    failed = [record for record in records if record.state == "failed"]
    for record in failed:
        screen.line(f"{record.video}: failed after {record.attempt} tries: {record.error}")
    tries = sum(record.attempt - 1 for record in records)
    screen.line(
        f"{len(records) - len(failed)} of {len(records)} videos are in {library}; {tries} tries were repeated; "
        f"report: {library.rstrip('/')}/ingest.jsonl"
    )
    if screen.quiet:
        screen.json([asdict(record) for record in records])
    if failed:
        raise typer.Exit(1)


def read_video(
    video: str,
    model: str,
    loading: LoadOptions,
    options: IngestOptions,
    screen: Screen,
    *,
    store: str | None = None,
    check: Callable[[VideoX2L], None] | None = None,
    loaded: VideoX2L | None = None,
) -> tuple[VideoX2L, Memory]:
    """Load a model and read a video; what is wrong with the video or `check` shows before the hours of an ingest."""
    from videox2l.pipeline import frame_sampling
    from videox2l.video import open_video
    from videox2l.video.subtitles import read_subtitles

    cues = read_subtitles(options.subtitles, video) if isinstance(options.subtitles, (str, Path)) else ()
    options = IngestOptions.from_keywords(options, {"subtitles": cues})
    with open_video(video, frame_sampling(options)) as source:
        x2l = loaded or load_model(model, loading, screen)
        if check is not None:
            check(x2l)
        with screen.ingest_bar(Path(video).name) as progress:
            return x2l, x2l.ingest(source, options, store=store, progress=progress)


def open_videos(
    videos: Sequence[str],
    model: str,
    loading: LoadOptions,
    options: IngestOptions,
    screen: Screen,
    *,
    save: str | None,
    check: Callable[[VideoX2L], None],
    given: Collection[str],
) -> tuple[VideoX2L, Memory]:
    """Load a model, open memories and read videos, in the order in which they are asked about; tell what they hold."""
    from videox2l.memory import Memory
    from videox2l.memory.disk.source import is_memory

    if all(map(is_memory, videos)):
        check_unused(given, videos[0])
    x2l, memories = None, list[Memory]()
    for video in videos:
        if is_memory(video):
            memories.append(Memory.load(video))
            if save is not None:
                memories[-1].save(save)
        else:
            x2l, made = read_video(video, model, loading, options, screen, store=save, check=check, loaded=x2l)
            memories.append(made)
    x2l = x2l or load_model(model, loading, screen)
    opened = x2l.open(memories, videos)  # another model is refused before anything is printed
    for memory in memories:
        screen.memory(memory.summary(), saved=save)
    return x2l, opened


def _follow(
    video: str,
    memory: str,
    model: str,
    loading: LoadOptions,
    options: IngestOptions,
    screen: Screen,
    idle: float,
) -> Memory:
    """Read a video that still runs: into a new memory, or behind the end of the one that is there."""
    from videox2l.memory import Memory
    from videox2l.memory.disk.source import is_memory
    from videox2l.video import FollowSource
    from videox2l.video.subtitles import read_subtitles

    if options.transcribe is not None:
        raise SettingsError(
            "--transcribe does not go with --follow: add it when the video is over (x2l memory transcribe)"
        )
    if any(value is not None for value in (options.max_frames, options.start, options.end, options.at)):
        raise SettingsError("--max-frames, --start, --end and --at do not go with --follow: its end is not known")
    cues = read_subtitles(options.subtitles, video) if isinstance(options.subtitles, (str, Path)) else ()
    options = IngestOptions.from_keywords(options, {"subtitles": cues, "live": True})
    source = FollowSource(video, fps=options.fps or 1.0, idle=idle)
    with contextlib.ExitStack() as stack:
        x2l = load_model(model, loading, screen)
        progress = stack.enter_context(screen.ingest_bar(Path(video).name))
        if is_memory(memory):
            made = Memory.load(memory)
            if made.is_new_source(source.manifest.sha256):
                return x2l.append(made, source, progress=progress)
        return x2l.ingest(source, options, store=memory, progress=progress)


def check_remote(given: Collection[str], flags: Mapping[str, bool]) -> None:
    """Raise SettingsError for flags that a server's client cannot choose: of `flags` and of LoadOptions."""
    wrong = [flag for flag, used in flags.items() if used]
    wrong += [flag for flag in flag_names(LoadOptions) if flag in given]
    if wrong:
        raise SettingsError(f"{', '.join(wrong)}: not with --server, which keeps the model and the memories")


def check_unused(given: Collection[str], memory: str) -> None:
    """Raise SettingsError for flags of an ingest that a finished memory cannot follow any more."""
    unused = [flag for flag in _FLAGS if flag in given and flag != "--max-pixels"]
    if unused:
        raise SettingsError(
            f"{', '.join(unused)}: no effect on '{memory}', which is a memory already; ask the video file instead, or "
            "leave it out"
        )
