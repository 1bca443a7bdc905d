"""Frames that are decoded while the model works on earlier ones."""

from __future__ import annotations

import contextlib
import queue
import threading
from collections.abc import Generator

from videox2l.video.source import Frame, FrameSource


def ahead(source: FrameSource, most: int) -> Generator[Frame, None, None]:
    """Yield the frames of a source, of which up to `most` are decoded by a thread while the model works on others.

    What the source raises is raised behind the frames before it. Closing the iterator ends the thread. A source whose
    end is not known, such as a file that still grows, is read without one: it may wait for long.
    """
    if source.expected_frames is None:
        yield from source
        return
    frames: queue.Queue[Frame | BaseException | None] = queue.Queue(most)
    over = threading.Event()

    def read() -> None:
        try:
            for frame in source:
                frames.put(frame)
                if over.is_set():
                    return
            frames.put(None)
        except BaseException as error:  # whatever it is, it belongs to who reads the frames
            frames.put(error)

    thread = threading.Thread(target=read, name="x2l-frames", daemon=True)
    thread.start()
    try:
        while (found := frames.get()) is not None:
            if isinstance(found, BaseException):
                raise found
            yield found
    finally:
        over.set()
        while thread.is_alive():
            with contextlib.suppress(queue.Empty):
                frames.get_nowait()
            thread.join(0.01)
