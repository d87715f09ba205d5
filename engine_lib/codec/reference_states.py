"""ReferenceStates: the arena states that clone references leave, remembered by content.

A voice is used again and again, and its codes always leave the same state. A copy of that state replaces decoding
seconds of reference before the first audio, and gives the same bits.
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.codec.batcher import Stream
from engine_lib.codec.runner import CodecRunner


class ReferenceStates:
    """The states of the latest references.

    Attributes:
        num_recalled: references since the start with a known state.
    """

    def __init__(self, runner: CodecRunner, capacity: int) -> None:
        """`capacity`: references kept; 0 keeps none."""
        self._runner, self._capacity = runner, capacity
        self._states: OrderedDict[str, torch.Tensor] = OrderedDict()
        self.num_recalled = 0

    @staticmethod
    def reference_key(codes: npt.NDArray[np.integer[Any]]) -> str:
        """The key of a reference [frames, num_quantizers], from its content."""
        return hashlib.sha256(np.ascontiguousarray(codes, np.int64).tobytes()).hexdigest()

    def __contains__(self, reference_key: str) -> bool:
        return reference_key in self._states

    def recall(self, stream: Stream) -> bool:
        """Give a stream that has just got its slot the state of its reference. Return False if that is not known."""
        request = stream.pending[0].request
        if not (request.is_reference and self._capacity and len(request.codes)):
            return False
        stream.reference_key = self.reference_key(request.codes)
        state = self._states.get(stream.reference_key)
        if state is None or stream.slot is None:
            return False
        self._states.move_to_end(stream.reference_key)
        self._runner.restore(stream.slot, state)
        self.num_recalled += 1
        return True

    def keep(self, stream: Stream) -> None:
        """Remember the state of a stream if its reference, and nothing else, has been launched; else do nothing."""
        chunk = stream.pending[0]
        is_new = stream.reference_key and stream.reference_key not in self._states
        if is_new and chunk.request.is_reference and not chunk.frames_to_take and not stream.seconds_taken and stream.slot is not None:
            self._states[stream.reference_key] = self._runner.state(stream.slot)
            if len(self._states) > self._capacity:
                self._states.popitem(last=False)

    def discard(self, reference_key: str) -> None:
        """Forget a state that went wrong."""
        self._states.pop(reference_key, None)
