"""The talker alone: the codes of one text, without their audio."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.api.utterance import Utterance
from engine_lib.delivery import Delivery
from engine_lib.errors import InvalidRequestError, Qwen3TTSError
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener

Codes = npt.NDArray[np.int16]


@contextmanager
def start_codes(talker: TalkerEngine, utterance: Utterance, delivery: Delivery) -> Iterator[Future[tuple[Codes, str]]]:
    """Queue one utterance; the future has its codes [frames, num_code_groups] and its finish reason. Leaving the context cancels it.

    Raises:
        InvalidRequestError, OverloadedError, EngineDeadError: as in TalkerEngine.submit.
    """
    listener, key = _CodesListener(), uuid.uuid4().hex
    delivery = delivery.updated({"on_runaway": utterance.on_runaway})
    talker.submit(Request(key, utterance.prompt, utterance.sampling, delivery, turn=utterance.turn), listener)
    try:
        yield listener.codes
    finally:
        talker.cancel(key)  # no effect if the request has ended


def codes_given(codes: object) -> list[Codes]:
    """The codes of each utterance, of one or of a list or tuple of them; arrays, or tensors on any device.

    Raises:
        InvalidRequestError: one is neither.
    """
    return [_array(piece) for piece in (codes if isinstance(codes, (list, tuple)) else [codes])]


def _array(codes: Any) -> Codes:
    if isinstance(codes, torch.Tensor):
        if codes.is_floating_point():
            raise InvalidRequestError("codes", f"is {codes.dtype}; integers of shape [frames, codebooks] expected")
        return codes.detach().cpu().numpy()
    if not isinstance(codes, np.ndarray):
        raise InvalidRequestError("codes", f"holds a {type(codes).__name__}; give arrays [frames, codebooks] of integers")
    return codes


class _CodesListener(RequestListener):
    """Gathers the codes of one request and its finish reason into a future."""

    def __init__(self) -> None:
        self.codes: Future[tuple[Codes, str]] = Future()
        self._chunks: list[Codes] = []

    def on_chunk(self, chunk: CodesChunk) -> None:
        """See RequestListener."""
        self._chunks.append(chunk.codes)
        if chunk.finish_reason == FinishReason.ERROR.value:
            self.codes.set_exception(Qwen3TTSError(chunk.error))
        elif chunk.is_final:
            self.codes.set_result((np.concatenate(self._chunks), chunk.finish_reason))
