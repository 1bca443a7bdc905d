"""`x2l ask --library`: questions about all memories of a folder or bucket."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING

from videox2l.cli.options import flag_names
from videox2l.errors import SettingsError
from videox2l.options import AskOptions, IngestOptions, LibraryOptions

if TYPE_CHECKING:
    from videox2l.ask.library import LibraryAnswer
    from videox2l.cli.console import Screen
    from videox2l.pipeline import VideoX2L


def check_library_flags(given: Collection[str], library: str | None, outputs: Sequence[str]) -> None:
    """Raise SettingsError for flags that need one video, with a library, and for flags of a search without one."""
    from videox2l.cli.remote import server_client

    if library is None:
        if unused := [flag for flag in flag_names(LibraryOptions) if flag in given]:
            raise SettingsError(f"{', '.join(unused)}: only with --library")
        return
    wrong = [*outputs, *(flag for flag in flag_names(IngestOptions) if flag in given)]
    if wrong:
        raise SettingsError(f"{', '.join(wrong)}: not with --library; ask the memory that it finds by itself")
    if server_client() is not None:
        raise SettingsError("--library is a folder of this machine: leave out --server, or ask a memory of it")


def ask_library(
    library: str,
    questions: Sequence[str],
    x2l: VideoX2L,
    searching: LibraryOptions,
    asking: AskOptions,
    screen: Screen,
) -> None:
    """Answer questions from the memories of a library that are found for each."""
    answers = []
    for question in questions:
        screen.question(question)
        answers.append(x2l.ask_library(library, question, asking, searching=searching, on_text=screen.piece))
        screen.answer(answers[-1])
        _tell(answers[-1], screen)
    if screen.quiet:
        screen.json({"answers": [answer.to_dict() for answer in answers]})


def _tell(answer: LibraryAnswer, screen: Screen) -> None:
    memories, chunks = answer.searched
    videos = {moment.memory: moment.video for moment in answer.evidence}
    named = ", ".join(f"{name} ({video})" if video else name for name, video in videos.items())
    screen.line(f"  found in {named}; searched {memories:,} memories, {chunks:,} chunks")
    if screen.verbose:
        for moment in answer.moments:
            screen.line(f"  {moment.where}  {moment.video}  score {moment.score:.3g}")
    for name, why in answer.left_out.items():
        screen.line(f"  left out {name}: {why}")
