"""Decoding a video: which packets to decode so that the chosen frames come out right, and decoding them.

Three savings, all of them free of error in the picture:

* frames that no other frame refers to are not decoded (`skip_frame="NONREF"`), unless they are sampled;
* what follows the last sample in a group of pictures is not decoded, nor are whole groups without one;
* mode "fast" only: a sample moves to a key frame if one is at most half a step away.

Skipping all B-frames (`skip_frame="BIDIR"`) would save more, but P-frames may refer to B-frames (x264 does so by
default, `b-pyramid=normal`), and then the frames that are left come out visibly wrong: 285 of 300 samples of the video
that `benchmarks/video_sampling.py` makes. So it is not used.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import av
import numpy as np
import numpy.typing as npt

from videox2l.errors import VideoError
from videox2l.video.files import open_container
from videox2l.video.sampling import FrameChoice, Mode
from videox2l.video.timeline import Packets, Timeline

#: Codecs whose FFmpeg decoder leaves out unreferenced frames packet by packet, and correctly so.
_NONREF = {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video"}


@dataclass(frozen=True, eq=False)
class DecodePlan:
    """What to decode.

    samples: (n,) int64, presentation-order indices of the frames to give out, ascending.
    runs: (first, last) packet positions, both included, ascending and disjoint; each can be decoded alone.
    nonref: whether unreferenced frames may be left out of the runs.
    mode: "exact" or "fast". note: why it is not the mode that was asked for, or what was done; may be None.
    stop: presentation-order index that no frame given out may reach: the end of the range.
    shift: largest distance in seconds between a sample and the frame of exact mode.
    """

    samples: npt.NDArray[np.int64]
    runs: tuple[tuple[int, int], ...]
    nonref: bool
    mode: Mode
    note: str | None
    stop: int
    shift: float = 0.0


def plan_decoding(timeline: Timeline, choice: FrameChoice, mode: Mode, stream: Any) -> DecodePlan:
    """Choose runs and samples for a mode; falls back to exact where a file gives no ground for skipping."""
    if mode == "exact":
        return exact_plan(timeline, choice)
    obstacle = _obstacle(timeline)
    if obstacle:
        return exact_plan(timeline, choice, f"every frame is decoded: {obstacle}")
    samples, moved = choice.picks, 0
    if mode == "fast" and choice.fps is not None:
        samples = _move_to_keys(timeline, choice, 0.5 / choice.fps)
        moved = int((samples != choice.picks).sum())
    seconds = timeline.seconds
    shift = float(np.abs(seconds[samples] - seconds[choice.picks]).max()) if moved else 0.0
    runs = _merge(sorted((timeline.run_start(p), p) for p in timeline.position[samples].tolist()))
    nonref = _can_skip_unreferenced(stream)
    if len(samples) == len(timeline.position) or (not nonref and runs == exact_plan(timeline, choice).runs):
        return exact_plan(timeline, choice, "every frame is decoded: nothing could be left out")
    note = "frames that no sample depends on were not decoded"
    if moved:
        note += f"; {moved} of {len(samples)} samples moved to key frames, by {shift:.3f} s at most"
    return DecodePlan(samples, runs, nonref, "fast", note, choice.last, shift)


def exact_plan(timeline: Timeline, choice: FrameChoice, note: str | None = None) -> DecodePlan:
    """Decode everything from the key frame before the first pick to the last pick."""
    positions = timeline.position[choice.picks]
    first = 0 if timeline.ordinal else min(timeline.run_start(int(p)) for p in positions[:16])
    last = len(timeline.pts) - 1 if timeline.ordinal else int(positions.max())
    return DecodePlan(choice.picks, ((first, last),), False, "exact", note, choice.last)


def _obstacle(timeline: Timeline) -> str | None:
    if timeline.ordinal:
        return "the container does not keep a presentation time of its own for each frame"
    if not timeline.key.any():
        return "the file marks no key frames"
    return None


def _merge(spans: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    merged: list[tuple[int, int]] = []
    for first, last in spans:
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(last, merged[-1][1]))
        else:
            merged.append((first, last))
    return tuple(merged)


def _move_to_keys(timeline: Timeline, choice: FrameChoice, reach: float) -> npt.NDArray[np.int64]:
    """Replace picks by the nearest key frame within `reach` seconds; each key frame serves its nearest pick."""
    picks, seconds = choice.picks, timeline.seconds
    keys = choice.first + np.flatnonzero(timeline.key[timeline.position[choice.first : choice.last]])
    wanted = seconds[picks]
    right = np.searchsorted(wanted, seconds[keys]).clip(0, len(picks) - 1)
    left = (right - 1).clip(0)
    nearer = np.where(seconds[keys] - wanted[left] <= wanted[right] - seconds[keys], left, right)
    moved = picks.copy()
    best = np.full(len(picks), reach)
    for key, pick in zip(keys.tolist(), nearer.tolist(), strict=True):
        distance = abs(float(seconds[key] - wanted[pick]))
        if distance <= best[pick]:
            best[pick], moved[pick] = distance, key
    return moved


def _can_skip_unreferenced(stream: Any) -> bool:
    codec = stream.codec.canonical_name
    if codec == "hevc":  # "unreferenced" there means: by frames of the same temporal layer
        return _hevc_layers(stream.codec_context.extradata or b"") == 1
    return codec in _NONREF


def _hevc_layers(extradata: bytes) -> int | None:
    """Temporal layers of an HEVC stream from its decoder configuration; None if it does not say."""
    if len(extradata) > 22 and extradata[0] == 1:  # hvcC: numTemporalLayers is 3 bits of byte 21
        return (extradata[21] >> 3 & 7) or None
    start = extradata.find(b"\x00\x00\x01\x40")  # Annex B: a video parameter set, NAL type 32
    if start >= 0 and len(extradata) > start + 6:
        return (extradata[start + 6] >> 1 & 7) + 1
    return None


_FLUSHES = 64  # errors that a decoder may report while it is emptied


class _Surprise(Exception):  # noqa: N818 - never leaves this module
    """The decoder did not deliver what the packets promise. disorder: frames came out of order."""

    def __init__(self, *, disorder: bool = False) -> None:
        self.disorder = disorder


@dataclass
class Damage:
    """What went wrong while decoding. Times are seconds since the first frame."""

    bad_packets: list[float] = field(default_factory=list)
    corrupt_frames: list[float] = field(default_factory=list)
    missed: list[float] = field(default_factory=list)  # planned frames for which no frame came
    careful_from: float | None = None  # where the careful attempt took over
    frames: int = 0  # frames decoded, all attempts together

    def begin(self, due: float) -> None:
        """A careful attempt starts for the sample at `due` seconds: earlier findings are its to make."""
        self.bad_packets, self.corrupt_frames, self.careful_from = [], [], due

    def sentences(self) -> list[str]:
        """What a reader of the manifest needs to know, one sentence each."""
        said = []
        if self.bad_packets:
            said.append(
                f"damaged: {len(self.bad_packets)} packet(s) could not be decoded, "
                f"the first at {self.bad_packets[0]:.3f} s, the last at {self.bad_packets[-1]:.3f} s"
            )
        if self.corrupt_frames:
            said.append(
                f"damaged: {len(self.corrupt_frames)} frame(s) are decoded from incomplete data, "
                f"the first at {self.corrupt_frames[0]:.3f} s, the last at {self.corrupt_frames[-1]:.3f} s"
            )
        if self.missed:
            said.append(f"stopped: no frame could be decoded from {self.missed[0]:.3f} s on")
        return said


def find_stream(container: Any, name: str) -> Any:
    """The best video stream of a container, checked to have a decoder. Raises `VideoError`."""
    stream = container.streams.best("video")
    if stream is None or stream.disposition & av.stream.Disposition.attached_pic:
        raise VideoError(f"{name!r} has no video stream (audio only?). Give a file with pictures.")
    if stream.codec_context is None:
        raise VideoError(
            f"{name!r}: no decoder for its video codec. Re-encode it, e.g. "
            "`ffmpeg -i INPUT -c:v libx264 output.mp4` with an FFmpeg that knows it."
        )
    return stream


def first_frame(path: Path) -> Any:
    """The first frame that a file's decoder gives out. Raises `VideoError` if there is none."""
    with open_container(path) as container:
        stream = find_stream(container, path.name)
        decoder = stream.codec_context
        decoder.thread_type = "SLICE"
        packets = 0
        for packet in chain(Packets(container, stream), [None]):
            packets += packet is not None
            with contextlib.suppress(av.error.FFmpegError):
                for frame in decoder.decode(packet):
                    return frame
        codec = decoder.name
    raise VideoError(
        f"{path.name!r}: not one frame could be decoded ({packets} packets of {codec} tried). The file is "
        "damaged beyond use, or its codec is not supported; try to play it, and re-encode it if it plays."
    )


def decode(path: Path, timeline: Timeline, plan: DecodePlan, damage: Damage) -> Iterator[tuple[Any, int]]:
    """Give out (av frame, presentation-order index) for every sample of the plan, ascending.

    Where a planned frame cannot be decoded, the next one that can takes its place. `damage` is filled in.
    """
    samples = plan.samples.tolist()
    done = 0  # samples dealt with
    attempt = Attempt(path, timeline, plan.runs, damage, ordinal=timeline.ordinal)
    if plan.nonref:
        attempt.wanted = set(timeline.position[plan.samples].tolist())
    while True:
        try:
            for frame, index in attempt.frames():
                if index < samples[done]:
                    continue
                if index > samples[done]:
                    attempt.expect_gap()
                if index >= plan.stop:
                    break
                yield frame, index
                done = int(np.searchsorted(plan.samples, index, side="right"))
                if done == len(samples):
                    return
            attempt.expect_gap()
            damage.missed = [float(timeline.seconds[index]) for index in samples[done:]]
            return
        except _Surprise as surprise:
            attempt = attempt.next(samples[done], disorder=surprise.disorder)


@dataclass
class Attempt:
    """One pass over the packets of a file.

    runs: what to decode. wanted: packets that are never left out; if there are any, unreferenced ones are.
    careful: single-threaded; errors are noted in `damage` and survived, where others end the attempt.
    last: no further attempt follows, so that nothing is a surprise any more.
    ordinal: count frames instead of looking up their times.
    """

    path: Path
    timeline: Timeline
    runs: tuple[tuple[int, int], ...]
    damage: Damage
    wanted: set[int] = field(default_factory=set)
    careful: bool = False
    last: bool = False
    ordinal: bool = False

    def next(self, due: int, *, disorder: bool) -> Attempt:
        """The attempt after this one, for when frame `due` did not come: from its key frame, then from 0."""
        final = self.careful or disorder or self.ordinal
        start = 0 if final else self.timeline.run_start(int(self.timeline.position[due]))
        self.damage.begin(float(self.timeline.seconds[due]))
        return replace(
            self,
            runs=((start, len(self.timeline.pts) - 1),),
            wanted=set(),
            careful=True,
            last=start == 0,
            ordinal=self.ordinal or disorder,
        )

    def expect_gap(self) -> None:
        """A planned frame did not come. Surprising, unless damage was met or no attempt is left."""
        if not self.last and not self.damage.bad_packets:
            raise _Surprise

    def frames(self) -> Iterator[tuple[Any, int]]:
        """Decode the runs; give out every frame with its index."""
        with open_container(self.path) as container:
            stream = find_stream(container, self.path.name)
            decoder = stream.codec_context
            decoder.thread_type = "SLICE" if self.careful else "AUTO"
            if self.careful:
                decoder.thread_count = 1
            runs = iter(self.runs)
            first, final = next(runs)
            previous = -1
            for position, packet in enumerate(Packets(container, stream)):
                if position < first:
                    continue
                if self.wanted:
                    decoder.skip_frame = "DEFAULT" if position in self.wanted else "NONREF"
                decoded = self._decode(decoder, packet, position)
                if position >= final:
                    decoded = chain(decoded, self._flush(decoder))
                for frame in decoded:
                    index = self._index(frame, previous)
                    if index is not None:
                        if previous < 0:
                            self._check_start(first, index)
                        previous = index
                        yield frame, index
                if position >= final:
                    if (following := next(runs, None)) is None:
                        return
                    first, final = following
                    previous = -1
                    decoder.flush_buffers()

    def _check_start(self, first: int, index: int) -> None:
        """Check that the first frame that a run gives out is its key frame, or one that is shown before it.

        A stream may be refreshed bit by bit over many frames ("intra refresh"). Its key frames do not come out when
        decoding starts with them, and the first frames that do need not be right to the last bit.
        """
        shown = self.timeline.shown
        start = int(np.searchsorted(shown, self.timeline.pts[first]))
        if first and not self.ordinal and index > start and shown[start] == self.timeline.pts[first]:
            self.expect_gap()

    def _index(self, frame: Any, previous: int) -> int | None:
        """Presentation-order index of a decoded frame; None for one that is not to be shown."""
        self.damage.frames += 1
        shown = self.timeline.shown
        if self.ordinal:
            index = previous + 1
        elif frame.pts is None or frame.pts < shown[0]:
            return None
        else:
            index = int(np.searchsorted(shown, frame.pts))
        if index >= len(shown):
            return None
        if index <= previous:
            lossy = self.timeline.lossy or self.damage.bad_packets or self.damage.corrupt_frames
            if not lossy:  # where frames are lost, to count those that come would give them wrong times
                raise _Surprise(disorder=True)
            return None
        if frame.is_corrupt:
            if not self.careful:
                raise _Surprise
            self.damage.corrupt_frames.append(float(self.timeline.seconds[index]))
        return index

    def _decode(self, decoder: Any, packet: Any, position: int) -> Iterable[Any]:
        try:
            return cast("list[Any]", decoder.decode(packet))
        except av.error.FFmpegError:
            if not self.careful:
                raise _Surprise from None
            self.damage.bad_packets.append(self.timeline.seconds_at(int(self.timeline.pts[position])))
            return []

    def _flush(self, decoder: Any) -> Iterator[Any]:
        for _ in range(_FLUSHES):
            try:
                yield from decoder.decode(None)
                return
            except EOFError:
                return
            except av.error.FFmpegError:
                if not self.careful:
                    raise _Surprise from None
