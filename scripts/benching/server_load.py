"""Puts a load on servers and reads the metrics of one. For bench_server.py and bench_layouts.py."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from benching.server_metrics import metric_figures
from qwen3_tts_client.load.clients import Clients, Point
from qwen3_tts_client.load.streams import Load

READ_SECONDS = 0.4  # between two readings of /metrics


def measure_server(clients: Clients, load: Load, seconds: float, metrics: Callable[[], str] | None, servers: Sequence[str] = ()) -> Point:
    """Figures of one load, with the server's own.

    Args:
        clients: they make the load.
        load: without a window.
        seconds: length of the window.
        metrics: reads /metrics; None: of another's server.
        servers: as in Clients.measure.
    """
    readings = []

    def read_metrics(begin: float, _: object) -> None:
        if metrics is not None and begin <= time.monotonic() < begin + seconds:
            with suppress(OSError):
                readings.append((time.monotonic(), metrics()))

    measured = clients.measure(load, seconds, read_metrics, READ_SECONDS, servers)
    return Point(measured.figures | metric_figures(readings), measured.window)
