"""GatewaySettings: every option of the gateway, checked before anything starts."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from qwen3_tts_client import DEFAULT_MODEL, DEFAULT_URL
from qwen3_tts_client.address import has_tls, target_of
from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.tls import credentials

DEFAULT_PORT = 8880
DEFAULT_METRICS_PORT = 8002
DEFAULT_ENCODER_PROCESSES = max(1, min(16, os.cpu_count() or 1))
MOST_ITEMS = 1000  # of a batch; more are not even read
ADDRESS = re.compile(r"(?P<host>\[[^]\s/@,]+\]|[^\s/@,:[\]]+):(?P<port>\d{1,5})")


class SettingsError(ValueError):
    """An option of the gateway has a value that is not allowed; the message names both."""


@dataclass(frozen=True, kw_only=True)
class GatewaySettings:
    """Options of one gateway.

    Attributes:
        backends: HOST:PORT of the gRPC port of each Triton server, with grpcs:// before it for TLS (qwen3_tts_client.tls).
        resolve: whether each HOST stands for all servers that its name has addresses of, now and later.
        metrics_port: of each Triton server, to learn how many streams it has; 0: not asked, own streams alone count.
        model: ensemble that speaks if neither the request's model nor its voice decides.
        voice_names: other names of voices, such as "alloy" for "vivian"; they go before the names that are built in.
        max_text_length: characters of a request's text.
        max_script_length: of one with long_form, or of another text_format than plain.
        max_body_bytes: of a request.
        max_bodies_bytes: of all requests together that are being read or answered.
        max_batch: items of a batch, 1000 at most.
        max_streams: utterances at a time, all callers together.
        max_streams_per_caller: at a time, of one API key, or of one address if there are no keys; 0: no limit.
        requests_per_minute: utterances that one caller may begin; 0: no limit.
        timeout: seconds from a request to the end of its speech; 0: no limit.
        stall_seconds: a client that takes nothing, or sends nothing of its body, for so long is left.
        drain_seconds: for running utterances after SIGTERM.
        keys_file: lines of NAME and SHA-256 of a key, read again when it changes; None: no key is asked for.
        cors_origins: web pages' origins that may call the gateway from a browser, WebSockets included; "*" is all.
        encoder_processes: the most that encode mp3, opus, aac and flac; each keeps one core busy at most.
        studio: whether the page of the studio is served at /.
        voice_changes: whether callers may add and delete stored voices.

    Raises:
        SettingsError: a value is not allowed.
    """

    backends: tuple[str, ...] = (DEFAULT_URL,)
    resolve: bool = False
    metrics_port: int = DEFAULT_METRICS_PORT
    model: str = DEFAULT_MODEL
    voice_names: Mapping[str, str] = field(default_factory=dict)
    max_text_length: int = 4096
    max_script_length: int = 100_000
    max_body_bytes: int = 32 * 2**20
    max_bodies_bytes: int = 256 * 2**20
    max_batch: int = 32
    max_streams: int = 1024
    max_streams_per_caller: int = 0
    requests_per_minute: int = 0
    timeout: float = 0.0
    stall_seconds: float = 60.0
    drain_seconds: float = 20.0
    keys_file: Path | None = None
    cors_origins: tuple[str, ...] = ()
    encoder_processes: int = DEFAULT_ENCODER_PROCESSES
    studio: bool = True
    voice_changes: bool = True

    def __post_init__(self) -> None:
        if not self.backends:
            raise SettingsError("backend: none is given; give HOST:PORT of a Triton server's gRPC port")
        for address in self.backends:
            found = ADDRESS.fullmatch(target_of(address))
            if not found or not 0 < int(found["port"]) < 2**16:
                raise SettingsError(
                    f"backend: {address!r} is not allowed; give HOST:PORT of a Triton server's gRPC port, of IPv6 as [::1]:PORT, "
                    "with grpcs:// before it for TLS"
                )
            if has_tls(address):
                self._check_tls(address)
        if len(set(self.backends)) < len(self.backends):
            raise SettingsError("backend: a server is given twice; give each once")
        for name in ("max_text_length", "max_script_length", "max_body_bytes", "max_batch", "max_streams", "encoder_processes"):
            self._check(name, 1)
        for name in ("metrics_port", "max_streams_per_caller", "requests_per_minute", "timeout", "drain_seconds"):
            self._check(name, 0)
        if not self.max_bodies_bytes >= self.max_body_bytes:
            raise SettingsError(
                f"max_bodies_bytes: {self.max_bodies_bytes} is not allowed; give max_body_bytes ({self.max_body_bytes}) or more"
            )
        if self.max_batch > MOST_ITEMS:
            raise SettingsError(f"max_batch: {self.max_batch} is not allowed; give 1 to {MOST_ITEMS}")
        if not self.stall_seconds > 0:
            raise SettingsError(f"stall_seconds: {self.stall_seconds:g} is not allowed; give seconds above 0")

    def _check_tls(self, address: str) -> None:
        if self.resolve:
            raise SettingsError(f"resolve: is not for {address}, because a certificate is of a name; give each server's own name")
        try:
            credentials()
        except InvalidRequest as error:
            raise SettingsError(str(error)) from None

    def _check(self, name: str, least: int) -> None:
        value = getattr(self, name)
        if not value >= least:
            raise SettingsError(f"{name}: {value} is not allowed; give {least} or more")


def metrics_url(address: str, port: int) -> str:
    """The metrics page of the Triton server with this gRPC address; "" if `port` is 0."""
    found = ADDRESS.fullmatch(target_of(address))
    return f"http://{found['host']}:{port}/metrics" if found and port else ""
