"""What stands before all routes: who asks, sizes of requests, headers of responses, request ids. Plain ASGI."""

from __future__ import annotations

import logging
import secrets
import time
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import quote, urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from videox2l.serve.errors import APIError
from videox2l.serve.logs import REQUEST
from videox2l.serve.service import Service

log = logging.getLogger("videox2l.serve")
BODY = 64 << 20
"""Bytes of a request's body at most, uploads aside."""
COOKIE = "x2l_session"
OPEN = ("/", "/health", "/ready", "/page/app.js", "/page/style.css", "/favicon.ico")
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; media-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
SECURITY = {
    "Content-Security-Policy": CSP,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}
_LOCAL_HOSTS = ("localhost", "127.0.0.1", "::1", "testserver")


class Guard:
    """ASGI application around another one."""

    def __init__(self, app: Any, service: Service) -> None:
        self.app, self.service = app, service
        self.sessions: dict[str, str] = {}

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        name, begun, status, client = secrets.token_hex(8), time.monotonic(), 500, None
        token = REQUEST.set(name)

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                headers["X-Request-Id"] = name
                for key, value in SECURITY.items():
                    headers.setdefault(key, value)
            await send(message)

        try:
            headers = Headers(scope=scope)
            client = scope["state"]["client"] = self._admit(scope, headers)
            await self.app(scope, self._bounded(scope, headers, receive), answer)
        except APIError as error:
            await JSONResponse(error.to_dict(), error.status, error.headers)(scope, receive, answer)
        finally:
            self.service.metrics.requests.labels(scope["method"], str(status)).inc()
            took = time.monotonic() - begun
            told = {
                "method": scope["method"],
                "path": quote(scope["path"]),
                "status": status,
                "seconds": round(took, 3),
            }
            log.info("request", extra={"fields": told | ({"client": client.name} if client is not None else {})})
            REQUEST.reset(token)

    def _admit(self, scope: Any, headers: Headers) -> Any:
        """Return who asks. Raises APIError for unknown keys, foreign pages and foreign names of this machine."""
        service, host = self.service, headers.get("host", "")
        name = urlsplit(f"//{host}").hostname or ""
        if service.keys is None and name not in _LOCAL_HOSTS:
            raise APIError(403, "without keys this server answers to localhost only", code="host")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise APIError(403, "requests from pages of other sites are not served", code="origin")
        kind, _, key = headers.get("authorization", "").partition(" ")
        token: str | None = key.strip() if kind.lower() == "bearer" and key.strip() else None
        if token is None and headers.get("cookie"):
            cookie = SimpleCookie(headers["cookie"]).get(COOKIE)
            token = self.sessions.get(cookie.value) if cookie is not None else None
        client = service.client_of(token)
        if client is None and scope["path"] not in OPEN:
            headers_ = {"WWW-Authenticate": "Bearer"}
            raise APIError(
                401, "no valid API key: send Authorization: Bearer KEY", code="invalid_api_key", headers=headers_
            )
        return client

    def _bounded(self, scope: Any, headers: Headers, receive: Any) -> Any:
        """Return `receive` that refuses more bytes than may come."""
        upload = scope["path"].startswith("/v1/files")
        limit = self.service.options.max_upload + (1 << 20) if upload else BODY
        length = headers.get("content-length", "0")
        if not length.isdigit() or int(length) > limit:
            raise APIError(413, f"the request has more than {limit} bytes", code="too_large")
        size = 0

        async def bounded() -> Any:
            nonlocal size
            message = await receive()
            size += len(message.get("body", b""))
            if size > limit:
                raise APIError(413, f"the request has more than {limit} bytes", code="too_large")
            return message

        return bounded
