"""VoiceOrder: an order to store a voice. Until it is answered, it counts like a waiting request."""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from functools import partial

from engine_lib.admission.turn import Turn
from engine_lib.checkpoint_files import checkpoint_name
from engine_lib.errors import DeadlineError, OverloadedError
from engine_lib.serving.backend import Reply
from engine_lib.serving.message import new_stream_key
from engine_lib.serving.parse import Reference
from engine_lib.serving.talker_stream import TalkerParts
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.store import VoiceStore
from engine_lib.voices.stored_voice import checked_lexicon


class VoiceOrder:
    """Has a recording encoded and its voice stored."""

    def __init__(
        self,
        talker: TalkerParts,
        reply: Reply,
        store: VoiceStore,
        name: str,
        consent: str,
        reference: Reference,
        deadline: float | None = None,
        lexicon: Mapping[str, str] | None = None,
    ) -> None:
        """
        Args:
            talker: the model that encodes it.
            reply: is finished when the voice is stored.
            store: takes the voice.
            name, consent, lexicon: of the voice.
            reference: the recording.
            deadline: time.monotonic() at which it is refused if its recording has not been encoded; None: never.

        Raises:
            InvalidRequestError: the store does not take such a voice.
        """
        store.check_addition(name, consent)
        self._talker, self._reply, self._store = talker, reply, store
        self._name, self._consent, self._reference, self._lexicon = name, consent, reference, checked_lexicon(lexicon)
        self._stream_key = new_stream_key(talker.name)
        self._has_ended = False
        self.due_at = deadline  # see Watched

    def begin(self, turn: Turn) -> None:
        """Let the recording wait for its turn to be encoded.

        Raises:
            OverloadedError, EngineDeadError: as in TalkerEngine.reserve.
        """
        self._talker.engine.reserve(self._stream_key, turn)
        self._encoding = self._talker.voices.encode(self._reference, turn)
        self._talker.orders[self._stream_key] = self
        self._encoding.add_done_callback(self._on_encoded)

    def look_after(self) -> None:
        """See Watched."""
        if self._has_ended:
            return
        if self.due_at is not None and time.monotonic() >= self.due_at:
            error: Exception = DeadlineError()
        elif self._reply.is_cancelled():
            error = OverloadedError("the client has gone")
        else:
            return
        self._end()
        self._encoding.cancel()
        self._reply.refuse(error)

    def _on_encoded(self, voice: Future[VoiceClonePromptItem]) -> None:
        """On the encoder's thread: leave the rest to a sender thread."""
        self._talker.sender.put(self._stream_key, partial(self._add, voice))

    def _add(self, voice: Future[VoiceClonePromptItem]) -> None:
        """Store the voice and answer, unless `look_after` has done that meanwhile."""
        if self._has_ended:
            return
        try:
            self._store.add(
                self._name,
                voice.result(),
                consent=self._consent,
                reference_seconds=self._reference.seconds,
                reference_sample_rate=self._reference.sample_rate,
                made_by=checkpoint_name(self._talker.engine.checkpoint.path),
                lexicon=self._lexicon,
            )
        except Exception as error:
            self._reply.refuse(error)
        else:
            self._reply.finish()
        finally:
            self._end()

    def _end(self) -> None:
        self._has_ended = True
        self._talker.engine.release(self._stream_key)
        self._talker.orders.pop(self._stream_key, None)
