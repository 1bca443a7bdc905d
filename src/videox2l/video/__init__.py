"""Reading videos: streamed frames with true times, in bounded memory, and a record of what was read."""

from videox2l.video.arrays import ArraySource
from videox2l.video.clips import Clip, ClipCutter
from videox2l.video.files import content_hash
from videox2l.video.follow import FollowSource
from videox2l.video.inspection import VideoReport, inspect_video
from videox2l.video.reader import VideoReader, open_video
from videox2l.video.sampling import FrameSampling, Mode
from videox2l.video.source import Frame, FrameSource, Manifest

__all__ = [
    "ArraySource",
    "Clip",
    "ClipCutter",
    "FollowSource",
    "Frame",
    "FrameSampling",
    "FrameSource",
    "Manifest",
    "Mode",
    "VideoReader",
    "VideoReport",
    "content_hash",
    "inspect_video",
    "open_video",
]
