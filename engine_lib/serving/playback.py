"""Playback: whether clients always have audio in hand, as the server sees it.

A client is taken to play a stream from its first chunk on, without a buffer. Networks and players differ; here the same rule holds
for all, so a figure that grows is the server's doing.
"""

from __future__ import annotations

from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.metrics import Metrics


class Playback:
    """The audio that one client has in hand. Times are seconds on the caller's clock."""

    def __init__(self) -> None:
        self._sent_at: float | None = None
        self._lasts_until = 0.0

    def send(self, seconds: float, now: float) -> tuple[float, float] | None:
        """Record a chunk with `seconds` of audio.

        Returns:
            The time since the chunk before it, and how long the client had no audio; None for the first chunk.
        """
        sent_at, self._sent_at = self._sent_at, now
        silence = max(now - self._lasts_until, 0.0)
        self._lasts_until = max(self._lasts_until, now) + seconds
        return None if sent_at is None else (now - sent_at, silence)


class PlaybackMetrics:
    """The gaps and underruns of all streams.

    Attributes:
        gaps: the latest ones.
        chunks, underruns, silence: chunks sent, those that came too late, and the seconds that their clients had no audio.
    """

    def __init__(self, metrics: Metrics) -> None:
        self.gaps = LatencyWindow()
        metrics.quantiles("chunk_gap_seconds", "Time from one chunk of a stream to the next, as they are sent", self.gaps)
        self.chunks = metrics.counter("audio_chunks_total", "Chunks of audio sent")
        late = "Chunks sent after their client, which plays from its first chunk on, had run out of audio"
        self.underruns = metrics.counter("underruns_total", late)
        self.silence = metrics.counter("underrun_seconds_total", "Time for which these clients had no audio")

    def send(self, playback: Playback | None, seconds: float, now: float) -> None:
        """Record a chunk with `seconds` of audio of the stream that `playback` belongs to; None: the stream is no longer open."""
        if not seconds:
            return
        self.chunks.add(1)
        passed = playback.send(seconds, now) if playback is not None else None
        if passed is not None:
            gap, silence = passed
            self.gaps.add(gap)
            if silence:
                self.underruns.add(1)
                self.silence.add(silence)
