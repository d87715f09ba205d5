"""The process of a codec's engine: one thread reads messages, decodes and sends the answers.

remote_engine.py starts it. It ends when its pipe closes, when its engine has ended, and at once when the process that started it is gone.
"""

from __future__ import annotations

import time
from functools import partial
from multiprocessing.connection import Connection

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine, Step
from engine_lib.codec.isolation.audio_ring import AudioRing
from engine_lib.codec.isolation.messages import (
    FROM_ENGINE,
    TO_ENGINE,
    Answer,
    Answers,
    CodecLoaded,
    DecodeChunk,
    EngineEnded,
    ShareAudio,
    SlowDown,
    StreamForgotten,
)
from engine_lib.codec.request import AudioChunk, CodecRequest, Drop, KeepOpen
from engine_lib.config import EngineConfig
from engine_lib.process.child import run_child
from engine_lib.process.engine_child import Inbox, run_engine
from engine_lib.process.engine_messages import LoadEngine, StopEngine
from engine_lib.process.outbox import Outbox

REPORT_SECONDS = 0.1


class PipedCodecEngine(CodecEngine):
    """An engine with its callers at the other end of a pipe. One thread reads that pipe and decodes, so it waits for no other."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, inbox: Inbox, outbox: Outbox, ring: AudioRing) -> None:
        super().__init__(checkpoint, config, self._report_backpressure, self._report_idle)
        self._messages, self._outbox, self._ring = inbox, outbox, ring
        self._answers: list[Answer] = []  # not sent yet
        self._are_first = False  # these answers are first audio
        self._reported, self._reported_at = self.stats(), 0.0

    @property
    def failed(self) -> bool:
        """Whether it has ended without a StopEngine."""
        return not self._stopping

    def serve(self) -> None:
        """Run until the pipe says stop or closes."""
        self._alive = True
        self._run()

    def _wait(self, busy: bool) -> bool:
        """See CodecEngine."""
        self._send_answers()
        if not busy or time.monotonic() - self._reported_at > REPORT_SECONDS:
            self._report()
        if not (busy or self._stopping):
            self._messages.has_message(self._seconds_until_due())
        return not self._stopping

    def _sleep_until(self, due: float) -> None:
        """See CodecEngine; messages are read meanwhile, so that few are left to be read between this and the launch."""
        while (seconds := due - time.monotonic()) > 0 and not self._stopping:
            if self._messages.has_message(seconds):
                self._obey_next()

    def _take_inbox(self) -> None:
        while not self._stopping and self._messages.has_message(0.0):
            self._obey_next()
        super()._take_inbox()

    def _obey_next(self) -> None:
        match message := self._messages.next():
            case DecodeChunk():
                self._ring.taken = message.taken
                is_first = message.index == 0 and len(message.codes) > 0 and not message.is_reference
                on_audio = partial(self._answered, message.number, is_first)
                codes, is_final, is_reference = message.codes, message.is_final, message.is_reference
                self._inbox.append(CodecRequest(message.stream_key, message.index, codes, is_final, on_audio, is_reference))
            case Drop() | KeepOpen():
                self._inbox.append(message)
            case StopEngine():
                self._stopping = True

    def _answered(self, number: int, is_first: bool, chunk: AudioChunk) -> None:
        """Keep an answer for the others of its step; first audio does not wait for them."""
        if is_first != self._are_first:
            self._send_answers()
            self._are_first = is_first
        begin = self._ring.write(chunk.audio)
        if begin is None:
            self._answers.append(Answer(number, 0, 0, chunk.error, chunk.audio))
        else:
            self._answers.append(Answer(number, begin, len(chunk.audio), chunk.error))

    def _send_answers(self) -> None:
        if self._answers:
            answers, self._answers = tuple(self._answers), []
            self._reported, self._reported_at = self.stats(), time.monotonic()
            self._outbox.send(Answers(answers, self._reported))

    def _report(self) -> None:
        """Send the stats if they have changed."""
        stats, self._reported_at = self.stats(), time.monotonic()
        if stats != self._reported:
            self._reported = stats
            self._outbox.send(Answers((), stats))

    def _read(self, step: Step) -> None:
        self._send_answers()  # ends of streams, and references: they do not wait for the device
        super()._read(step)
        self._send_answers()

    def _report_backpressure(self, seconds: float) -> None:
        self._outbox.send(SlowDown(seconds))

    def _report_idle(self, stream_key: str) -> None:
        self._send_answers()
        self._outbox.send(StreamForgotten(stream_key))

    def _die(self, reason: str) -> None:
        super()._die(reason)
        self._send_answers()
        self._outbox.send(EngineEnded(reason))


def serve(pipe: Connection, engine_class: type[PipedCodecEngine] = PipedCodecEngine) -> None:
    """Load the engine that the first messages describe, and run it until `pipe` closes.

    Raises:
        EngineDeadError: it has failed.
    """
    inbox, outbox = Inbox(pipe, TO_ENGINE), Outbox(pipe, FROM_ENGINE)
    shared, setup = inbox.next(), inbox.next()
    assert isinstance(shared, ShareAudio)
    assert isinstance(setup, LoadEngine)

    def load(config: EngineConfig) -> PipedCodecEngine:
        return engine_class(Checkpoint(config.model_path), config, inbox, outbox, AudioRing(shared.file, shared.num_samples))

    run_engine("codec", setup, outbox, load, lambda engine: CodecLoaded(engine.stats()))


if __name__ == "__main__":
    run_child(serve, "the codec's process")
