"""ControlRequests: requests of other models that steer the talker instead of asking for speech.

The input `cancel` names a stream to stop; `silence` (its good frames, a blank, its key) one with audio that has run away; `hold` gives
the seconds in which no stream may begin; `store_voice` (JSON: name, consent, lexicon) stores the voice of the reference beside it. The
codec sends the first three, the model `voices` the last. Each carries the signature of this server, because every client can reach this
model; without it the request is refused and counted.
"""

from __future__ import annotations

import hmac
import time
from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from engine_lib.codec.backpressure import BACKPRESSURE_SECONDS
from engine_lib.errors import InvalidRequestError
from engine_lib.serving.backend import SIGNATURE_PARAMETER, Reply, TritonBackend, signed_order
from engine_lib.serving.parse import RequestParser
from engine_lib.serving.request_values import RequestValues
from engine_lib.serving.talker_stream import TalkerParts
from engine_lib.serving.voice_order import VoiceOrder
from engine_lib.speech.lexicon import MAX_JSON_LENGTH
from engine_lib.talker.output.runaway import SilentStream

MAX_ORDER_LENGTH = 8 * MAX_JSON_LENGTH  # written by this server: JSON may take six characters for one
CONTROL_INPUTS = ("cancel", "silence", "hold", "store_voice")


class ControlRequests:
    """The control requests of one talker."""

    def __init__(self, backend: TritonBackend, talker: TalkerParts, parser: RequestParser) -> None:
        self._backend, self._talker, self._parser = backend, talker, parser

    def handle(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str, deadline: float | None, reply: Reply) -> bool:
        """Obey a control request and answer it, now or once its voice is stored; False for any other request.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: it is refused.
        """
        for name in CONTROL_INPUTS:
            if name in tensors:
                self._check_signature(name, tensors[name], parameters)
        if "cancel" in tensors:
            self._talker.cancel(tensors["cancel"][0].decode("ascii", "replace"))
            reply.finish()
        elif "silence" in tensors:
            num_good_frames, _, stream_key = tensors["silence"][0].decode("ascii", "replace").partition(" ")
            self._talker.engine.end_silence(SilentStream(stream_key, int(num_good_frames)))
            reply.finish()
        elif "hold" in tensors:
            self._hold(float(tensors["hold"][0]))
            reply.finish()
        elif "store_voice" in tensors:
            self._store_voice(tensors, parameters, deadline, reply)
        else:
            return False
        return True

    def _check_signature(self, name: str, order: npt.NDArray[Any], parameters: str) -> None:
        given = RequestValues({}, parameters).parameters.get(SIGNATURE_PARAMETER)
        expected = self._backend.secret.sign(signed_order(self._talker.name, name, order)).hex()
        if not isinstance(given, str) or not hmac.compare_digest(given.encode("utf-8", "replace"), expected.encode()):
            self._backend.forgeries.add(1)
            raise InvalidRequestError(name, "is for the models of this server alone, which sign it; leave it out")

    def _hold(self, seconds: float) -> None:
        # Its effect must not last, if the codec that sent it ends.
        if not 0 <= seconds <= BACKPRESSURE_SECONDS:
            raise InvalidRequestError("hold", f"{seconds:g} is not allowed; give 0 to {BACKPRESSURE_SECONDS:g} seconds")
        self._talker.engine.apply_backpressure(time.monotonic() + seconds)

    def _store_voice(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str, deadline: float | None, reply: Reply) -> None:
        order = RequestValues(tensors, parameters).json_object("store_voice", MAX_ORDER_LENGTH)
        name, consent = (str(order.get(field) or "") for field in ("name", "consent"))
        store, (reference, turn) = self._talker.voices.store(), self._parser.parse_reference(tensors, parameters)
        VoiceOrder(self._talker, reply, store, name, consent, reference, deadline, lexicon=order.get("lexicon")).begin(turn)
