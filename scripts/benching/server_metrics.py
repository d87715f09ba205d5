"""A server's own metrics under load: the talker's steps, host work, sends. For bench_server.py."""

from __future__ import annotations

import re
from collections.abc import Sequence

Samples = dict[tuple[str, str, str], float]  # (model, series, quantile) -> value

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
PER_STREAM = ("accept", "first_codes", "codec_first_audio")  # one value a stream, so that their percentiles may be of the load before
LEAST_STREAMS = 500  # half of the values that a percentile is of
PERCENTILES = {"0.5": "p50", "0.99": "p99"}
LEVELS = {
    ("talker", "active_streams"): "open",
    ("talker", "running_requests"): "running",
    ("codec_decoder", "codec_queued_chunks"): "codec_queue",
}
TOTALS = {("codec_decoder", "codec_steps_total"): "cohorts_per_second", ("codec_decoder", "codec_busy_seconds_total"): "codec_busy"}
TRITON_QUEUES = {"talker": "talker_intake", "codec_decoder": "codec_intake"}  # requests that wait in Triton until the model takes them


def metric_figures(readings: Sequence[tuple[float, str]]) -> dict[str, float]:
    """Figures by name from readings of /metrics under load: (time in seconds, text), oldest first.

    Percentiles are in milliseconds (step_p99_ms), over the latest thousand values in the last reading; those of PER_STREAM are left out
    if fewer than LEAST_STREAMS streams ended between the readings. first_codes_mean_ms is of these streams alone. Levels are means of
    all readings (mean_running). Totals become rates between the first and the last reading. Of Triton's own metrics: for each model
    the mean time that a request waits until the model takes it (codec_intake_ms), and requests a second.
    """
    samples = [(seconds, samples_of(text)) for seconds, text in readings]
    if not samples:
        return {}
    (first_time, first), (last_time, last) = samples[0], samples[-1]
    ends = [samples_of(text, "nv_inference_") for _, text in (readings[0], readings[-1])]
    figures = {}

    def grown(model: str, series: str, of: Sequence[Samples] = (first, last)) -> float:
        return of[1].get((model, series, ""), 0.0) - of[0].get((model, series, ""), 0.0)

    stale = () if grown("talker", "request_success", ends) >= LEAST_STREAMS else PER_STREAM
    for (model, series, quantile), value in last.items():
        name, percentile = SERIES.get((model, series)), PERCENTILES.get(quantile)
        if name and percentile and name not in stale:
            figures[f"{name}_{percentile}_ms"] = value * 1e3
    if (streams := grown("talker", "time_to_first_codes_seconds_count")) > 0:
        figures["first_codes_mean_ms"] = grown("talker", "time_to_first_codes_seconds_sum") / streams * 1e3
    for (model, series), name in LEVELS.items():
        levels = [found[model, series, ""] for _, found in samples if (model, series, "") in found]
        if levels:
            figures[f"mean_{name}"] = sum(levels) / len(levels)
    for (model, series), name in TOTALS.items():
        key = (model, series, "")
        if key in first and key in last and last_time > first_time:
            figures[name] = (last[key] - first[key]) / (last_time - first_time)
    for model, name in TRITON_QUEUES.items():
        if (requests := grown(model, "request_success", ends)) > 0:
            figures[f"{name}_ms"] = grown(model, "queue_duration_us", ends) / requests / 1e3
            figures[f"{name}_per_second"] = requests / (last_time - first_time)
    return figures


def samples_of(metrics: str, prefix: str = "qwen3_tts_") -> Samples:
    """(model, series, quantile) -> value, of all series in the text of /metrics whose names begin with `prefix`, which is left out."""
    samples = {}
    for name, labels, value in re.findall(rf"^{prefix}(\w+)\{{(.*)\}} (\S+)$", metrics, re.MULTILINE):
        label = dict(re.findall(r'(\w+)="([^"]*)"', labels))
        samples[label.get("model", ""), name, label.get("quantile", "")] = float(value)
    return samples


def metrics_line(point: dict[str, object]) -> str:
    """The figures of one point on one line; "" if there are none."""
    parts = [
        f"{series.replace('_', ' ')} {point[f'{series}_p50_ms']:.2f} / {point[f'{series}_p99_ms']:.2f}"
        for series in SERIES.values()
        if f"{series}_p50_ms" in point and f"{series}_p99_ms" in point
    ]
    levels = [f"first codes {point['first_codes_mean_ms']:.2f} ms"] if "first_codes_mean_ms" in point else []
    levels += [f"{name.replace('_', ' ')} {point[f'mean_{name}']:.1f}" for name in LEVELS.values() if f"mean_{name}" in point]
    levels += [f"{name.replace('_', ' ')} {point[name]:.3g}" for name in TOTALS.values() if name in point]
    levels += [
        f"{name.replace('_', ' ')} {point[f'{name}_ms']:.2f} ms at {point[f'{name}_per_second']:.0f}/s"
        for name in TRITON_QUEUES.values()
        if f"{name}_ms" in point
    ]
    return f"inside, ms p50 / p99: {', '.join(parts)}; means: {', '.join(levels)}" if parts else ""
