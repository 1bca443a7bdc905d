"""Logs of a server: a line each, as text or JSON, with the id of the request, and without keys."""

from __future__ import annotations

import json
import logging
import re
from contextvars import ContextVar
from datetime import UTC, datetime

REQUEST: ContextVar[str] = ContextVar("REQUEST", default="")
"""The id of the request that is served, also told as X-Request-Id; empty outside of one."""
_SECRET = re.compile(r"x2l-[\w-]{20,}|(?<=bearer )[^\s\"']+|data:[\w/+.-]*;base64,[\w+/=]*", re.IGNORECASE)


class LineFormatter(logging.Formatter):
    """Formats a record as one line: text, or JSON with `time`, `level`, `logger`, `request`, `message`, `error`.

    The values of `extra={"fields": {...}}` stand beside them. Keys and data URLs are left out wherever they come from.
    """

    def __init__(self, as_json: bool) -> None:
        super().__init__()
        self._as_json = as_json

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        values = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "request": REQUEST.get() or None,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
            "error": self.formatException(record.exc_info) if record.exc_info and record.exc_info[0] else None,
        }
        values = {name: _plain(value) for name, value in values.items() if value is not None}
        if self._as_json:
            return json.dumps(values, ensure_ascii=False)
        head = " ".join(str(values.pop(name)) for name in ("time", "level", "message"))
        return " ".join([head, *(f"{name}={value!r}" for name, value in values.items() if name != "logger")])


def _plain(value: object) -> object:
    if not isinstance(value, str):
        return value
    return _SECRET.sub("***", value)


def log_to_stderr(as_json: bool) -> None:
    """Have all loggers write lines to standard error."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(as_json))
    logging.basicConfig(level=logging.INFO, handlers=[handler], force=True)
    for name in ("httpx", "httpcore", "multipart", "python_multipart", "asyncio"):
        logging.getLogger(name).setLevel(logging.WARNING)
