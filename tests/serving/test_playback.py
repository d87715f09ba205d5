"""Gaps and underruns of clients that play from the first chunk on."""

from __future__ import annotations

import pytest

from engine_lib.serving.metrics import Metrics
from engine_lib.serving.playback import Playback, PlaybackMetrics


def test_a_client_runs_dry_if_the_next_chunk_comes_after_its_audio() -> None:
    client = Playback()
    assert client.send(0.5, now=10.0) is None
    assert client.send(1.0, now=10.25) == (0.25, 0.0)
    assert client.send(1.0, now=11.5) == (1.25, 0.0), "it has had audio until now"
    assert client.send(0.5, now=13.0) == (1.5, 0.5), "it had none for half a second"
    assert client.send(0.5, now=13.5) == (0.5, 0.0), "it has played on since"


def test_only_chunks_with_audio_of_open_streams_count() -> None:
    metrics = PlaybackMetrics(Metrics(None, {}))
    client = Playback()
    for seconds, now in ((1.0, 10.0), (1.0, 12.0), (1.0, 12.5), (0.0, 99.0)):
        metrics.send(client, seconds, now)
    metrics.send(None, 1.0, now=100.0)
    counted = [counter.take()[""] for counter in (metrics.chunks, metrics.underruns, metrics.silence)]
    assert counted == pytest.approx([4, 1, 1.0])
    assert metrics.gaps.latest(9) == [2.0, 0.5]
