"""The re-loaded moments of answers as clips of the video."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from videox2l.ask.answer import Answer
from videox2l.errors import SettingsError, VideoError
from videox2l.memory import Memory
from videox2l.video import Clip, ClipCutter, content_hash


def find_videos(memories: Mapping[str, Memory], videos: Sequence[str | Path] = ()) -> dict[str, Path]:
    """Return the files that memories were made of, by their names: those of `videos`, or of the current folder.

    Memories of pictures have none. Raises VideoError where one is another file, and SettingsError where one is neither
    named nor there.
    """
    memories = {name: one for name, one in memories.items() if one.manifest.get("container") != "image"}
    found = fitting_videos(memories, videos)
    for name, memory in memories.items():
        source = str(memory.manifest.get("source", ""))
        if name in found:
            continue
        if not (len(memories) == 1 and videos) and not (source and Path(source).is_file()):
            raise SettingsError(
                f"the video '{source or 'of this memory'}' is not in this folder: name it with --video FILE"
            )
        found[name] = Path(videos[0] if len(memories) == 1 and videos else source)
        if not _fits(memory, found[name]):
            raise VideoError(
                f"'{found[name].name}' is not the video that this memory was made of: name that one"
                if len(memories) == 1
                else f"'{found[name].name}' is not the video that '{name}' was made of: name that one with --video FILE"
            )
    return {name: found[name] for name in memories}


def fitting_videos(memories: Mapping[str, Memory], videos: Sequence[str | Path]) -> dict[str, Path]:
    """Return those of `videos` that memories were made of, by the names of these. Raises VideoError for what is none.

    A memory of a stream, whose content has no hash, fits a file of its name.
    """
    found = dict[str, Path]()
    for path in (path for path in map(Path, videos) if not path.is_dir()):
        here = content_hash(path)
        for name, memory in memories.items():
            known = memory.manifest.get("sha256")
            if known == here or (known is None and memory.manifest.get("source") == path.name):
                found.setdefault(name, path)
    return found


def find_video(memory: Memory, video: str | Path | None = None) -> Path:
    """Return the file that one memory was made of; see `find_videos`."""
    found = find_videos({"": memory}, () if video is None else (video,))
    if not found:
        raise SettingsError(
            f"'{memory.manifest.get('source')}' is no video but pictures: leave --video and --clips out"
        )
    return found[""]


def _fits(memory: Memory, path: Path) -> bool:
    known = memory.manifest.get("sha256")
    return known is None or content_hash(path) == known


def save_clips(
    answers: Sequence[Answer],
    memory: Memory,
    folder: str | Path,
    video: str | Path | Sequence[str | Path] | None = None,
) -> list[Clip]:
    """Cut the re-loaded moments of answers out of the video, each once, into a folder, which is made.

    `video`: its file, or those of several; pictures among them have no clips. The names of the clips tell the video and
    the seconds. Raises VideoError, SettingsError; see `find_videos`.
    """
    files = find_videos(memory.by_name, [video] if isinstance(video, (str, Path)) else video or ())
    cutters = {name: ClipCutter(path, fps=memory.by_name[name].manifest.get("fps")) for name, path in files.items()}
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError(f"cannot write clips to '{target}': {error.strerror}") from None
    paths = list(dict.fromkeys(files.values()))
    stems = [path.stem for path in paths]
    stems = [stem if stems.index(stem) == n else f"{stem}-{n + 1}" for n, stem in enumerate(stems)]
    moments = [moment for answer in answers for moment in answer.reloaded if moment.memory in files]
    spans = {(paths.index(files[m.memory]), m.start, m.end): cutters[m.memory] for m in moments}
    return [
        cutter.cut(start, end, target / f"{stems[number]}-{start:.3f}-{end:.3f}")
        for (number, start, end), cutter in sorted(spans.items(), key=lambda item: item[0])
    ]
