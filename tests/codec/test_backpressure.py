"""If streams come faster than the codec decodes them, it applies backpressure, and lifts it later."""

from __future__ import annotations

import numpy as np
import pytest

from codec.listening import Gate, Listener, MakeEngine, random_codes
from engine_lib.codec import backpressure as backpressure_module
from engine_lib.codec.backpressure import BACKPRESSURE_SECONDS, RENEWAL_SECONDS, Backpressure
from patience import PATIENCE, eventually


def test_a_few_streams_may_wait_and_more_are_said_once() -> None:
    backpressure = Backpressure(num_slots=64)
    sent = [backpressure.update(waiting, 0.0) for waiting in (0, 8, 9, 8, 5, 4, 8)]
    assert sent == [
        None,
        None,
        BACKPRESSURE_SECONDS,
        None,
        None,
        0.0,
        None,
    ]


def test_what_lasts_is_said_again_before_it_expires() -> None:
    backpressure, sent = Backpressure(num_slots=1), []
    times = np.arange(0.0, 5.0, 0.1)
    for now in times:
        if (seconds := backpressure.update(100, now)) is not None:
            sent.append((now, seconds))
    assert {seconds for _, seconds in sent} == {BACKPRESSURE_SECONDS}
    assert max(np.diff([now for now, _ in sent])) < RENEWAL_SECONDS + 0.15 < BACKPRESSURE_SECONDS


def test_the_engine_says_it_while_more_streams_come_than_have_slots(
    make_engine: MakeEngine, rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[float] = []
    monkeypatch.setattr(backpressure_module, "RENEWAL_SECONDS", PATIENCE)  # once, however slow this machine is
    engine = make_engine(slots=2, start=False)
    monkeypatch.setattr(engine, "_on_backpressure", sent.append)
    gate = Gate(engine, monkeypatch)
    listeners = [Listener(engine) for _ in range(10)]
    engine.start()
    for listener in listeners:
        listener.send(random_codes(rng, 1))
    assert gate.reached.wait(PATIENCE)
    gate.open()
    eventually(lambda: sent == [BACKPRESSURE_SECONDS], "eight streams wait for a slot")
    for listener in listeners:
        listener.send(random_codes(rng, 0), is_final=True)
    for listener in listeners:
        assert [answer.error for answer in listener.rest()] == ["", ""]
    assert sent == [BACKPRESSURE_SECONDS, 0.0]
    assert engine.stats().free_slots == 2
