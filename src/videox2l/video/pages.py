"""The video of a web page, downloaded by yt-dlp where the user has it installed."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path
from typing import Any

from videox2l.errors import SettingsError, VideoError

#: One file with pictures and sound, else pictures alone: nothing has to be merged. Plain downloads before streams.
_FORMAT = "best[ext=mp4][protocol^=http]/best[protocol^=http]/best/bestvideo"
_DONE = "page.json"


def is_page(video: str) -> bool:
    """Return whether that is an address of the web, and no local path."""
    return video.lower().startswith(("http://", "https://"))


def download_page(url: str, folder: Path) -> Path:
    """Return the video of a page as a file below `folder`, named by its title; downloaded once, and gone on with.

    Raises SettingsError where yt-dlp is not installed and VideoError for a page without one video that can be had.
    """
    place = folder / hashlib.sha256(url.encode()).hexdigest()[:16]
    if (known := _downloaded(place)) is not None:
        return known
    try:
        import yt_dlp
    except ImportError:
        raise SettingsError(
            f"'{url}' is no local file: with yt-dlp (pip install yt-dlp) the video of a page is downloaded; or "
            "download it yourself and give its path"
        ) from None
    options: dict[str, Any] = {
        "format": _FORMAT,
        "outtmpl": {"default": f"{str(place).replace('%', '%%')}/%(title).100B [%(id).40B].%(ext)s"},
        "noplaylist": True,
        "noprogress": True,
        "quiet": True,
        "logger": _Silent(),
    }
    try:
        place.mkdir(mode=0o700, parents=True, exist_ok=True)
        with yt_dlp.YoutubeDL({**options, "extract_flat": "in_playlist"}) as reader:
            _check(url, reader.extract_info(url, download=False))
        with yt_dlp.YoutubeDL({**options, "playlist_items": "1"}) as reader:
            found = reader.extract_info(url, download=True)
        video = (list(found.get("entries") or ()) or [found])[0]
        path = Path(video["requested_downloads"][0]["filepath"])
        (place / _DONE).write_text(json.dumps({"file": path.name}), encoding="utf-8")
    except (yt_dlp.utils.DownloadError, OSError, AttributeError, LookupError, TypeError) as error:
        raise VideoError(f"no video can be downloaded from '{url}': {_plain(error)}") from None
    return path


def _downloaded(place: Path) -> Path | None:
    """Return the file that a finished download left, if it is still there."""
    try:
        path = place / str(json.loads((place / _DONE).read_bytes())["file"])
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return path if path.parent == place and path.is_file() else None


def _check(url: str, found: Any) -> None:
    """Raise VideoError for a page that is not one video with an end."""
    entries = list(found.get("entries") or ())
    if found.get("_type") == "playlist" and len(entries) != 1:
        raise VideoError(f"'{url}' names {len(entries)} videos: give the address of one of them")
    if found.get("is_live"):
        raise VideoError(f"'{url}' is live: wait until it is over, or give the address of its stream with --follow")


def _plain(error: Exception) -> str:
    """Return the first line of an error of yt-dlp, without its colors and heading."""
    text = re.sub(r"\x1b\[[\d;]*m", "", str(error)).removeprefix("ERROR: ").strip()
    return (text.splitlines() or [type(error).__name__])[0]


class _Silent:
    """Logger that tells nothing: what matters comes as an error."""

    def debug(self, message: str) -> None:
        """Leave it out."""

    info = warning = error = debug
