"""CodecMetrics: the measurements of the codec's model, beside those that every engine has."""

from __future__ import annotations

from collections.abc import Sized

from engine_lib.codec.base_engine import BaseCodecEngine
from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.metrics import Metrics
from engine_lib.serving.playback import PlaybackMetrics


class CodecMetrics:
    """Reads the engine; the service reports the rest here.

    Attributes:
        first_audio_times: how long the latest streams waited for their first audio, from their first codes.
        playback: what the clients have in hand.
        audio_seconds: of all streams.
        clipped_samples: those that an audio chain has cut off.
        client_cancels: streams with a client that has cancelled or gone.
        direct_messages: those that came past Triton.
        failures: streams with audio that failed.
    """

    def __init__(self, metrics: Metrics, engine: BaseCodecEngine, streams: Sized) -> None:
        """Add them to `metrics`; totals count from now on. `streams`: those that have no final message."""
        stats = engine.stats
        metrics.gauge("codec_open_streams", "Codec slots in use", lambda: stats().open_streams)
        metrics.gauge("codec_unfinished_streams", "Streams that the codec waits for the final message of", lambda: len(streams))
        metrics.gauge("codec_free_slots", "Codec slots free", lambda: stats().free_slots)
        self.first_audio_times = LatencyWindow()
        metrics.quantiles("first_audio_seconds", "From a stream's first codes until they are decoded", self.first_audio_times)
        metrics.gauge("codec_queued_chunks", "Chunks that wait for the codec", lambda: stats().queued_chunks)
        self.playback = PlaybackMetrics(metrics)
        metrics.total("codec_steps_total", "Cohorts of streams the codec has begun to decode", lambda: stats().num_steps)
        together = "Streams in all cohorts that the codec has begun to decode, added up"
        metrics.total("codec_cohort_streams_total", together, lambda: stats().num_decoded_pieces)
        busy = "Seconds in which the codec has kept its device busy"
        metrics.total("codec_busy_seconds_total", busy, lambda: stats().busy_seconds)
        self.audio_seconds = metrics.counter("audio_seconds_total", "Seconds of audio generated")
        cut_off = "Samples beyond full scale that were cut off, of streams with an audio chain"
        self.clipped_samples = metrics.counter("clipped_samples_total", cut_off)
        self.client_cancels = metrics.counter("client_cancels_total", "Streams stopped because their client cancelled or went away")
        direct = "Messages of talkers that came past Triton (codes_channel)"
        self.direct_messages = metrics.counter("direct_messages_total", direct)
        self.failures = metrics.counter("codec_failures_total", "Streams stopped because their audio failed")
