"""Rendering a video of the synthetic world to an mp4 file, with the truth about it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from videox2l.demo.draw import NATIVE, SCALE, Pixels
from videox2l.demo.questions import WorldQuestion, make_questions
from videox2l.demo.world import Event, WorldVideo, make_video
from videox2l.errors import SettingsError

QUESTIONS = {"digit": 3, "colour": 2, "shape": 2, "order": 3, "count": 3, "presence": 2, "pair": 2, "time": 2}
"""At most so many questions of each kind."""
CODECS = {
    "h264": ("libx264", {"preset": "ultrafast", "crf": "20"}),
    "av1": ("libsvtav1", {"preset": "12", "crf": "30"}),
}
GAP = 4
"""Seconds between two events, so that half a frame per second still tells them apart."""
LEAD = 3
"""Seconds before the first event."""


def render_video(
    path: str | Path,
    seed: int,
    minutes: float = 3.0,
    *,
    fps: int = 10,
    events: Sequence[Event] | None = None,
    codec: str = "h264",
    variable: bool = False,
) -> list[dict[str, Any]]:
    """Write a video file of 384x384 pixels and return the questions that can be asked about it.

    Memory does not grow with the length. Sampled at one frame per second and scaled to 48 pixels, the file
    shows what the demo model was trained on.

    Parameters
    ----------
    path
        Where the mp4 file goes.
    seed
        Videos have a split of seeds of their own, so no seed repeats a training video.
    minutes, fps
        Length and frame rate of the file.
    events
        Shown instead of events drawn from the seed; their times are in seconds.
    codec
        "h264" or "av1".
    variable
        Leave out frames here and there, so that the rate varies between a fifth of `fps` and all of it.

    Returns
    -------
    list of dict
        `question`, `answer`, `kind`, and `start` and `end` in seconds of the event that it is about (None
        where the answer is that there is none).
    """
    video = script(seed, minutes, events)
    frames = round(minutes * 60 * fps)
    if fps < 1 or frames < 1:
        raise SettingsError(f"a video needs at least one frame, not {minutes} minutes at {fps} fps")
    write_video(path, video.draw_large, frames, fps=fps, codec=codec, variable=seed if variable else None)
    return [as_row(question) for question in truth(video)]


def write_video(
    path: str | Path,
    draw: Callable[[float], Pixels],
    frames: int,
    *,
    fps: int,
    codec: str = "h264",
    variable: int | None = None,
) -> None:
    """Write `frames` pictures that `draw` makes of their times in seconds, (384, 384, 3) each, to a file.

    `variable`: seed of which frames are left out; None: none are. Other options as of `render_video`.
    """
    if codec not in CODECS:
        raise SettingsError(f"codec '{codec}' is not known: use {', '.join(CODECS)}")
    encoder, options = CODECS[codec]
    left_out = np.random.default_rng([0x7F2, variable or 0])
    with av.open(str(path), "w") as container:
        stream = container.add_stream(encoder, rate=fps, options=options)
        stream.width = stream.height = NATIVE * SCALE
        stream.pix_fmt = "yuv420p"
        stream.time_base = stream.codec_context.time_base = Fraction(1, fps)
        since = 0
        for i in range(frames):
            since += 1
            if variable is not None and since < 5 and i % fps and left_out.random() < 0.5:
                continue
            since = 0
            frame = av.VideoFrame.from_ndarray(draw(i / fps), format="rgb24")
            frame.pts, frame.time_base = i, Fraction(1, fps)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def script(seed: int, minutes: float, events: Sequence[Event] | None = None) -> WorldVideo:
    """Return the script of a video file, a frame of it being a second."""
    seconds = max(1, -int(-minutes * 60 // 1))
    lead, lengths = min(LEAD, seconds // 4), (2, 3, 4)
    video = make_video(seed, seconds, "video", durations=lengths, gap=GAP, lead=lead, repeats=0.9, spread=True)
    if events is None:
        return video
    return WorldVideo(seed, "video", seconds, video.scenes, tuple(sorted(events, key=lambda event: event.start)))


def truth(video: WorldVideo) -> list[WorldQuestion]:
    """Return questions of every kind about a video file."""
    rng = np.random.default_rng([0x7207, video.seed])
    return [question for kind, n in QUESTIONS.items() for question in make_questions(video, rng, n, {kind: 1.0})]


def as_row(question: WorldQuestion) -> dict[str, Any]:
    """Return a question about a video file as a row of JSON; its frames are seconds."""
    times = {name: None if time is None else float(time) for name, time in _ends(question).items()}
    return {"question": question.question, "answer": question.answer, "kind": question.kind, **times}


def _ends(question: WorldQuestion) -> dict[str, int | None]:
    return {"start": question.start, "end": question.end}
