"""Reading a video file: one pass, few frames in memory, true times."""

from __future__ import annotations

import os
import warnings
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import numpy as np

from videox2l.errors import VideoError, VideoWarning
from videox2l.video.decode import Damage, DecodePlan, decode, find_stream, first_frame, plan_decoding
from videox2l.video.files import PICTURES, admit, content_hash, open_container
from videox2l.video.holes import Gaps
from videox2l.video.orientation import Display
from videox2l.video.sampling import FrameChoice, FrameSampling, choose
from videox2l.video.source import Frame, Manifest, OpenSource
from videox2l.video.timeline import LEAST, Timeline, scan


@dataclass
class _State:
    """What is known of an opened file."""

    container: str
    codec: str
    display: Display
    sha256: str
    timeline: Timeline
    choice: FrameChoice
    plan: DecodePlan
    damage: Damage
    warnings: list[str]
    pts: list[float]
    indices: list[int]
    gaps: Gaps
    started: bool = False
    complete: bool = False


class VideoReader:
    """Reads the sampled frames of a local video file. A `FrameSource`.

    Opening it reads the file's packets once (nothing but the first frame is decoded) and hashes the file, so that
    duration, sampling and number of frames are known for certain before the first frame.

        with VideoReader("lecture.mp4", Sampling(fps=1.0)) as reader:
            for frame in reader:
                ...
        reader.manifest

    It can be iterated once per `open`; iterating a reader that is not open opens it first. Damage is survived:
    everything that decodes is given out, a `VideoWarning` and the manifest say where it was.

    Raises `VideoError` when the file cannot be opened or decoded, `SettingsError` when the range lies outside of it.
    """

    def __init__(self, path: str | os.PathLike[str], sampling: FrameSampling | None = None) -> None:
        self.path = admit(path)
        self.sampling = sampling or FrameSampling()
        self._state: _State | None = None
        self._running: Generator[Frame, None, None] | None = None

    def __repr__(self) -> str:
        return f"VideoReader({self.path.name!r}, {self.sampling})"

    def open(self) -> VideoReader:
        """Scan the file and plan what to decode. Opening again allows another iteration."""
        name = self.path.name
        first = first_frame(self.path)
        with open_container(self.path) as container:
            stream = find_stream(container, name)
            display = Display.of(first, stream.sample_aspect_ratio)
            timeline = scan(container, stream, first.pts, name, self.sampling.fps)
            choice = choose(timeline.seconds, timeline.duration, self.sampling)
            plan = plan_decoding(timeline, choice, self.sampling.mode, stream)
            gaps = Gaps.of(timeline, choice, declared_seconds(container, stream))
            found = display.remarks() + oddities(timeline, late_start(container, stream)) + gaps.sentences()
            self._state = _State(
                container=container.format.name,
                codec=stream.codec.canonical_name,
                display=display,
                sha256=content_hash(self.path),
                timeline=timeline,
                choice=choice,
                plan=plan,
                damage=Damage(),
                warnings=found,
                pts=[],
                indices=[],
                gaps=gaps,
            )
        for text in found:
            warnings.warn(f"{name}: {text}", VideoWarning, stacklevel=2)
        return self

    def close(self) -> None:
        """End the reading and let the file go. The manifest stays."""
        if self._state:
            self._state.started = True
        if self._running:
            self._running.close()
            self._running = None

    def __enter__(self) -> VideoReader:
        return self if self._state and not self._state.started else self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __iter__(self) -> Iterator[Frame]:
        """Give out the sampled frames. Raises `VideoError` when iterated twice without opening again."""
        state = self._state or self.open()._opened()
        if state.started:
            raise VideoError(f"{self.path.name!r} was read or closed already. Call open() to read it once more.")
        state.started = True
        self._running = self._frames(state)
        return self._running

    def _frames(self, state: _State) -> Generator[Frame, None, None]:
        resized, told = None, len(state.gaps.found)
        before = state.choice.first
        for picture, index in decode(self.path, state.timeline, state.plan, state.damage):
            pts = float(state.timeline.seconds[index])
            if not state.display.fits(picture) and resized is None:
                resized = f"the picture size changes at {pts:.3f} s; later frames are scaled to the first size"
            resumes = state.gaps.meet(state.timeline, state.plan.samples, before, index)
            before = index + 1
            state.pts.append(pts)
            state.indices.append(index)
            yield Frame(state.display.image(picture), pts, index, resumes and len(state.pts) > 1)
        if not state.pts:
            raise VideoError(f"{self.path.name!r}: no frame of the range could be decoded; the file is damaged.")
        state.gaps.meet(state.timeline, state.plan.samples, before, state.choice.last)
        state.complete = True
        found = state.damage.sentences() + state.gaps.sentences(told) + ([resized] if resized else [])
        state.warnings += found
        for text in found:
            warnings.warn(f"{self.path.name}: {text}", VideoWarning, stacklevel=2)

    def pictures(self, indices: Sequence[int]) -> list[Frame]:
        """Decode some frames, given by their index in presentation order, whatever the sampling; in order of time.

        Only what they depend on is decoded where the file allows it. Indices outside of the video, and frames that
        cannot be decoded, are left out.
        """
        state = self._opened()
        count = len(state.timeline.position)
        picks = np.array(sorted({i for i in indices if 0 <= i < count}), dtype=np.int64)
        if not len(picks):
            return []
        with open_container(self.path) as container:
            stream = find_stream(container, self.path.name)
            plan = plan_decoding(state.timeline, FrameChoice(picks, 0, count, None), "auto", stream)
        return [
            Frame(state.display.image(picture), float(state.timeline.seconds[index]), index)
            for picture, index in decode(self.path, state.timeline, plan, Damage())
        ]

    @property
    def expected_frames(self) -> int:
        """Number of frames that the iteration gives out, unless some are damaged. Opens the file if need be."""
        return len(self._opened().plan.samples)

    @property
    def manifest(self) -> Manifest:
        """What is known so far; complete after the iteration. Opens the file if need be."""
        state, wish = self._opened(), self.sampling
        note, used = state.plan.note, state.plan.mode
        if state.damage.careful_from is not None:
            reason = f"from {state.damage.careful_from:.3f} s on every frame was decoded: " + (
                "the stream is damaged" if state.damage.sentences() else "its key frames do not stand alone"
            )
            note = f"{note}; {reason}" if note else reason
        return Manifest(
            source=self.path.name,
            container=state.container,
            codec=state.codec,
            width=state.display.size[1],
            height=state.display.size[0],
            rotation=state.display.orientation.degrees,
            mirrored=state.display.orientation.mirrored,
            duration=state.timeline.duration,
            frames=len(state.timeline.position),
            fps=wish.fps,
            max_frames=wish.max_frames,
            start=wish.start,
            end=wish.end,
            at=wish.at,
            mode=wish.mode,
            effective_fps=state.choice.fps,
            fps_note=state.choice.note,
            mode_used=used,
            mode_note=note,
            shift=state.plan.shift,
            pts=tuple(state.pts),
            indices=tuple(state.indices),
            bad_packets=len(state.damage.bad_packets),
            warnings=tuple(state.warnings),
            holes=tuple(state.gaps.found),
            complete=state.complete,
            sha256=state.sha256,
        )

    @property
    def frames_decoded(self) -> int:
        """How many frames were decoded so far, the first one that is decoded on opening aside."""
        return self._opened().damage.frames

    def _opened(self) -> _State:
        if self._state is None:
            self.open()
        assert self._state is not None
        return self._state


def open_video(path: str | os.PathLike[str], sampling: FrameSampling | None = None) -> OpenSource:
    """Open a local video file, an animation, a still, or a folder of pictures; same errors as `VideoReader`."""
    if os.path.isdir(path) or str(path).lower().endswith(PICTURES):
        from videox2l.video.stills import PictureSource  # reading a video needs no Pillow

        return PictureSource(path, sampling)
    reader = VideoReader(path, sampling)
    reader.open()
    return reader


def oddities(timeline: Timeline, late: float) -> list[str]:
    """Return what the scan tells about the state of the file, a sentence each; `late` is its `late_start`."""
    found = []
    if late > LEAST:
        found.append(
            f"the first frame stands at {late:.3f} s of the file's own times, where times count from here: what was "
            "before it is lost, or never was"
        )
    if timeline.demux_errors:
        found.append(f"damaged: the container could not be read in {timeline.demux_errors} place(s)")
    if timeline.torn:
        found.append(
            f"damaged: data is missing in {len(timeline.torn)} packet(s), the first at {timeline.torn[0]:.3f} s, "
            f"the last at {timeline.torn[-1]:.3f} s"
        )
    if timeline.untimed:
        found.append(f"{timeline.untimed} packet(s) carry no times; theirs follow from those of their neighbors")
    if timeline.mistimed:
        found.append(
            f"damaged: the times of {len(timeline.mistimed)} packet(s) cannot be true, the first at "
            f"{timeline.mistimed[0]:.3f} s; theirs follow from those of their neighbors"
        )
    found += [f"the file's own times start anew at {jump:.3f} s; they were continued" for jump in timeline.jumps]
    return found


def late_start(container: Any, stream: Any) -> float:
    """Return the second of the file's own times at which its first frame stands, in containers that count from 0."""
    counts = {"matroska", "webm", "asf", "flv"} & set(container.format.name.split(","))
    return max(0.0, float(stream.start_time * stream.time_base)) if counts and stream.start_time else 0.0


def declared_seconds(container: Any, stream: Any) -> float | None:
    """Return the seconds of video, from its first frame on, that the headers declare, if they do."""
    late = 0.0 if container.format.name == "flv" else late_start(container, stream)  # an FLV declares its length
    if stream.duration:
        return float(stream.duration * stream.time_base) - late
    text = stream.metadata.get("DURATION", "")
    try:
        hours, minutes, seconds = text.split(":")
        return int(hours) * 3600 + int(minutes) * 60 + float(seconds) - late
    except ValueError:
        return container.duration / 1e6 - late if container.duration else None
