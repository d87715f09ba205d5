"""The parts of soak.py: its line through samples, its comparison with a solo run, its plot."""

from __future__ import annotations

import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fuzzing.attacks import Attack, GrpcAttack, HttpAttack
from fuzzing.resources import ENGINE_MODULE
from fuzzing.sending import Outcomes, Sender
from soaking.clock import DRAIN_SECONDS, END_SECONDS, Clock, TooLate
from soaking.flatness import slope
from soaking.memory import excuse, growth_of
from soaking.speech import AUDIO, FORM, Rule, Spoken, Utterance, difference, joined, utterances
from tritonclient.grpc.service_pb2 import ModelInferRequest

from engine_lib.codec.isolation.remote_engine import CHILD_MODULE as codec_module
from engine_lib.talker.isolation.remote_engine import CHILD_MODULE as talker_module
from engine_lib.talker.parallel.rank_zero import RANK_MODULE
from patience import PATIENCE
from qwen3_tts_client.protocol import AudioChunk

SECONDS = np.arange(0, 600, 3.0)
UTTERANCE = Utterance("Hello.", {"max_frames": 2})
SOLO = Spoken(np.linspace(-0.5, 0.5, 2 * 1920, dtype=np.float32), (1920, 1920, 0), "length")


def noise(seed: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """One MB up and down, each sample near the one before."""
    steps = np.random.default_rng(seed).normal(0, 1, len(SECONDS) + 20)
    return np.convolve(steps, np.ones(10) / 10**0.5, "valid")[: len(SECONDS)]


def test_a_slope_and_its_uncertainty_are_those_of_the_line() -> None:
    line = slope(SECONDS, 500 + SECONDS / 3600 * 30)
    assert line is not None
    assert line.per_hour == pytest.approx(30)
    assert line.uncertainty == pytest.approx(0, abs=1e-6)
    assert line.is_above(29)
    assert line.is_below(31)
    assert slope([0, 1, 2], [1, 2, 3]) is None
    level = slope(SECONDS, [500.0] * len(SECONDS))
    assert level is not None
    assert level.per_hour == pytest.approx(0, abs=1e-9)
    assert level.uncertainty == pytest.approx(0, abs=1e-9)


def test_a_level_that_wanders_is_hardly_ever_called_a_growth_and_a_growth_is() -> None:
    levels = [slope(SECONDS, 500 + noise(seed)) for seed in range(200)]
    assert sum(line is not None and line.is_above(1.0) for line in levels) < 20
    growing = [slope(SECONDS, 500 + noise(seed) + SECONDS / 3600 * 120) for seed in range(200)]
    assert sum(line is not None and line.is_above(1.0) for line in growing) > 180


@pytest.mark.parametrize(
    ("spoken", "by_audio", "by_form"),
    [
        (SOLO, "", ""),
        (Spoken(SOLO.audio + np.float32(1e-6), SOLO.sizes, "length"), "", ""),
        (Spoken(np.concatenate([SOLO.audio[:1920], -SOLO.audio[1920:]]), SOLO.sizes, "length"), "from frame 1 on", ""),
        (Spoken(SOLO.audio[:1920], (1920, 0), "length"), "alone length after 3840 in 3", "1920 samples, not 3840"),
        (Spoken(SOLO.audio[:1920], (1920, 0), "stop"), "stop after 1920 samples", ""),
        (Spoken(SOLO.audio, SOLO.sizes, "error"), "error after 3840 samples", "it ended with error"),
        (Spoken(np.full(3840, np.nan, np.float32), SOLO.sizes, "length"), "samples that are no numbers", "samples that are no numbers"),
    ],
)
def test_a_stream_is_compared_with_its_solo_run(spoken: Spoken, by_audio: str, by_form: str) -> None:
    for compared, expected in ((AUDIO, by_audio), (FORM, by_form)):
        fault = Rule(compared, 1e-5).fault(UTTERANCE, SOLO, spoken)
        assert expected in fault
        assert bool(fault) == bool(expected)


def test_the_largest_difference_is_that_of_streams_of_one_length() -> None:
    assert difference(SOLO, Spoken(SOLO.audio + np.float32(0.25), SOLO.sizes, "length")) == pytest.approx(0.25)
    assert difference(SOLO, Spoken(SOLO.audio[:1920], (1920, 0), "stop")) is None


def chunk(index: int, is_final: bool = False) -> AudioChunk:
    samples = np.zeros(0 if is_final else 1920, np.float32)
    return AudioChunk(samples, 24000, index, is_final, "stop" if is_final else "")


def test_chunks_must_be_in_order_and_end_with_the_final_one() -> None:
    assert joined([chunk(0), chunk(1), chunk(2, is_final=True)]).sizes == (1920, 1920, 0)
    with pytest.raises(ValueError, match=r"in the order \[0, 2\]"):
        joined([chunk(0), chunk(2, is_final=True)])
    with pytest.raises(ValueError, match="the final chunk is missing"):
        joined([chunk(0), chunk(1)])


def test_texts_are_spoken_greedily_and_their_lengths_are_fixed() -> None:
    texts = utterances(5, seed=1)
    assert texts == utterances(5, seed=1)
    assert all(text.sampling["do_sample"] is False and 8 <= text.sampling["max_frames"] <= 250 for text in texts)


def samples(ours: float, triton: float) -> list[dict[str, float]]:
    """Those of ten minutes in which memory grows by so many MB an hour; 10 requests a second."""
    levels = [{"memory_mb talker": 200 + ours / 3600 * at, "memory_mb tritonserver": 30 + triton / 3600 * at} for at in SECONDS]
    return [
        {"seconds": float(at), "sent": 10.0 * at, "memory_mb": sum(level.values()), **level}
        for at, level in zip(SECONDS, levels, strict=True)
    ]


@pytest.mark.parametrize(
    ("ours", "triton", "version", "reasons", "not_judged"),
    [
        (0.5, 0.5, "2.67.0", [], []),
        (2.0, 0.0, "2.67.0", ["ours: memory grows by 2.0"], []),
        (0.0, 36.0, "2.67.0", ["tritonserver: memory grows by 36.0"], []),
        (0.0, 36.0, "2.51.0", [], ["tritonserver: 36.0 ± 0.0 MB/h, 1.02 KB a request; 2.51.0 keeps"]),
        (2.0, 36.0, "2.51.0", ["ours: memory grows by 2.0"], ["tritonserver: 36.0"]),
    ],
)
def test_growth_of_an_old_triton_is_told_and_any_other_is_judged(
    ours: float, triton: float, version: str, reasons: list[str], not_judged: list[str]
) -> None:
    memory = growth_of(samples(ours, triton), 2000, 1.0, excuse(version, share_that_leaves=0.1))
    for found, expected in ((memory.reasons(), reasons), (memory.not_judged(), not_judged)):
        assert [text[: len(start)] for text, start in zip(found, expected, strict=True)] == expected
    assert memory.kb_per_request["memory_mb tritonserver"] == pytest.approx(triton / 36 * 1.024, abs=2e-3)


def test_a_cache_that_fills_is_no_leak() -> None:
    filling = [sample | {"memory_mb": sample["memory_mb"] + min(sample["seconds"], 300.0) / 10} for sample in samples(0.0, 0.0)]
    memory = growth_of(filling, 0, 1.0, "")
    slope_of_ours = memory.slopes["memory_mb ours"]
    assert slope_of_ours is not None
    assert slope_of_ours.is_above(1.0)
    assert memory.reasons() == []


def test_few_requests_show_no_growth_and_listeners_alone_excuse_none() -> None:
    memory = growth_of(samples(2.0, 36.0), 6000, 1.0, "")
    assert (memory.reasons(), memory.not_judged()) == ([], ["memory: too few requests or samples"])
    assert excuse("2.51.0", share_that_leaves=0.0) == ""


def test_an_engine_in_its_own_process_has_its_own_line() -> None:
    engines = [found[1] for module in (talker_module, codec_module, RANK_MODULE) if (found := ENGINE_MODULE.fullmatch(module))]
    assert engines == ["talker", "codec", "talker"]


def test_shorter_texts_can_be_asked_for() -> None:
    assert {text.sampling["max_frames"] <= 40 for text in utterances(20, seed=1, most_frames=40)} == {True}


def test_the_load_is_cut_so_that_the_verdict_comes_in_time() -> None:
    assert Clock(None).load_seconds(480.0) == 480.0
    assert Clock(None).drain_seconds is None
    clock = Clock(within=600.0, begin=time.time() - 100.0)
    assert clock.load_seconds(60.0) == 60.0
    assert clock.load_seconds(480.0) == pytest.approx(500.0 - DRAIN_SECONDS - END_SECONDS, abs=30.0)
    with pytest.raises(TooLate, match="--within 90"):
        Clock(within=90.0, begin=time.time() - 80.0).load_seconds(60.0)


def test_a_clock_that_is_set_changes_no_time_of_a_soak(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(within=600.0, begin=time.time())
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 5 * 3600.0)
    assert clock.load_seconds(60.0) == 60.0
    clock.has_ended("load")
    assert clock.reached["load"] < 3600.0


def test_a_hostile_request_without_an_answer_is_left_at_the_end() -> None:
    with socket.create_server(("localhost", 0)) as deaf, ThreadPoolExecutor() as pool:
        address = f"localhost:{deaf.getsockname()[1]}"
        deaf.settimeout(PATIENCE)
        outcomes = Outcomes()
        sender = Sender(address, address, outcomes, PATIENCE)
        attacks: list[Attack] = [
            HttpAttack("talker", "/v2", b"{}"),
            GrpcAttack(ModelInferRequest(model_name="talker"), streams=True, leaves=False),
        ]
        sent = [pool.submit(sender.send, attack) for attack in attacks]
        with deaf.accept()[0], deaf.accept()[0]:
            sender.leave()
        sent.append(pool.submit(sender.send, attacks[0]))
        for one in sent:
            one.result(PATIENCE)
    assert (outcomes.answers, outcomes.bugs) == ({"talker: left": 3}, [])


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from soaking.plot import plot

    samples = [{"seconds": 3.0 * i, "memory_mb": 500.0, "memory_mb talker": 200.0, "active_streams": 1.0, "threads": 9.0} for i in range(9)]
    plot(samples, 9.0, {"memory_mb": "0.0 ± 0.0 MB/h"}, "a processor", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
