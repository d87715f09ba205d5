"""TextWaits: when a stream has waited too long for more of its text."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from engine_lib.talker.text.waits import TextWaits


def waiting(waits: TextWaits) -> Any:
    """A sequence that has spoken all text it has."""
    sequence: Any = type("Waiting", (SimpleNamespace,), {"__hash__": object.__hash__})(status=None, text_is_open=True, lacks_text=True)
    waits.add(sequence)
    return sequence


def test_a_wait_for_text_has_an_end_which_further_text_puts_off() -> None:
    waits = TextWaits(100.0, 1.0)
    silent, fed = waiting(waits), waiting(waits)
    waits.look(1000.0)
    assert list(waits.to_flush(1000.5)) == []
    assert list(waits.to_flush(1001.0)) == [silent, fed]
    assert waits.due == [1090.0, 1090.0]
    assert list(waits.to_end(1090.0)) == []
    assert waits.due == [1100.0, 1100.0]
    waits.fed(fed)
    waits.look(1095.0)
    assert list(waits.to_end(1100.0)) == [silent]


def test_time_in_which_the_engine_did_not_run_is_no_wait() -> None:
    waits = TextWaits(100.0, 1.0)
    waited_for, silent = waiting(waits), waiting(waits)
    waits.look(1000.0)
    assert list(waits.to_flush(1001.0)) == [waited_for, silent]
    assert list(waits.to_end(1500.0)) == []  # suspended: its text may have come meanwhile
    waits.fed(waited_for)
    waits.look(1501.0)
    assert list(waits.to_end(1509.0)) == []
    assert list(waits.to_end(1511.0)) == [silent]
