"""Which packets to decode so that the chosen frames come out right, and no others if that can be helped.

Three savings, all of them free of error in the picture:

* frames that no other frame refers to are not decoded (`skip_frame="NONREF"`), unless they are sampled;
* what follows the last sample in a group of pictures is not decoded, nor are whole groups without one;
* mode "fast" only: a sample moves to a key frame if one is at most half a step away.

Skipping all B-frames (`skip_frame="BIDIR"`) would save more, but P-frames may refer to B-frames (x264 does so by
default, `b-pyramid=normal`), and then the frames that are left come out visibly wrong: 285 of 300 samples of the video
that `benchmarks/video_sampling.py` makes. So it is not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from videox2l.video.sampling import Choice, Mode
from videox2l.video.timeline import Timeline

#: Codecs whose FFmpeg decoder leaves out unreferenced frames packet by packet, and correctly so.
_NONREF = {"h264", "hevc", "mpeg4", "mpeg2video", "mpeg1video"}


@dataclass(frozen=True, eq=False)
class Plan:
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


def plan_decoding(timeline: Timeline, choice: Choice, mode: Mode, stream: Any) -> Plan:
    """Choose runs and samples for a mode; falls back to exact where a file gives no ground for skipping."""
    if mode == "exact":
        return exact(timeline, choice)
    obstacle = _obstacle(timeline)
    if obstacle:
        return exact(timeline, choice, f"every frame is decoded: {obstacle}")
    samples, moved = choice.picks, 0
    if mode == "fast" and choice.fps is not None:
        samples = _move_to_keys(timeline, choice, 0.5 / choice.fps)
        moved = int((samples != choice.picks).sum())
    seconds = timeline.seconds
    shift = float(np.abs(seconds[samples] - seconds[choice.picks]).max()) if moved else 0.0
    runs = _merge(sorted((timeline.run_start(p), p) for p in timeline.position[samples].tolist()))
    nonref = _can_skip_unreferenced(stream)
    if len(samples) == len(timeline.position) or (not nonref and runs == exact(timeline, choice).runs):
        return exact(timeline, choice, "every frame is decoded: nothing could be left out")
    note = "frames that no sample depends on were not decoded"
    if moved:
        note += f"; {moved} of {len(samples)} samples moved to key frames, by {shift:.3f} s at most"
    return Plan(samples, runs, nonref, "fast", note, choice.last, shift)


def exact(timeline: Timeline, choice: Choice, note: str | None = None) -> Plan:
    """Decode everything from the key frame before the first pick to the last pick."""
    positions = timeline.position[choice.picks]
    first = 0 if timeline.ordinal else min(timeline.run_start(int(p)) for p in positions[:16])
    last = len(timeline.pts) - 1 if timeline.ordinal else int(positions.max())
    return Plan(choice.picks, ((first, last),), False, "exact", note, choice.last)


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


def _move_to_keys(timeline: Timeline, choice: Choice, reach: float) -> npt.NDArray[np.int64]:
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
