"""Admission of local files: what is allowed to reach the decoder, and the hash of its content.

A text file can be a playlist that makes FFmpeg open *other* files, whatever its name ends in. So only
regular local files are admitted, only video containers may be probed (`FORMATS`), and only the `file`
protocol may be used.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import stat
from pathlib import Path
from typing import Any

import av

from videox2l.errors import VideoError

#: Demuxers that may open a file. None of them names other files. Raw streams (h264, hevc) carry no times.
FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,flv,ogg,asf,mxf,yuv4mpegpipe,h264,hevc"

PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff")
"""Endings of pictures, which Pillow reads."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]+:")  # two letters at least: "C:" is a drive
_REMUX = "convert it first, e.g. `ffmpeg -i INPUT -c copy output.mkv`"


def admit(path: str | os.PathLike[str]) -> Path:
    """Return the absolute path of a regular, non-empty local file; never a URL or an FFmpeg pseudo-protocol.

    Raises `VideoError` with the file's name and what to do about it.
    """
    if isinstance(path, str):
        text = path
        if "://" in text or (_SCHEME.match(text) and not os.path.isfile(text)):
            scheme = text.split(":", 1)[0]
            raise VideoError(
                f"{scheme}: is not opened here: remote URLs and protocols are not supported, only local "
                "files. Download the video first and give its path."
            )
    local = Path(os.path.abspath(path))
    try:
        info = local.stat()
    except FileNotFoundError:
        raise VideoError(f"{local.name!r} does not exist in {str(local.parent)!r}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise VideoError(f"{local.name!r} cannot be read: {error}") from None
    if stat.S_ISDIR(info.st_mode):
        raise VideoError(f"{local.name!r} is a directory. Give the path of one video file in it.")
    if not stat.S_ISREG(info.st_mode):
        raise VideoError(f"{local.name!r} is not a regular file. Give the path of a video file.")
    if info.st_size == 0:
        raise VideoError(f"{local.name!r} is empty (0 bytes). Check that its download or recording finished.")
    return local


def open_container(path: Path) -> Any:
    """Open an admitted file with PyAV, restricted to `FORMATS` and to the file itself. The caller closes it."""
    options = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}
    try:
        container = av.open(f"file:{path}", metadata_errors="ignore", options=options)
    except PermissionError:
        raise VideoError(f"{path.name!r} may not be read: permission denied.") from None
    except av.error.FFmpegError as error:
        raise VideoError(_why_not(path, error)) from None
    if not set(container.format.name.split(",")) <= set(FORMATS.split(",")):
        found = container.format.name
        container.close()
        raise VideoError(f"{path.name!r}: {found} is not a supported container; {_REMUX}.")
    return container


def _why_not(path: Path, error: OSError) -> str:
    with path.open("rb") as file:
        head = file.read(12)
    if head[4:8] == b"ftyp":
        return (
            f"{path.name!r} is an MP4 without a readable index (moov): its download or recording was cut "
            "short. Fetch it again, or repair it with a tool such as untrunc."
        )
    if error.errno == errno.EINVAL:  # what the whitelist answers
        return (
            f"{path.name!r} is not in a supported video container (a playlist, or "
            f"not a video). Supported: {FORMATS.replace(',', ', ')}. If it is a video, {_REMUX}."
        )
    return f"{path.name!r} is not a video that can be read, or its beginning is damaged ({error.args[1]})."


def content_hash(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's bytes, as 64 hex digits. Reads it in pieces of 1 MiB.

    Raises `VideoError` if it is not a regular local file.
    """
    with admit(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
