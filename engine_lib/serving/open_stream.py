"""OpenStream: one stream of the codec, from its first message until its final one has been answered."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from engine_lib.codec.base_engine import BaseCodecEngine
from engine_lib.codec.lines import DecodedLines
from engine_lib.codec.request import ANEW, CodecRequest
from engine_lib.serving.backend import Reply, Tensors
from engine_lib.serving.message import AudioAnswer, CodesMessage
from engine_lib.serving.message_order import MessageOrder
from engine_lib.serving.playback import Playback
from engine_lib.serving.stream_audio import StreamAudio
from engine_lib.speech.heard import HeardStream

Source = tuple[CodesMessage, dict[str, Any]]  # a message, and what its client is told beside the audio, without words

# A question goes to the server and back through threads of three kinds: ten of the 25 switches between threads that a chunk cost the
# codec's process were its question's. So streams share these, and none waits longer for its next one than a client is worth work.
QUESTIONS_A_SECOND, MOST_SECONDS_UNASKED = 250.0, 0.25


@dataclass
class OpenStream:
    """A stream whose final message has not been answered.

    Attributes:
        is_cancelled: the talker was asked to end it.
        asked_at: when the server was last asked whether its client has gone (time.monotonic).
        engine_key: its key in the engine; another one each time that it is spoken anew.
        heard: what of its audio is heard.
        num_answers: those that its client got.
        is_sparse: as `sparse_answers` in Delivery.
        sample_rate: of the latest answer, in Hz; 0: there was none.
        playback: the audio that its client has in hand.
        audio: what its samples go through; None: nothing, or none have come.
        lines: of a script.
        order: of its messages.
        claimed_from: address of the talker that sends its messages past Triton; "": none does.
        held: answers those, or has answered them.
        has_ended: the talker said so when the stream was claimed: whoever sends its messages now, sends them again.
        error: why it cannot end well; "": it can.
    """

    engine_key: str
    heard: HeardStream[Source]
    is_cancelled: bool = False
    asked_at: float = -math.inf
    num_answers: int = 0
    is_sparse: bool = False
    sample_rate: int = 0
    playback: Playback = field(default_factory=Playback)
    audio: StreamAudio | None = None
    lines: DecodedLines | None = None
    order: MessageOrder[tuple[CodesMessage, Reply]] = field(default_factory=MessageOrder)
    claimed_from: str = ""
    held: Reply | None = None
    has_ended: bool = False
    error: str = ""

    def in_order(self, message: CodesMessage, reply: Reply) -> list[tuple[CodesMessage, Reply]]:
        """The messages that come next, now that this one has come. Only those of a claimed stream wait for others."""
        if not self.claimed_from:
            return [(message, reply)]
        return self.order.due(message.place, (message, reply))

    def may_be_claimed(self, message: CodesMessage) -> bool:
        """Whether this message, which has come through Triton, lets later ones come past it."""
        chunk = message.chunk
        if not message.channel or self.claimed_from or self.has_ended or self.error or chunk.is_reference or chunk.is_final:
            return False
        return len(chunk.codes) > 0

    def claim(self, message: CodesMessage, reply: Reply) -> None:
        """From now on messages come past Triton, too; `reply` to this one is held to answer them."""
        reply.hold()
        self.claimed_from, self.held = message.channel, reply
        self.order = MessageOrder(message.place + 1)

    def give_back(self) -> list[tuple[CodesMessage, Reply]]:
        """The talker has refused the claim, so no message comes past Triton; returns those that have waited for one."""
        self.claimed_from, self.has_ended = "", True
        return self.order.rest()

    def let_go(self) -> None:
        """Let the held reply be one like any other. Blocks on the server."""
        if self.held is not None:
            self.held.let_go()

    def release(self) -> None:
        """Let the held reply end, and those to messages that wait for one that never came. Blocks on the server."""
        for _, reply in self.order.rest():
            reply.finish()
        if self.held is not None:
            self.held.release()

    @property
    def present_key(self) -> str:
        """Key of what is decoded now: of a script, its present line."""
        return self.engine_key if self.lines is None else self.lines.engine_key

    def is_question_due(self, now: float, num_streams: int) -> bool:
        """Whether to ask if its client has gone, of `num_streams` open ones; if so, it counts as asked."""
        is_due = not self.is_cancelled and now - self.asked_at >= min(num_streams / QUESTIONS_A_SECOND, MOST_SECONDS_UNASKED)
        if is_due:
            self.asked_at = now
        return is_due

    def speak_anew(self, engine: BaseCodecEngine, no_codes: npt.NDArray[np.int16]) -> None:
        """End what the engine knows of it, because its frames come anew behind the good ones, which are the next message."""
        engine.submit(CodecRequest(self.engine_key, 0, no_codes, is_final=True, on_audio=lambda _answer: None))
        self.engine_key += ANEW

    def numbered(self, answers: Sequence[AudioAnswer]) -> list[AudioAnswer]:
        """`answers` with their places in the stream."""
        first, self.num_answers = self.num_answers, self.num_answers + len(answers)
        return [answer if answer.index == index else replace(answer, index=index) for index, answer in enumerate(answers, first)]

    def packed(self, answer: AudioAnswer) -> Tensors:
        """The next answer as tensors."""
        known_rate, self.sample_rate = self.sample_rate, answer.sample_rate
        return answer.pack(known_rate if self.is_sparse else None)
