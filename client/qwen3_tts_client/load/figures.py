"""Statistics of a load: what each request received and when, and the figures of all.

Times are seconds of one clock. A stream is measured if it began within the window; audio counts if it arrived within the window.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import NamedTuple

import numpy as np

from qwen3_tts_client.load.texts import FRAMES_PER_SECOND

DONE, REFUSED, FAILED, UNFINISHED = "done", "refused", "failed", "unfinished"
PERCENTILES = (50, 95, 99)
# Names of figures that others compare and draw.
P50, P95, GAP, THROUGHPUT = "first_audio_p50_ms", "first_audio_p95_ms", "gap_p99_ms", "audio_seconds_per_second"
AUDIBLE_P50, AUDIBLE_P95 = "first_audible_p50_ms", "first_audible_p95_ms"


@dataclass
class Spoken:
    """One request.

    Attributes:
        sent: time of sending.
        outcome: done; refused by a server that is full; failed; unfinished if it was cut at the end of the load.
        error, error_type: why it failed or was refused, and the name of the client's error; else "".
        arrivals, seconds: arrival and seconds of audio of each chunk with samples.
        audible_at: seconds of audio before the first audible sample; None if none has come.
        ended: time of its end; None if it was cut.
    """

    sent: float
    outcome: str = UNFINISHED
    error: str = ""
    error_type: str = ""
    arrivals: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    audible_at: float | None = None
    ended: float | None = None

    def playback(self) -> list[Played]:
        """When a listener hears each chunk. Playback begins with the first chunk and waits for a late one."""
        played: list[Played] = []
        for arrival, seconds in zip(self.arrivals, self.seconds, strict=True):
            due = played[-1].end if played else arrival
            begin = max(arrival, due)
            played.append(Played(begin, begin + seconds, arrival > due))
        return played

    def first_audible(self) -> float | None:
        """When a listener hears the first audible sample; None if there is none."""
        if self.audible_at is None:
            return None
        for played, ends_at in zip(self.playback(), accumulate(self.seconds), strict=True):
            if ends_at > self.audible_at:
                return played.end - (ends_at - self.audible_at)
        return None


class Played(NamedTuple):
    """A chunk as it is played: begin and end, and whether it arrived after the audio before it was played out."""

    begin: float
    end: float
    is_late: bool


@dataclass(frozen=True)
class Report:
    """The report of one client process: its requests, and the share of one core that it needed within the window."""

    requests: list[Spoken]
    client_cpu: float


class Window(NamedTuple):
    """The reports of all client processes about one window, and the window."""

    reports: Sequence[Report]
    begin: float
    end: float

    @property
    def requests(self) -> list[Spoken]:
        """All requests, also those before the window."""
        return [spoken for report in self.reports for spoken in report.requests]

    def late_chunks(self, spoken: Spoken) -> int:
        """Chunks of a stream that came late after the beginning of the window."""
        return sum(played.is_late and played.begin >= self.begin for played in spoken.playback())


def summary(windows: Sequence[Window], *, paced: bool = False) -> dict[str, object]:
    """Figures of one point from its windows of equal length: percentiles over the streams of all, means of the rest.

    If `paced`, the underruns are those of all streams that a listener hears after the beginning of the window, also of streams that
    began before it.
    """
    requests = [spoken for window in windows for spoken in window.requests]
    measured = [spoken for window in windows for spoken in window.requests if window.begin <= spoken.sent < window.end]
    audio = [audio_figures(window.requests, window.begin, window.end)[THROUGHPUT] for window in windows]
    streams = float(np.mean([mean_streams(window.requests, window.begin, window.end) for window in windows]))
    cpu = float(np.mean([sum(report.client_cpu for report in window.reports) for window in windows]))
    return {
        **stream_figures(measured),
        **(_underruns([window.late_chunks(spoken) for window in windows for spoken in window.requests]) if paced else {}),
        THROUGHPUT: float(np.mean(audio)),
        "first_error": next((spoken.error for spoken in requests if spoken.outcome == FAILED), ""),
        "mean_streams": streams,
        "client_cpu": max(report.client_cpu for window in windows for report in window.reports),
        "client_cpu_per_stream": cpu / streams if streams else None,
    }


def stream_figures(measured: Sequence[Spoken]) -> dict[str, object]:
    """Figures of streams: percentiles in milliseconds (None if there is nothing to measure), underruns, lengths, outcomes, errors."""
    first = [spoken.arrivals[0] - spoken.sent for spoken in measured if spoken.arrivals]
    gaps = [later - earlier for spoken in measured for earlier, later in zip(spoken.arrivals, spoken.arrivals[1:], strict=False)]
    audible = [heard - spoken.sent for spoken in measured if (heard := spoken.first_audible()) is not None]
    late = [sum(played.is_late for played in spoken.playback()) for spoken in measured]
    done = [spoken for spoken in measured if spoken.outcome == DONE and spoken.arrivals]
    factors = [(spoken.arrivals[-1] - spoken.sent) / sum(spoken.seconds) for spoken in done if sum(spoken.seconds)]
    frames = [sum(spoken.seconds) * FRAMES_PER_SECOND for spoken in done]
    return {
        **{f"first_audio_p{percent}_ms": _percentile(first, percent, 1e3) for percent in PERCENTILES},
        **{f"first_audible_p{percent}_ms": _percentile(audible, percent, 1e3) for percent in PERCENTILES},
        "inaudible": sum(bool(spoken.arrivals) for spoken in measured) - len(audible),
        **{f"gap_p{percent}_ms": _percentile(gaps, percent, 1e3) for percent in PERCENTILES},
        **_underruns(late),
        "real_time_factor_p50": _percentile(factors, 50),
        "real_time_factor_p95": _percentile(factors, 95),
        "mean_frames": float(np.mean(frames)) if any(frames) else None,
        "requests": len(measured),
        **{outcome: sum(spoken.outcome == outcome for spoken in measured) for outcome in (DONE, REFUSED, FAILED, UNFINISHED)},
        "errors": _errors(measured),
    }


def _underruns(late: Sequence[int]) -> dict[str, object]:
    """Figures from the number of late chunks of each stream."""
    return {"streams_with_underruns": sum(count > 0 for count in late), "underruns": sum(late)}


def audio_figures(requests: Sequence[Spoken], begin: float, end: float) -> dict[str, float]:
    """Seconds of audio that arrived in the window, a second."""
    audio = sum(
        seconds for spoken in requests for arrival, seconds in zip(spoken.arrivals, spoken.seconds, strict=True) if begin <= arrival < end
    )
    return {THROUGHPUT: audio / (end - begin)}


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
