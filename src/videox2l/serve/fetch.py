"""Fetching a video from an allowed host: its address is resolved once, must be public, and is the one connected to."""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Collection
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import httpx

from videox2l.serve.errors import APIError

REDIRECTS = 5
Resolve = Callable[[str, int], list[str]]
_WRAPPING = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32", "::/96")]


def resolve(host: str, port: int) -> list[str]:
    """Return the addresses of a host."""
    return list(dict.fromkeys(str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)))


def is_public(address: str) -> bool:
    """Return whether an address is on the public internet; IPv6 that wraps IPv4 (NAT64, 6to4, Teredo) is not."""
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if any(ip in network for network in _WRAPPING):
            return False
    return ip.is_global and not (ip.is_multicast or ip.is_reserved or ip.is_loopback or ip.is_link_local)


class Fetcher:
    """Fetches files over https from `hosts`, `limit` bytes at most and within `seconds`.

    `resolve` and `transport` are for tests.
    """

    def __init__(
        self,
        hosts: Collection[str],
        limit: int,
        seconds: float = 3600.0,
        *,
        resolve: Resolve = resolve,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        self.hosts = {host.lower().rstrip(".") for host in hosts}
        self.limit, self.seconds = limit, seconds
        self._resolve, self._transport = resolve, transport

    def fetch(self, url: str, target: Path) -> None:
        """Write what is at `url` to `target`. Raises APIError, and leaves part of a file then."""
        end = time.monotonic() + self.seconds
        with httpx.Client(transport=self._transport, trust_env=False, timeout=30.0, follow_redirects=False) as client:
            for _ in range(REDIRECTS + 1):
                request = self._request(client, url)
                try:
                    reply = client.send(request, stream=True)
                except httpx.HTTPError as error:
                    raise APIError(400, f"cannot fetch the video: {type(error).__name__}", code="fetch") from None
                try:
                    if reply.is_redirect:
                        url = urljoin(url, reply.headers["location"])
                        continue
                    self._save(reply, target, end)
                    return
                except httpx.HTTPError as error:
                    raise APIError(400, f"the video broke off: {type(error).__name__}", code="fetch") from None
                finally:
                    reply.close()
        raise APIError(400, f"the video's address redirects more than {REDIRECTS} times", code="fetch")

    def _request(self, client: httpx.Client, url: str) -> httpx.Request:
        """Return a request to the address of an allowed host. Raises APIError."""
        try:
            parts = urlsplit(url)
            host, port = (parts.hostname or "").lower().rstrip("."), parts.port or 443
        except ValueError:
            raise APIError(400, "the video's URL cannot be read", param="video_url") from None
        if parts.scheme != "https" or not host or parts.username or parts.password:
            raise APIError(400, "a video is fetched over https:// without user and password only", param="video_url")
        if host not in self.hosts:
            raise APIError(403, f"videos are not fetched from '{host}': start with --allow-hosts {host}", code="host")
        try:
            addresses = self._resolve(host, port)
        except OSError:
            raise APIError(400, f"the address of '{host}' is not known", param="video_url") from None
        if not addresses or not all(is_public(address) for address in addresses):
            raise APIError(403, f"'{host}' has an address that is not public, which is not connected to", code="host")
        at = f"[{addresses[0]}]" if ":" in addresses[0] else addresses[0]
        path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        headers = {"Host": host if port == 443 else f"{host}:{port}", "Accept-Encoding": "identity"}
        # The certificate is checked for the host's name, whatever the address.
        return client.build_request(
            "GET", f"https://{at}:{port}{path}", headers=headers, extensions={"sni_hostname": host}
        )

    def _save(self, reply: httpx.Response, target: Path, end: float) -> None:
        if reply.status_code != 200:
            raise APIError(400, f"the video's server answered {reply.status_code}", code="fetch")
        if reply.headers.get("content-encoding", "identity") != "identity":
            raise APIError(400, "the video's server sent it compressed, which is not taken", code="fetch")
        size = 0  # pieces as they come: a collected one would wait for a server that sends a byte at a time
        with target.open("wb") as file:
            for piece in reply.iter_raw():
                size += len(piece)
                if size > self.limit:
                    raise APIError(413, f"the video has more than {self.limit} bytes (--max-upload)", code="too_large")
                if time.monotonic() > end:
                    raise APIError(400, f"fetching took longer than {self.seconds:g} s", code="fetch")
                file.write(piece)
