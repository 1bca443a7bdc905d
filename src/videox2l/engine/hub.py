"""Whether the Hugging Face hub can be asked, and what to say where it cannot."""

from __future__ import annotations

import contextlib
import socket
import threading
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from huggingface_hub import constants, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from videox2l.errors import ModelError

_PATIENCE = 2.0  # seconds


@cache
def online() -> bool:
    """Return whether the hub can be asked: not set to offline, and its host, or the proxy to it, answers in 2 seconds.

    Without this, each of several files is retried for many seconds where there is no network.
    """
    if constants.HF_HUB_OFFLINE:
        return False
    url = urlsplit(constants.ENDPOINT)
    proxy = "" if proxy_bypass(str(url.hostname)) else getproxies().get(url.scheme, "")
    if proxy:
        url = urlsplit(proxy if "//" in proxy else f"//{proxy}")
    reached: list[bool] = []

    def reach() -> None:
        port = url.port or (443 if url.scheme == "https" else 80)
        with contextlib.suppress(OSError):
            socket.create_connection((str(url.hostname), port), timeout=_PATIENCE).close()
            reached.append(True)

    thread = threading.Thread(target=reach, daemon=True)  # looking up a name has no timeout of its own
    thread.start()
    thread.join(_PATIENCE)
    return bool(reached)


def offline_hint(name: str) -> str:
    """Return the end of an error about a repository that is not here: why the hub was not asked; "" if it was."""
    if online():
        return ""
    if not constants.HF_HUB_OFFLINE:
        return f", and {constants.ENDPOINT} cannot be reached: check the network"
    return f", and HF_HUB_OFFLINE is set: fetch it first ('hf download {name}'), or unset HF_HUB_OFFLINE"


def loading_options(name: str) -> dict[str, Any]:
    """Return what transformers' loading functions are called with for a folder or a hub id: no remote code, no retries.

    Raises ModelError for a repository that is not in the cache while the hub cannot be asked.
    """
    if Path(name).is_dir() or online():
        return {"trust_remote_code": False}
    try:
        file = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        raise ModelError(f"'{name}' is neither a folder here nor a hub id such as owner/name") from None
    if not isinstance(file, str):
        raise ModelError(
            f"'{name}' is neither a folder here nor in the cache {constants.HF_HUB_CACHE}{offline_hint(name)}"
        )
    return {"trust_remote_code": False, "local_files_only": True}
