"""What is in a video file, before anything is made of it: streams, times, colors, damage."""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from videox2l.video.decode import Damage, decode, exact_plan, find_stream, first_frame
from videox2l.video.files import admit, open_container
from videox2l.video.holes import Gaps
from videox2l.video.orientation import Display
from videox2l.video.reader import declared_seconds, late_start, oddities
from videox2l.video.sampling import FrameSampling, choose
from videox2l.video.timeline import Timeline, scan

_HDR = {16: "PQ", 18: "HLG"}  # transfer characteristics of ITU-T H.273
_PRIMARIES = {1: "BT.709", 5: "BT.601 (625)", 6: "BT.601 (525)", 9: "BT.2020", 12: "Display P3"}
_TRANSFERS = {1: "BT.709", 6: "BT.601", 13: "sRGB", 14: "BT.2020", 15: "BT.2020", **_HDR}
_UNKNOWN_LANGUAGES = (None, "", "und")


@dataclass(frozen=True)
class StreamSummary:
    """One stream of a file: `kind` (video, audio, subtitle, data), `codec`, `language` or None, and `detail` in words.

    `used`: it is the video stream that is read.
    """

    kind: str
    codec: str
    language: str | None
    detail: str
    used: bool = False


@dataclass(frozen=True)
class VideoReport:
    """What is in a video file.

    `duration` in seconds from packet times, `declared` by the headers (None: not told); `frames` and `fps`, their
    number and average rate; `variable`: the time from frame to frame changes; `width`, `height` as shown, `coded` the
    size as stored (width, height); `rotation` degrees counter-clockwise, `mirrored`; `pixel_aspect` width by height of
    a pixel; `bits` per component; `transfer`, `primaries` names or None where the file does not tell; `hdr` "PQ", "HLG"
    or None; `key_interval` longest time between key frames in seconds; `holes` (start, end) in seconds; `problems`,
    damage and oddities, a sentence each; `damaged`: some of it is damage or a hole; `decoded`: frames that came out of
    the decoder, None if nothing was decoded.
    """

    name: str
    container: str
    bytes: int
    streams: tuple[StreamSummary, ...]
    duration: float
    declared: float | None
    frames: int
    fps: float
    variable: bool
    width: int
    height: int
    coded: tuple[int, int]
    rotation: int
    mirrored: bool
    pixel_aspect: float
    bits: int
    transfer: str | None
    primaries: str | None
    hdr: str | None
    key_interval: float
    holes: tuple[tuple[float, float], ...]
    problems: tuple[str, ...]
    damaged: bool
    decoded: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as plain JSON values."""
        return asdict(self)


def inspect_video(path: str | os.PathLike[str], *, decode_all: bool = False, fps: float | None = None) -> VideoReport:
    """Read every packet of a file's video stream and tell what is in it; with `decode_all` decode every frame too.

    `fps`: frames per second of a raw stream that carries no times. Raises VideoError for what is no readable video.
    """
    local = admit(path)
    picture = first_frame(local)
    with open_container(local) as container:
        stream = find_stream(container, local.name)
        streams = tuple(_summary(one, one.index == stream.index) for one in container.streams)
        timeline = scan(container, stream, picture.pts, local.name, fps)
        declared, late = declared_seconds(container, stream), late_start(container, stream)
        aspect, name = stream.sample_aspect_ratio, container.format.name
    choice = choose(timeline.seconds, timeline.duration, FrameSampling(fps=None))
    gaps, damage, decoded = Gaps.of(timeline, choice, declared), Damage(), None
    if decode_all:
        decoded, before = 0, choice.first
        plan = exact_plan(timeline, choice)
        for _, index in decode(local, timeline, plan, damage):
            gaps.meet(timeline, plan.samples, before, index)
            before, decoded = index + 1, decoded + 1
        gaps.meet(timeline, plan.samples, before, choice.last)
    display = Display.of(picture, aspect)
    return VideoReport(
        name=local.name,
        container=name,
        bytes=local.stat().st_size,
        streams=streams,
        duration=timeline.duration,
        declared=declared,
        frames=len(timeline.position),
        fps=len(timeline.position) / timeline.duration if timeline.duration > 0 else 0.0,
        variable=_variable(timeline),
        width=display.size[1],
        height=display.size[0],
        coded=(display.coded[1], display.coded[0]),
        rotation=display.orientation.degrees,
        mirrored=display.orientation.mirrored,
        pixel_aspect=float(aspect or 1),
        bits=max(component.bits for component in picture.format.components),
        transfer=_TRANSFERS.get(picture.color_trc),
        primaries=_PRIMARIES.get(picture.color_primaries),
        hdr=_HDR.get(picture.color_trc),
        key_interval=_key_interval(timeline),
        holes=tuple(gaps.found),
        problems=tuple(display.remarks() + oddities(timeline, late) + damage.sentences() + gaps.sentences()),
        damaged=bool(gaps.found or damage.sentences() or timeline.demux_errors or timeline.torn or timeline.mistimed),
        decoded=decoded,
    )


def _variable(timeline: Timeline) -> bool:
    """Return whether frames last differently: by more than a rounding of times to the file's ticks explains."""
    steps = np.diff(timeline.shown)
    return bool(len(steps)) and int(np.ptp(steps)) > max(2, 0.02 * float(np.median(steps)))


def _key_interval(timeline: Timeline) -> float:
    keys = np.sort(timeline.pts[timeline.keys])
    seconds = [timeline.seconds_at(int(ticks)) for ticks in keys]
    return float(np.diff([*seconds, timeline.duration]).max()) if seconds else timeline.duration


def _summary(stream: Any, used: bool) -> StreamSummary:
    context, detail = stream.codec_context, ""
    if stream.type == "video":
        detail = f"{stream.width}x{stream.height}" if context else ""
    elif stream.type == "audio" and context:
        detail = f"{context.sample_rate} Hz, {context.layout.name}"
    language = stream.metadata.get("language")
    codec = context.codec.canonical_name if context else "unknown"
    return StreamSummary(stream.type, codec, None if language in _UNKNOWN_LANGUAGES else language, detail, used)
