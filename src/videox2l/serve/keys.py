"""API keys: hashed in a file, with scopes, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import secrets
from dataclasses import dataclass
from pathlib import Path

from videox2l.errors import SettingsError
from videox2l.serve.errors import APIError

SCOPES = ("ask", "ingest", "admin")
_LINE = re.compile(r"([\w.-]{1,64}):([a-z,]+):([0-9a-f]{64})")


@dataclass(frozen=True)
class Client:
    """Who asks: a name, and what they may do. `admin` may do all, and sees what belongs to others."""

    name: str
    scopes: frozenset[str]

    def need(self, scope: str) -> None:
        """Raise APIError 403 where the scope is not granted."""
        if scope not in self.scopes and "admin" not in self.scopes:
            raise APIError(403, f"this key may not do that: it has no scope '{scope}'", code="scope")

    def sees(self, owners: list[str]) -> bool:
        """Return whether what belongs to `owners` may be seen; what belongs to nobody is everybody's."""
        return not owners or self.name in owners or "admin" in self.scopes


LOCAL = Client("local", frozenset(SCOPES))
"""Everybody, where no keys are used: only this machine is served then."""


def hash_key(key: str) -> str:
    """Return what is stored of a key. Keys are random and long, so that a plain hash cannot be guessed back."""
    return hashlib.sha256(key.encode()).hexdigest()


class KeyFile:
    """The keys in a file, a line each: `name:scope,scope:sha256`. Raises SettingsError for what is none."""

    def __init__(self, path: Path) -> None:
        self._known: list[tuple[str, Client]] = []
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeError) as error:
            raise SettingsError(f"cannot read keys from '{path}': {error}; make one with --add-key NAME") from None
        for number, line in enumerate(lines, 1):
            if not line.strip() or line.startswith("#"):
                continue
            found = _LINE.fullmatch(line.strip())
            if found is None or not set(found[2].split(",")) <= set(SCOPES):
                raise SettingsError(
                    f"line {number} of '{path}' is no key: write name:{','.join(SCOPES)}:sha256, or use --add-key NAME"
                )
            self._known.append((found[3], Client(found[1], frozenset(found[2].split(",")))))

    def __len__(self) -> int:
        return len(self._known)

    def client_of(self, key: str) -> Client | None:
        """Return whose key this is, or None; takes the same time for every key."""
        hashed, found = hash_key(key), None
        for known, client in self._known:
            if hmac.compare_digest(known, hashed):
                found = client
        return found


def add_key(path: Path, wanted: str) -> str:
    """Add a key of the name and scopes `wanted`, such as "anna" or "anna:ask,ingest", and return it.

    Only its hash is kept. Raises SettingsError.
    """
    name, _, scopes = wanted.partition(":")
    scopes = scopes or "ask,ingest"
    key = f"x2l-{secrets.token_urlsafe(32)}"
    line = f"{name}:{scopes}:{hash_key(key)}"
    if _LINE.fullmatch(line) is None or not set(scopes.split(",")) <= set(SCOPES):
        raise SettingsError(f"'{wanted}' is no name with scopes: write such as anna:ask,ingest ({', '.join(SCOPES)})")
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        with os.fdopen(handle, "a", encoding="utf-8") as file:
            file.write(line + "\n")
    except OSError as error:
        raise SettingsError(f"cannot write '{path}': {error}") from None
    return key
