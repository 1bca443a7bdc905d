"""What stands before all routes: who asks, sizes of requests, headers of responses, request ids. Plain ASGI."""

from __future__ import annotations

import asyncio
import contextlib
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
PATIENCE = 60.0
"""Seconds between two pieces of a request's body at most."""
LINGER = 256 << 10
"""Bytes of a request that are still read before a reply that did not want them."""
COOKIE = "x2l_session"
OPEN = ("/", "/health", "/ready", "/page/app.js", "/page/server.js", "/page/style.css", "/favicon.ico")
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
        headers = Headers(scope=scope)
        body = Body(scope, headers, receive, self.service.options.max_upload)
        token = REQUEST.set(name)

        async def answer(message: Any) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                await body.drain()
                status = message["status"]
                told = MutableHeaders(scope=message)
                told["X-Request-Id"] = name
                if body.rest:  # what still comes of the request is not read
                    told["Connection"] = "close"
                for key, value in SECURITY.items():
                    told.setdefault(key, value)
            await send(message)

        try:
            client = scope["state"]["client"] = self._admit(scope, headers)
            body.check_length()
            await self.app(scope, body.receive, answer)
        except APIError as error:
            await JSONResponse(error.to_dict(), error.status, error.headers)(scope, receive, answer)
        finally:
            self.service.metrics.requests.labels(scope["method"], str(status)).inc()
            took = time.monotonic() - begun
            fields = {
                "method": scope["method"],
                "path": quote(scope["path"]),
                "status": status,
                "seconds": round(took, 3),
            }
            log.info("request", extra={"fields": {**fields, "client": None if client is None else client.name}})
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


class Body:
    """The body of a request as it comes: `receive` refuses more bytes than may come, and a body that stands still.

    `rest` says whether some of it is still to come.
    """

    def __init__(self, scope: Any, headers: Headers, receive: Any, max_upload: int) -> None:
        upload = scope["path"].startswith("/v1/files")
        self._receive, self._limit = receive, max_upload + (1 << 20) if upload else BODY
        self._size, self._length = 0, headers.get("content-length", "0")
        self._waits = "expect" in headers  # for a word before it sends anything
        self.rest = self._length != "0" or "transfer-encoding" in headers

    def check_length(self) -> None:
        """Raise APIError 413 where the body is announced as too long."""
        if not self._length.isdigit() or int(self._length) > self._limit:
            raise self._too_large()

    async def drain(self) -> None:
        """Read what is left, up to `LINGER` bytes, for a second at most.

        Closed on unread bytes, a connection is reset, and a client may lose the reply that told it why.
        """
        left = 0 if self._waits else LINGER
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while self.rest and left > 0:
                    message = await self._receive()
                    left -= len(message.get("body", b""))
                    self.rest = message.get("more_body", False)

    async def receive(self) -> Any:
        """Return the next message. Raises APIError 408, 413."""
        try:
            message = await asyncio.wait_for(self._receive(), PATIENCE if self.rest else None)
        except TimeoutError:
            raise APIError(408, f"nothing of the request came for {PATIENCE:g} s", code="timeout") from None
        self._size += len(message.get("body", b""))
        if self._size > self._limit:
            raise self._too_large()
        self.rest = message.get("more_body", False)
        return message

    def _too_large(self) -> APIError:
        return APIError(413, f"the request has more than {self._limit} bytes", code="too_large")
