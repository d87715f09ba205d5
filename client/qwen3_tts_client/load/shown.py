"""Measures loads while a live table shows how far they are."""

from __future__ import annotations

import time

from qwen3_tts_client.load.clients import Clients, Point
from qwen3_tts_client.load.figures import Spoken, audio_figures, stream_figures
from qwen3_tts_client.load.streams import Load
from qwen3_tts_client.load.table import LiveTable

TICK_SECONDS = 0.25  # between two updates of the table


class Shown:
    """Puts one load after the other on servers, by clients that are watched, and shows each in the table meanwhile."""

    def __init__(self, clients: Clients, table: LiveTable) -> None:
        self._clients, self._table = clients, table
        self._before = 0.0  # seconds of the loads that have been measured

    def measure(self, load: Load, seconds: float) -> Point:
        """Measure one load for these seconds."""
        ended: list[Spoken] = []

        def tick(begin: float, more: list[Spoken]) -> None:
            if not self._table.is_live:
                return
            ended.extend(more)
            now, end = time.monotonic(), begin + seconds
            measured = [spoken for spoken in ended if spoken.sent >= begin]
            figures = stream_figures(measured) | (audio_figures(ended, begin, min(now, end)) if now > begin else {})
            doing = "warm-up" if now < begin else "measuring" if now < end else "waiting for the last streams"
            point = {"streams": load.streams, "rate": load.rate, "paced": load.paced, **figures}
            self._table.show(point, self._before + min(load.warm_up + now - begin, load.warm_up + seconds), doing)

        measured = self._clients.measure(load, seconds, tick, TICK_SECONDS)
        self._before += load.warm_up + seconds
        return measured
