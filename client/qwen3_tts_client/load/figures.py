"""Statistics of a load: what each request received and when, and the figures of all.

Times are seconds of one clock. A stream is measured if it began within the window; audio counts if it arrived within the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from qwen3_tts_client.load.texts import FRAMES_PER_SECOND

DONE, REFUSED, FAILED, UNFINISHED = "done", "refused", "failed", "unfinished"
PERCENTILES = (50, 95, 99)
# Names of figures that others compare and draw.
P50, P95, GAP, THROUGHPUT = "first_audio_p50_ms", "first_audio_p95_ms", "gap_p99_ms", "audio_seconds_per_second"


@dataclass
class Spoken:
    """One request.

    Attributes:
        sent: time of sending.
        outcome: done; refused by a server that is full; failed; unfinished if it was cut at the end of the load.
        error, error_type: why it failed or was refused, and the name of the client's error; else "".
        arrivals, seconds: arrival and seconds of audio of each chunk with samples.
        ended: time of its end; None if it was cut.
    """

    sent: float
    outcome: str = UNFINISHED
    error: str = ""
    error_type: str = ""
    arrivals: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    ended: float | None = None

    def late_chunks(self) -> int:
        """Chunks that arrived after the audio before them was played out; playback begins with the first and waits for a late one."""
        late, played_until = 0, float("inf")
        for index, (arrival, seconds) in enumerate(zip(self.arrivals, self.seconds, strict=True)):
            late += arrival > played_until
            played_until = seconds + (arrival if index == 0 else max(arrival, played_until))
        return late


@dataclass(frozen=True)
class Report:
    """The report of one client process: its requests, and the share of one core that it needed within the window."""

    requests: list[Spoken]
    client_cpu: float


def summary(reports: Sequence[Report], begin: float, end: float) -> dict[str, object]:
    """Figures of one point from the reports of its client processes."""
    requests = [spoken for report in reports for spoken in report.requests]
    streams = mean_streams(requests, begin, end)
    cpu = sum(report.client_cpu for report in reports)
    return {
        **stream_figures([spoken for spoken in requests if begin <= spoken.sent < end]),
        **audio_figures(requests, begin, end),
        "first_error": next((spoken.error for spoken in requests if spoken.outcome == FAILED), ""),
        "mean_streams": streams,
        "client_cpu": max(report.client_cpu for report in reports),
        "client_cpu_per_stream": cpu / streams if streams else None,
    }


def stream_figures(measured: Sequence[Spoken]) -> dict[str, object]:
    """Figures of streams: percentiles in milliseconds (None if there is nothing to measure), underruns, lengths, outcomes, errors."""
    first = [spoken.arrivals[0] - spoken.sent for spoken in measured if spoken.arrivals]
    gaps = [later - earlier for spoken in measured for earlier, later in zip(spoken.arrivals, spoken.arrivals[1:], strict=False)]
    late = [spoken.late_chunks() for spoken in measured]
    done = [spoken for spoken in measured if spoken.outcome == DONE and spoken.arrivals]
    factors = [(spoken.arrivals[-1] - spoken.sent) / sum(spoken.seconds) for spoken in done if sum(spoken.seconds)]
    frames = [sum(spoken.seconds) * FRAMES_PER_SECOND for spoken in done]
    return {
        **{f"first_audio_p{percent}_ms": _percentile(first, percent, 1e3) for percent in PERCENTILES},
        **{f"gap_p{percent}_ms": _percentile(gaps, percent, 1e3) for percent in PERCENTILES},
        "streams_with_underruns": sum(count > 0 for count in late),
        "underruns": sum(late),
        "real_time_factor_p50": _percentile(factors, 50),
        "real_time_factor_p95": _percentile(factors, 95),
        "mean_frames": float(np.mean(frames)) if any(frames) else None,
        "requests": len(measured),
        **{outcome: sum(spoken.outcome == outcome for spoken in measured) for outcome in (DONE, REFUSED, FAILED, UNFINISHED)},
        "errors": _errors(measured),
    }


def audio_figures(requests: Sequence[Spoken], begin: float, end: float) -> dict[str, object]:
    """Seconds of audio that arrived in the window, a second."""
    audio = sum(
        seconds for spoken in requests for arrival, seconds in zip(spoken.arrivals, spoken.seconds, strict=True) if begin <= arrival < end
    )
    return {"audio_seconds_per_second": audio / (end - begin)}


def mean_streams(requests: Sequence[Spoken], begin: float, end: float) -> float:
    """Streams that were open, on average over the window."""
    open_seconds = sum(max(0.0, min(end if spoken.ended is None else spoken.ended, end) - max(spoken.sent, begin)) for spoken in requests)
    return open_seconds / (end - begin)


def _errors(measured: Sequence[Spoken]) -> dict[str, dict[str, object]]:
    """By the name of the client's error: how many requests it ended, and the message of the first."""
    counts = Counter(spoken.error_type for spoken in measured if spoken.error_type)
    first = {spoken.error_type: spoken.error for spoken in reversed(measured)}
    return {name: {"count": count, "first": first[name]} for name, count in counts.most_common()}


def _percentile(values: list[float], percent: float, scale: float = 1.0) -> float | None:
    return float(np.percentile(values, percent)) * scale if values else None
