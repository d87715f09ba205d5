"""API keys: a file of names and hashes; the keys themselves are known to their owners alone."""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from urllib.parse import parse_qs

from qwen3_tts_gateway.logs import log
from qwen3_tts_gateway.settings import SettingsError

LINE = re.compile(r"(?P<name>\S{1,64})\s+(?P<digest>[0-9a-f]{64})")
HEADERS = (b"authorization", b"xi-api-key")  # OpenAI's clients send the first, ElevenLabs' the second
QUERY_NAMES = ("api_key", "xi-api-key")  # a browser gives a WebSocket no header
LOOK_SECONDS = 1.0  # between two looks at the file


def new_key(name: str) -> tuple[str, str]:
    """A new key, and the line of the file that lets it in."""
    key = f"sk-{secrets.token_urlsafe(32)}"
    return key, f"{name} {_digest(key)}"


class Keys:
    """The keys that are let in, by the SHA-256 of each. A key has 256 random bits, so a slow hash would add nothing.

    The file is read again when it has changed. One that cannot be used changes nothing; with an empty one no request is let in.
    """

    def __init__(self, file: Path) -> None:
        """Read a file of lines NAME DIGEST; # begins a comment.

        Raises:
            SettingsError: it cannot be read, has another line, or no key at all.
        """
        self._file, self._stamp, self._looked = file, _stamp(file), time.monotonic()
        self._names = _names_in(file)  # digest (64 hex digits) -> name
        if not self._names:
            raise SettingsError(f"keys_file: {file} has no key; make one with qwen3-tts gateway-key NAME")

    def name_of(self, headers: Mapping[bytes, bytes], query: str = "") -> str | None:
        """The name of the key that a request brings; None if it brings none that is let in.

        Args:
            headers: of the request, names in lower case.
            query: of a WebSocket's URL, "" for other requests: keys in URLs end up in logs.
        """
        self._look()
        given = [headers[name].decode("latin-1") for name in HEADERS if name in headers]
        values = parse_qs(query)
        given += [values[name][0] for name in QUERY_NAMES if name in values]
        for key in given:
            scheme, _, rest = key.partition(" ")
            digest = _digest((rest if scheme.lower() == "bearer" else key).strip())
            for known, name in self._names.items():
                if hmac.compare_digest(known, digest):
                    return name
        return None

    def _look(self) -> None:
        if (now := time.monotonic()) - self._looked < LOOK_SECONDS:
            return
        self._looked, before = now, self._stamp
        if (stamp := _stamp(self._file)) == before:
            return
        self._stamp = stamp
        try:
            self._names = _names_in(self._file)
        except SettingsError as error:
            log("keys stay as they were", logging.WARNING, reason=str(error))
        else:
            log("keys are read again", keys=len(self._names))


def _names_in(file: Path) -> dict[str, str]:
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"keys_file: {file} cannot be read: {error}") from None
    names = {}
    for number, line in enumerate(lines, 1):
        if not (text := line.partition("#")[0].strip()):
            continue
        if not (found := LINE.fullmatch(text)):
            raise SettingsError(f"keys_file: line {number} of {file} is not NAME and the 64 hex digits of a SHA-256")
        names[found["digest"]] = found["name"]
    return names


def _stamp(file: Path) -> tuple[int, int, int] | None:
    """What is another one when the file has changed; None if there is none."""
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()
