"""A talker's engine on a fake device: a timer delays each result. For bench_jitter.py.

Each result is ready a fixed time after the one before it. All else is the real talker's engine. Run as a module, it is the
engine's process (engine_lib/talker/isolation/child.py).
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig, option
from engine_lib.process.child import run_child
from engine_lib.talker.device.plan import DecodePlan, FirstFramesPlan, Plan, PrefillPlan
from engine_lib.talker.device.prefill_layout import PrefillInputs
from engine_lib.talker.device.worker import FrameResult, TalkerWorker
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.isolation.child import PipedTalkerEngine, serve


@dataclass(frozen=True, kw_only=True)
class FakeConfig(EngineConfig):
    """Options of an engine and of its fake device."""

    step_ms: float = option(6.0, "Milliseconds of a decode step.", minimum=0)
    prefill_ms: float = option(2.0, "Milliseconds of a prefill step.", minimum=0)


class NoForward:
    """A TalkerForward that computes nothing; all codes are 0."""

    name, can_be_captured = "fake", False

    def __init__(self, num_code_groups: int, hidden_size: int) -> None:
        self._num_code_groups, self._hidden_size = num_code_groups, hidden_size

    def decode(self, slots: torch.Tensor, _width: int, _scores: object = None, _prompts: object = None) -> torch.Tensor:
        """See TalkerForward."""
        return torch.empty(len(slots), 0)

    def prefill(self, inputs: PrefillInputs) -> torch.Tensor:
        """See TalkerForward."""
        return torch.zeros(len(inputs.text_ids), self._hidden_size)

    def sample(self, slots: torch.Tensor, _x: torch.Tensor) -> torch.Tensor:
        """See TalkerForward."""
        return torch.zeros(len(slots), self._num_code_groups, dtype=torch.int64)


class TimedResult(FrameResult):
    """Frames that are ready at `ready_at`, in seconds of time.perf_counter()."""

    def __init__(self, result: FrameResult, ready_at: float) -> None:
        self._result, self._ready_at = result, ready_at

    def read(self) -> npt.NDArray[np.int16]:
        """See FrameResult."""
        time.sleep(max(self._ready_at - time.perf_counter(), 0))
        return self._result.read()

    @property
    def scores(self) -> npt.NDArray[np.float16] | None:
        """See FrameResult."""
        return self._result.scores


class FakeWorker(TalkerWorker):
    """A step begins after the step before it and all prefill; prefill runs beside steps, as on a GPU."""

    def __init__(self, checkpoint: Checkpoint, config: FakeConfig, *, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(checkpoint, config, device=device, dtype=dtype)
        self.forward = NoForward(self.talker_config.num_code_groups, self.model.transformer.shape.hidden_size)
        self._step_seconds, self._prefill_seconds = config.step_ms / 1e3, config.prefill_ms / 1e3
        self._step_ends = self._prefill_ends = 0.0

    def execute(self, plan: Plan) -> FrameResult | None:
        """See TalkerWorker."""
        result, now = super().execute(plan), time.perf_counter()
        match plan:
            case PrefillPlan():
                self._prefill_ends = max(now, self._prefill_ends) + self._prefill_seconds
            case FirstFramesPlan():
                return result and TimedResult(result, self._prefill_ends)
            case DecodePlan():
                self._step_ends = max(now, self._step_ends, self._prefill_ends) + self._step_seconds
                return result and TimedResult(result, self._step_ends)
        return result


class FakeEngine(TalkerEngine):
    """A talker's engine on a FakeWorker."""

    def __init__(self, checkpoint: Checkpoint, config: FakeConfig, *pipe: Any) -> None:
        """`pipe`: the further arguments of a PipedTalkerEngine."""
        super().__init__(checkpoint, config, *pipe)
        self.worker = FakeWorker(checkpoint, config, device=self.worker.device, dtype=self.worker.dtype)
        self._pipelined = True  # as on a GPU


class PipedFakeEngine(FakeEngine, PipedTalkerEngine):
    """A FakeEngine at the other end of a pipe."""


if __name__ == "__main__":
    run_child(partial(serve, engine_class=PipedFakeEngine, config_class=FakeConfig), "the fake talker's process")
