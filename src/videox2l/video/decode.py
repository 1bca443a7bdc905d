"""Carrying out a plan: packets in, the planned frames out, whatever the state of the stream.

A healthy stream is decoded with all threads and with everything skipped that the plan allows. Where the decoder
does not deliver what the packets promise (an error, a frame that is marked as damaged, a planned frame that
does not come) that attempt ends, and a careful one goes on from the frame that was due: single-threaded, so that
the place of the damage is known and no frame is lost beside it, and without skipping.
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

from videox2l.errors import VideoError
from videox2l.video.files import open_container
from videox2l.video.plan import Plan
from videox2l.video.timeline import Packets, Timeline

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


def decode(path: Path, timeline: Timeline, plan: Plan, damage: Damage) -> Iterator[tuple[Any, int]]:
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
            if not self.damage.bad_packets:
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
