"""Decodes streams in random steps, for tests on the CPU and on a GPU."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.codec.runner import CodecRunner

Codes = npt.NDArray[np.int64]
Audio = npt.NDArray[np.float32]


class InBuckets:
    """Stands in for StepGraphs: eager steps in the sizes of graphs, with room to spare."""

    def __init__(self, runner: CodecRunner, sizes: Sequence[int] = (2, 8, 40)) -> None:
        self._runner, self.sizes = runner, sorted(sizes, reverse=True)

    def replay(self, inputs: torch.Tensor, frames: int) -> torch.Tensor:
        return self._runner.decode_plan(inputs.to(self._runner.device, non_blocking=True), self._runner.shape_of_graph(frames))


@dataclass(eq=False)
class _Stream:
    codes: Codes
    slot: int
    done: int = 0
    pieces: list[Audio] = field(default_factory=list)


def decode_in_random_steps(
    rng: np.random.Generator, runner: CodecRunner, waiting: list[Codes], num_slots: int, abandon: float = 0.0, in_flight: int = 1
) -> list[tuple[Codes, Audio]]:
    """Decode streams in random pieces and company, on slots of any state, also on those of streams that left before their end.

    Args:
        abandon: chance of a stream to leave after a step.
        in_flight: steps launched before the first of them is read.

    Returns:
        Codes and audio of the streams that did not leave.
    """
    free, running, finished, unread = list(range(num_slots)), list[_Stream](), list[_Stream](), list[Any]()
    limits = runner.limits
    while waiting or running or unread:
        while waiting and free:
            running.append(_Stream(waiting.pop(), free.pop(int(rng.integers(len(free))))))
            runner.reset(running[-1].slot)
        members, sizes, room = list[_Stream](), list[int](), int(rng.integers(1, limits.full + 1))
        for stream in rng.permutation(np.array(running, object)):
            if room and rng.random() < 0.7:
                most = min(room, limits.piece, len(stream.codes) - stream.done)
                members.append(stream)
                sizes.append(int(rng.choice([1, most, rng.integers(1, most + 1)])))
                room -= sizes[-1]
        if members:
            pieces = [stream.codes[stream.done : stream.done + size] for stream, size in zip(members, sizes, strict=True)]
            unread.append((members, runner.step([stream.slot for stream in members], pieces)))
        for stream, size in zip(members, sizes, strict=True):
            stream.done += size
            is_finished = stream.done == len(stream.codes)
            if is_finished or rng.random() < abandon:
                running.remove(stream)
                finished += [stream] if is_finished else []
                free.append(stream.slot)
        if unread and (len(unread) >= in_flight or not running):
            streams, audio = unread.pop(0)
            for stream, row in zip(streams, audio.read(), strict=True):
                stream.pieces.append(row.copy())
    return [(stream.codes, np.concatenate(stream.pieces)) for stream in finished]
