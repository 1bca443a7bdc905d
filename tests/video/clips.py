"""Clips made for the tests, and an oracle that knows nothing of the reader: decode everything, then choose."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np

MEDIA = Path(__file__).parents[1] / "media"


def pictures(count, width=96, height=64, seed=0):
    """Moving texture, a moving box and noise: enough for an encoder to use all its kinds of frames."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (height // 4, width // 4, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    for i in range(count):
        y, x = i * 2 % height, i * 3 % width
        picture = texture[y : y + height, x : x + width].astype(np.int16)
        picture += rng.integers(-8, 9, picture.shape, dtype=np.int16)
        picture[height // 3 : height // 3 + 16, i * 5 % width :][:, :16] = (i * 7 % 256, 40, 200)
        yield np.resize(picture.clip(0, 255).astype(np.uint8), (height, width, 3))


def write(
    path,
    count=90,
    rate=30,
    codec="libx264",
    size=(96, 64),
    params=None,
    options=None,
    pix_fmt="yuv420p",
    times=None,
    rotation=None,
    container=None,
    sound=False,
):
    """Encode a clip. times: pts of each frame in units of 1 / rate s. params: for x264 or x265."""
    options = dict(options or {})
    if codec == "libx264":
        options["x264-params"] = params or "keyint=30:bframes=3"
    if codec == "libx265":
        options["x265-params"] = "log-level=none:" + (params or "keyint=30")
    with av.open(str(path), "w", options=container or {}) as box:
        stream = box.add_stream(codec, rate=rate, options=options)
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.codec_context.thread_count = 1
        stream.codec_context.time_base = Fraction(1, rate)
        if rotation is not None:
            stream.set_display_rotation(rotation)
        voice = box.add_stream("aac", rate=8000, layout="mono") if sound else None
        for picture, pts in zip(pictures(count, *size), times or itertools.count(), strict=False):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts, frame.time_base = pts, Fraction(1, rate)
            box.mux(stream.encode(frame))
        box.mux(stream.encode())
        if voice:
            for k in range(int(count / rate * 8000 / 1024)):
                part = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), "fltp", "mono")
                part.rate, part.pts = 8000, k * 1024
                box.mux(voice.encode(part))
            box.mux(voice.encode())
    return path


def cut(source, target, share):
    data = Path(source).read_bytes()
    Path(target).write_bytes(data[: int(len(data) * share)])
    return target


def plain(name, **how):
    return lambda folder: write(folder / name, **how)


def joined(folder):
    """Write a stream twice in a row. Continuity counters go on, so that only the times tell where it is joined."""
    data = bytearray(write(folder / "part.ts", count=60).read_bytes() * 2)
    counters = {}
    for at in range(0, len(data), 188):
        pid = (data[at + 1] & 0x1F) << 8 | data[at + 2]
        with_payload = bool(data[at + 3] & 0x10)
        counters[pid] = (counters.get(pid, -1) + with_payload) % 16
        data[at + 3] = data[at + 3] & 0xF0 | counters[pid]
    (folder / "joined.ts").write_bytes(data)
    return folder / "joined.ts"


#: name -> function that makes the clip in a folder
MAKE: dict[str, Callable[[Path], Path]] = {
    "plain.mp4": plain("plain.mp4", count=120),
    "long_gop.mkv": plain("long_gop.mkv", count=120, params="keyint=250:scenecut=0:bframes=8"),
    "short_gop.mp4": plain("short_gop.mp4", count=120, params="keyint=5:scenecut=0"),
    "open_gop.ts": plain("open_gop.ts", params="keyint=20:open-gop=1:bframes=3"),
    "refresh.mkv": plain("refresh.mkv", params="keyint=20:intra-refresh=1:bframes=0"),
    "offset.ts": plain("offset.ts", times=range(44, 134)),
    "vfr.mkv": plain("vfr.mkv", times=[*range(40), *range(40, 200, 10), *range(200, 234)]),
    "slow.mp4": plain("slow.mp4", count=20, rate=2),
    "odd.mp4": plain("odd.mp4", count=40, size=(97, 63), pix_fmt="yuv444p"),
    "hevc.mp4": plain("hevc.mp4", codec="libx265"),
    "layers.mp4": plain("layers.mp4", codec="libx265", params="keyint=30:temporal-layers=3"),
    "layers.ts": plain("layers.ts", codec="libx265", params="keyint=30:temporal-layers=3"),
    "vp8.webm": plain("vp8.webm", count=60, codec="libvpx", options={"g": "20", "deadline": "realtime"}),
    "vp9.webm": plain("vp9.webm", count=60, codec="libvpx-vp9", options={"g": "20", "deadline": "realtime"}),
    "av1.mkv": plain("av1.mkv", count=60, codec="libsvtav1", options={"preset": "12", "g": "20"}),
    "mpeg4.mp4": plain("mpeg4.mp4", codec="mpeg4", options={"bf": "2"}),
    "mpeg2.mpg": plain("mpeg2.mpg", count=60, codec="mpeg2video", options={"bf": "2"}, size=(256, 160)),
    "mpeg2.mxf": plain("mpeg2.mxf", count=30, rate=25, codec="mpeg2video"),
    "wmv2.wmv": plain("wmv2.wmv", codec="wmv2"),
    "h264.flv": plain("h264.flv"),
    "h264.avi": plain("h264.avi"),
    "mpeg4.avi": plain("mpeg4.avi", codec="mpeg4", options={"bf": "2"}),
    "fragmented.mp4": plain("fragmented.mp4", container={"movflags": "frag_keyframe+empty_moov"}),
    "interlaced.ts": plain("interlaced.ts", rate=25, params="keyint=25:interlaced=1:tff=1", size=(96, 96)),
    "sound.mp4": plain("sound.mp4", sound=True),
    "joined.ts": joined,
}  # fmt: skip
SHIPPED = ["nasa_13013.mp4", "av1_video.mkv", "h265_video.mp4", "h264_10bits.mp4", "video_90.mov", "unordered.mov"]


@dataclass(frozen=True)
class Truth:
    """Every frame of a file: seconds since the first one, and the picture as shown."""

    seconds: list[float]
    images: list[np.ndarray]


@cache
def truth(path: Path) -> Truth:
    ticks, images = [], []
    with av.open(str(path)) as box:
        stream = box.streams.best("video")
        base = stream.time_base
        for frame in box.decode(stream):
            ticks.append(frame.pts)
            images.append(np.rot90(frame.to_ndarray(format="rgb24"), k=frame.rotation // 90))
    if path.name == "joined.ts":  # the second half starts anew; a frame lasts 3000 ticks
        half = len(ticks) // 2
        ticks[half:] = [t + half * 3000 for t in ticks[half:]]
    if path.suffix == ".avi":  # times are right as a set, but not assigned to the right frames
        ticks.sort()
    assert ticks == sorted(ticks), "the oracle needs frames in order"
    return Truth([float((t - ticks[0]) * base) for t in ticks], images)


def brute_force(seconds, fps, start=None, end=None):
    """Walk the grid start + k / fps and take the first frame at or after each point, each frame once."""
    start = start or 0.0
    inside = [i for i, t in enumerate(seconds) if start - 1e-6 <= t < (end or math.inf) - 1e-6]
    if fps is None:
        return inside
    taken = []
    for k in range(int((seconds[-1] - start) * fps + 2)):
        found = next((i for i in inside if seconds[i] >= start + k / fps - 1e-6), None)
        if found is not None and found not in taken:
            taken.append(found)
    return taken
