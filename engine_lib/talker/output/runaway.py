"""RunawayWatch: notices that the codes of one stream repeat, and knows whether to speak it anew."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt

from engine_lib.delivery import OnRunaway
from engine_lib.process.wire import Message
from engine_lib.speech.runaway import RUNAWAY_FRAMES, CodeLoops
from engine_lib.talker.request import Request

MAX_RETRIES = 2  # of one stream
MAX_PAST_FRAMES = 1500  # of the longest reference; the codec looks back 576 frames (8 layers of 72)


class RunawayCause(str, Enum):
    """How a stream ran away."""

    REPETITION = "repetition"
    SILENCE = "silence"


class RunawayOutcome(str, Enum):
    """What became of it."""

    STOPPED = "stopped"
    RETRIED = "retried"


Runaway = tuple[RunawayCause, RunawayOutcome]
RUNAWAYS: list[Runaway] = [(cause, outcome) for cause in RunawayCause for outcome in RunawayOutcome]


class SilentStream(Message, frozen=True):
    """The audio of an open stream has run away: it is silent behind its first `num_good_frames` frames."""

    stream_key: str
    num_good_frames: int


class RunawayWatch:
    """One stream.

    Attributes:
        num_doubtful: frames, up to the last, that may be bad, and so wait.
        has_run_away: its frames repeat, and have done so for too long.
    """

    def __init__(self, request: Request) -> None:
        sampling, self._is_on = request.sampling, request.delivery.on_runaway is not OnRunaway.OFF
        is_random = sampling.do_sample or sampling.subtalker_dosample
        self._num_retries_left = MAX_RETRIES if request.delivery.on_runaway is OnRunaway.RETRY and is_random else 0
        self._loops = CodeLoops()
        self.num_doubtful, self.has_run_away = 0, False

    def add(self, codes: npt.NDArray[np.int16]) -> None:
        """See the next frame [num_code_groups]."""
        if self._is_on:
            self._loops.add(int(codes[0]))
            self.num_doubtful, self.has_run_away = self._loops.num_doubtful, self._loops.has_run_away

    def take_retry(self) -> bool:
        """Whether to speak the stream anew, because that is wanted and other random numbers may help. Each call counts."""
        self._num_retries_left -= 1
        return self._num_retries_left >= 0

    def begin_behind(self, frames: Sequence[npt.NDArray[np.int16]]) -> None:
        """Forget all frames but these."""
        self._loops = CodeLoops(int(codes[0]) for codes in frames[-RUNAWAY_FRAMES:])
        self.num_doubtful, self.has_run_away = self._loops.num_doubtful, False


def past_of(reference: npt.NDArray[np.int16] | None, frames: npt.NDArray[np.int16]) -> npt.NDArray[np.int16]:
    """The codes that the codec takes in before a stream goes on behind `frames`; `reference`: of the voice that it clones, if any."""
    past = frames if reference is None else np.concatenate([reference, frames])
    return past[-MAX_PAST_FRAMES:]
