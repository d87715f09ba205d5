"""An engine whose device is a timer: each result is there a fixed time after the one before it. For bench_jitter.py.

All else is the talker's engine as it is. Run as a module it is the engine's process (engine_lib/talker/isolation/child.py).
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig, option
from engine_lib.process.child import run_child
from engine_lib.talker.device.prefill_layout import PrefillInputs
from engine_lib.talker.device.worker import FrameResult, TalkerRunner
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.isolation.child import PipedTalkerEngine, serve
from engine_lib.talker.request import Request
from engine_lib.talker.scheduler import PrefillChunk


@dataclass(frozen=True, kw_only=True)
class FakeConfig(EngineConfig):
    """An engine's options, and its device's."""

    step_ms: float = option(6.0, "Milliseconds of a decode step.", minimum=0)
    prefill_ms: float = option(2.0, "Milliseconds of a prefill step.", minimum=0)


class NoForward:
    """A TalkerForward that computes nothing; all codes are 0."""

    name, can_be_captured = "fake", False

    def __init__(self, num_code_groups: int, hidden_size: int) -> None:
        self._num_code_groups, self._hidden_size = num_code_groups, hidden_size

    def decode(self, slots: torch.Tensor, _width: int) -> torch.Tensor:
        """See TalkerForward."""
        return torch.empty(len(slots), 0)

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """See TalkerForward."""
        return torch.zeros(len(inputs.text_ids), self._hidden_size)

    def draw(self, slots: torch.Tensor, _x: torch.Tensor) -> torch.Tensor:
        """See TalkerForward."""
        return torch.zeros(len(slots), self._num_code_groups, dtype=torch.int64)


@dataclass
class TimedResult(FrameResult):
    """Frames that are there from `ready_at` on, as of time.perf_counter()."""

    ready_at: float

    def read(self) -> npt.NDArray[np.int16]:
        """See FrameResult."""
        time.sleep(max(self.ready_at - time.perf_counter(), 0))
        return super().read()


class FakeRunner(TalkerRunner):
    """A step begins behind the step before it and all prefill; prefill runs beside steps, as on a GPU."""

    def __init__(self, checkpoint: Checkpoint, config: FakeConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, config, device=device, dtype=dtype)
        self.forward = NoForward(self.talker_config.num_code_groups, self.model.transformer.shape.hidden_size)
        self._step_seconds, self._prefill_seconds = config.step_ms / 1e3, config.prefill_ms / 1e3
        self._step_ends = self._prefill_ends = 0.0

    def prefill(self, chunks: Sequence[PrefillChunk]) -> None:
        """See TalkerRunner."""
        super().prefill(chunks)
        self._prefill_ends = max(time.perf_counter(), self._prefill_ends) + self._prefill_seconds

    def draw_first(self, requests: Sequence[Request]) -> FrameResult:
        """See TalkerRunner."""
        return TimedResult(**vars(super().draw_first(requests)), ready_at=self._prefill_ends)

    def decode(self, requests: Sequence[Request]) -> FrameResult:
        """See TalkerRunner."""
        result = super().decode(requests)
        self._step_ends = max(time.perf_counter(), self._step_ends, self._prefill_ends) + self._step_seconds
        return TimedResult(**vars(result), ready_at=self._step_ends)


class FakeEngine(TalkerEngine):
    """An engine on such a device."""

    def __init__(self, checkpoint: Checkpoint, config: FakeConfig, *pipe: Any) -> None:
        """`pipe`: what a PipedTalkerEngine takes besides."""
        super().__init__(checkpoint, config, *pipe)
        self.runner = FakeRunner(checkpoint, config, device=self.runner.device, dtype=self.runner.dtype)
        self._pipelined = True  # as on a GPU


class PipedFakeEngine(FakeEngine, PipedTalkerEngine):
    """The same at the other end of a pipe."""


if __name__ == "__main__":
    run_child(partial(serve, engine_class=PipedFakeEngine, config_class=FakeConfig), "the fake talker's process")
