"""Errors of the API: a status, and the object in which OpenAI's clients expect it."""

from __future__ import annotations

import errno
from typing import Any

from videox2l.errors import MemoryFileError, ModelError, SettingsError, VideoError, X2LError, plain_line

_KINDS = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "invalid_request_error",
    429: "rate_limit_error",
}


class APIError(X2LError):
    """A request cannot be served: an HTTP `status`, the parameter that is wrong if it is one, and a short code."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.param, self.code, self.headers = status, param, code, headers or {}

    def to_dict(self) -> dict[str, Any]:
        """Return the error in OpenAI's shape; what it says of the request is one line, whatever was sent."""
        kind = _KINDS.get(self.status, "server_error" if self.status >= 500 else "invalid_request_error")
        return {"error": {"message": plain_line(str(self)), "type": kind, "param": self.param, "code": self.code}}


def api_error(error: BaseException) -> APIError:
    """Return the error of the API that an error of the library means."""
    if isinstance(error, APIError):
        return error
    if isinstance(error, (SettingsError, VideoError)):
        return APIError(400, str(error))
    if isinstance(error, MemoryFileError):
        return APIError(409, str(error), code="memory_error")
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return APIError(507, "the server's disk is full: delete something", code="disk_full")
    if isinstance(error, ModelError):
        return APIError(500, str(error), code="model_error")
    return APIError(500, f"the server failed ({type(error).__name__}): its log says more", code="internal_error")
