"""Limits: how many utterances may be spoken at a time, and begun in a minute."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from qwen3_tts_gateway.errors import RETRY_SECONDS, ApiError
from qwen3_tts_gateway.settings import GatewaySettings

MINUTE = 60.0
MOST_CALLERS = 10_000  # with a rate that is remembered; if there are more, those with a full allowance are forgotten


class Limits:
    """The limits of one gateway. A caller's allowance for a minute fills evenly (a token bucket)."""

    def __init__(self, settings: GatewaySettings) -> None:
        self._settings = settings
        self._open: Counter[str] = Counter()
        self._allowances: dict[str, tuple[float, float]] = {}  # requests left, when counted

    @property
    def open_streams(self) -> int:
        """Utterances that are being spoken."""
        return self._open.total()

    @contextmanager
    def stream(self, caller: str) -> Iterator[None]:
        """Hold a place for one utterance.

        Raises:
            ApiError: there is none, or the caller has begun too many.
        """
        most = self._settings.max_streams
        if self.open_streams >= most:
            raise ApiError(
                503, f"the gateway speaks {most} utterances, its limit", kind="server_error", code="overloaded", retry_after=RETRY_SECONDS
            )
        most = self._settings.max_streams_per_caller
        if most and self._open[caller] >= most:
            message = f"{most} utterances of this caller are being spoken, its limit"
            raise ApiError(429, message, kind="rate_limit_error", code="too_many_streams", retry_after=RETRY_SECONDS)
        self._take_allowance(caller)
        self._open[caller] += 1
        try:
            yield
        finally:
            self._open[caller] -= 1
            if not self._open[caller]:
                del self._open[caller]

    def _take_allowance(self, caller: str) -> None:
        most = self._settings.requests_per_minute
        if not most:
            return
        now = time.monotonic()
        left, counted = self._allowances.get(caller, (float(most), now))
        left = min(float(most), left + (now - counted) * most / MINUTE)
        if left < 1:
            wait = (1 - left) * MINUTE / most
            message = f"this caller may begin {most} utterances a minute; the next one in {wait:.1f} s"
            raise ApiError(429, message, kind="rate_limit_error", code="rate_limit_exceeded", retry_after=wait)
        if len(self._allowances) >= MOST_CALLERS:
            self._allowances = {
                name: (left, at) for name, (left, at) in self._allowances.items() if left + (now - at) * most / MINUTE < most
            }
        self._allowances[caller] = (left - 1, now)
