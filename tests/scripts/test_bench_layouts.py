"""The layouts of several cards: which fit a machine, what a server sees, tables, plot. No servers."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import bench_layouts
import pytest
import torch

from benching.layouts import CARDS, Cards, all_of, choose
from benching.layouts_table import beside_one, frame_lines

ONE = {"layout": "one", "cards": 1, "streams_a_server": 64, "audio_seconds_per_second": 600.0}
TWO = {"layout": "servers", "cards": 2, "streams_a_server": 64, "audio_seconds_per_second": 1140.0}
FRAME = {"layout": "one", "cards": 1, "batch": 1, "ms": 2.5}
PROMPT = {"layout": "tp2", "cards": 2, "prompt_rows": 64, "first_codes_ms": 4.25}


def test_a_layout_that_needs_more_cards_is_skipped_with_the_reason() -> None:
    chosen, skipped = choose(list(CARDS), Cards(("0", "1"), is_gpu=True))
    assert chosen == ["one", "servers", "codec", "tp2"]
    assert skipped == ["skipped: tp4 needs 4 GPUs, here are 2", "skipped: tp8 needs 8 GPUs, here are 2"]
    assert choose(["codec", "one"], Cards(("0", "1"), is_gpu=False))[0] == ["one"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--layouts", "tp4"], "--layouts: none fits this machine; skipped: tp4 needs 4 GPUs, here are 2"),
        (["--cards", "3"], "--cards: 3 is not allowed; this machine has 2 GPUs"),
        (["--streams", "0"], "--streams: [0] is not allowed; give numbers from 1 on"),
    ],
)
def test_what_this_machine_cannot_do_is_refused(
    arguments: list[str], reason: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["bench_layouts.py", *arguments])
    with pytest.raises(SystemExit):
        bench_layouts.main()
    assert reason in capsys.readouterr().err


def test_each_server_sees_its_own_card_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert Cards.of_this_machine("auto", 2).environment(1) == {"CUDA_VISIBLE_DEVICES": "1"}
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-a,GPU-b,GPU-c")
    assert Cards.of_this_machine("auto", None).environment(0, 2) == {"CUDA_VISIBLE_DEVICES": "GPU-a,GPU-c"}
    assert Cards.of_this_machine("cpu", None).environment(1) == {}


@pytest.mark.parametrize(("cards", "steps"), [(1, []), (2, [2]), (3, [2, 3]), (4, [2, 4]), (8, [2, 4, 8])])
def test_servers_are_measured_on_twice_as_many_cards_each_time(cards: int, steps: list[int]) -> None:
    assert Cards(tuple(map(str, range(cards))), is_gpu=True).steps() == steps


def test_when_one_server_does_not_start_the_others_are_stopped() -> None:
    stopped = []

    @contextmanager
    def server(number: int) -> Iterator[int]:
        if number == 1:
            raise OSError("no card")
        yield number
        stopped.append(number)

    with pytest.raises(OSError, match="no card"), all_of([server(number) for number in range(3)]):
        pass
    assert sorted(stopped) == [0, 2]


def test_a_load_stands_beside_one_card_with_as_many_streams_a_server() -> None:
    assert beside_one(ONE, []) == {"audio_seconds_per_second_a_card": 600, "times_one_card": 1}
    assert beside_one(TWO, [ONE, FRAME, ONE | {"streams_a_server": 128}]) == {"audio_seconds_per_second_a_card": 570, "times_one_card": 1.9}
    assert beside_one(TWO, []) == {"audio_seconds_per_second_a_card": 570}


def test_frames_stand_beside_those_of_one_card() -> None:
    points = [ONE, FRAME, FRAME | {"layout": "tp2", "cards": 2, "ms": 2.0}, FRAME | {"layout": "tp2", "cards": 2, "batch": 64}, PROMPT]
    assert [line.split() for line in frame_lines(points)[1:]] == [
        ["one", "1", "1", "2.50", "1.00", "-"],
        ["tp2", "2", "1", "2.00", "1.25", "4.25"],
        ["tp2", "2", "64", "2.50", "-"],
    ]
    assert frame_lines([ONE]) == []


def test_the_plot_is_drawn(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from benching.layouts_plot import plot

    plot([ONE, TWO, TWO | {"layout": "codec"}, FRAME, FRAME | {"layout": "tp2", "batch": 2}], "two GPUs", tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 1000
