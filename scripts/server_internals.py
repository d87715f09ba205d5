"""What a server says of its own inside while it is under load: the talker's rhythm, the host's work, the sends. For bench_server.py."""

from __future__ import annotations

import re

SERIES = {
    ("talker", "step_interval_seconds"): "step",
    ("talker", "step_host_seconds"): "host",
    ("talker", "accept_seconds"): "accept",
    ("talker", "first_codes_seconds"): "first_codes",
    ("codec_decoder", "first_audio_seconds"): "codec_first_audio",
    ("talker", "send_seconds"): "talker_send",
    ("talker", "send_wait_seconds"): "talker_send_wait",
    ("codec_decoder", "send_seconds"): "codec_send",
    ("codec_decoder", "send_wait_seconds"): "codec_send_wait",
}
PERCENTILES = {"0.5": "p50", "0.99": "p99"}


def internals(metrics: str) -> dict[str, float]:
    """Milliseconds by name, as step_p99_ms, from the text of /metrics; of the latest thousand of each."""
    figures = {}
    for name, labels, value in re.findall(r"^qwen3_tts_(\w+)\{(.*)\} (\S+)$", metrics, re.MULTILINE):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        series, percentile = SERIES.get((label.get("model", ""), name)), PERCENTILES.get(label.get("quantile", ""))
        if series and percentile:
            figures[f"{series}_{percentile}_ms"] = float(value) * 1e3
    return figures


def inside_line(point: dict[str, object]) -> str:
    """The figures of one point on one line, or "" where there are none."""
    parts = [
        f"{series.replace('_', ' ')} {point[f'{series}_p50_ms']:.2f} / {point[f'{series}_p99_ms']:.2f}"
        for series in SERIES.values()
        if f"{series}_p50_ms" in point and f"{series}_p99_ms" in point
    ]
    return f"inside, ms p50 / p99: {', '.join(parts)}" if parts else ""
