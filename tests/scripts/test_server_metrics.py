"""scripts/benching/server_metrics.py: a load has figures of its own streams alone."""

from __future__ import annotations

import pytest

from benching.server_metrics import LEAST_STREAMS, metric_figures, metrics_line


def reading(streams: int, first_codes: float) -> str:
    talker = 'model="talker",version="1",pid="7"'
    return "\n".join(
        [
            f'qwen3_tts_first_codes_seconds{{{talker},quantile="0.5"}} 0.02',
            f'qwen3_tts_first_codes_seconds{{{talker},quantile="0.99"}} 0.03',
            f'qwen3_tts_step_interval_seconds{{{talker},quantile="0.5"}} 0.002',
            f'qwen3_tts_step_interval_seconds{{{talker},quantile="0.99"}} 0.004',
            f"qwen3_tts_time_to_first_codes_seconds_count{{{talker}}} {streams}",
            f"qwen3_tts_time_to_first_codes_seconds_sum{{{talker}}} {first_codes}",
            f'nv_inference_request_success{{model="talker",version="1"}} {streams}',
            f'nv_inference_queue_duration_us{{model="talker",version="1"}} {streams * 100}',
        ]
    )


def test_a_load_of_few_streams_has_their_mean_and_no_percentile_of_the_streams_before() -> None:
    figures = metric_figures([(10.0, reading(1000, 20.0)), (18.0, reading(1040, 20.2))])
    assert "first_codes_p50_ms" not in figures
    assert figures["step_p99_ms"] == pytest.approx(4)
    assert figures["first_codes_mean_ms"] == pytest.approx(5)
    assert figures["talker_intake_ms"] == pytest.approx(0.1)
    line = metrics_line(dict(figures))
    assert "means: first codes 5.00 ms" in line
    assert "step 2.00 / 4.00" in line


def test_a_load_of_many_streams_has_their_percentiles() -> None:
    figures = metric_figures([(10.0, reading(1000, 20.0)), (18.0, reading(1000 + LEAST_STREAMS, 20.2))])
    assert (figures["first_codes_p50_ms"], figures["first_codes_p99_ms"]) == pytest.approx((20, 30))
