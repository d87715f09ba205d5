"""The process of a talker's engine: one thread reads messages, steps and sends the results.

remote_engine.py starts it. It ends when its pipe closes, when its engine has ended, and at once when the process that started it is gone.
"""

from __future__ import annotations

import time
from multiprocessing.connection import Connection

import numpy as np

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.process.child import run_child
from engine_lib.process.engine_child import Inbox, run_engine
from engine_lib.process.engine_messages import LoadEngine, StopEngine
from engine_lib.process.outbox import Outbox
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.isolation.messages import (
    FROM_ENGINE,
    TO_ENGINE,
    ApplyBackpressure,
    CancelStream,
    EngineLoaded,
    EngineReport,
    StartEngine,
    StepChunks,
    StreamStarted,
)
from engine_lib.talker.output.runaway import SilentStream
from engine_lib.talker.request import CodesChunk, FurtherText, Request, RequestListener, StreamTimes

REPORT_SECONDS = 0.1
MOST_WAIT_SECONDS = 0.1  # for a message; then it checks whether a rank has ended


class PipedListener(RequestListener):
    """Sends the events of one stream: its start and its times at once, its chunks with those of the same step."""

    def __init__(self, stream_key: str, chunks: list[CodesChunk], outbox: Outbox) -> None:
        self._stream_key, self._chunks, self._outbox = stream_key, chunks, outbox

    def on_start(self) -> None:
        """See RequestListener."""
        self._outbox.send(StreamStarted(self._stream_key))

    def on_times(self, times: StreamTimes) -> None:
        """See RequestListener."""
        self._outbox.send(times)

    def on_chunk(self, chunk: CodesChunk) -> None:
        """See RequestListener."""
        self._chunks.append(chunk)


class PipedTalkerEngine(TalkerEngine):
    """An engine with its callers at the other end of a pipe. One thread reads that pipe and steps, so it waits for no other."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, inbox: Inbox, outbox: Outbox) -> None:
        super().__init__(checkpoint, config)
        self._messages, self._outbox = inbox, outbox
        self._chunks: list[CodesChunk] = []  # of this step
        self._num_reported = [0, 0]  # intervals and host times
        self._reported_at = 0.0

    @property
    def failed(self) -> bool:
        """Whether it has ended without a StopEngine."""
        return not self._stopping

    def serve(self) -> None:
        """Wait to be started, then run until the pipe says stop or closes."""
        while not (self._alive or self._stopping):
            self._obey_next()
        self.run()

    def _wait_for_news(self) -> None:
        """See TalkerEngine; this also obeys all messages that have come."""
        while self._has_message(0.0):
            self._obey_next()
        while not self._has_news:
            seconds = self._seconds_to_launch()
            if seconds is not None and seconds <= 0:
                break
            if self._has_message(MOST_WAIT_SECONDS if seconds is None else seconds):
                self._obey_next()

    def _has_message(self, seconds: float) -> bool:
        return not self._stopping and self._messages.has_message(seconds)

    def _obey_next(self) -> None:
        match message := self._messages.next():
            case StartEngine():
                self._alive = True
            case Request():  # the other end has checked it
                with self._changed:
                    listener = PipedListener(message.stream_key, self._chunks, self._outbox)
                    self._open[message.stream_key] = self._accept(message, listener)
            case CancelStream():
                self.cancel(message.stream_key, message.error)
            case FurtherText():
                self.feed(message)
            case SilentStream():
                self.end_silence(message)
            case ApplyBackpressure():
                self.apply_backpressure(message.until)
            case StopEngine():
                self._stopping = True

    def _after_step(self) -> None:
        # The receiver of the last chunk of all may check at once that the engine holds nothing.
        if not self._open or not (self._unread or self.scheduler.has_work) or time.monotonic() - self._reported_at > REPORT_SECONDS:
            self._report()
        if self._chunks:
            self._outbox.send(StepChunks(tuple(self._chunks)))
            self._chunks.clear()

    def _report(self) -> None:
        """Send the stats, and each duration once."""
        self._reported_at, new = time.monotonic(), []
        for i, durations in enumerate((self.step_times.interval, self.step_times.host)):
            new.append(np.array(durations.latest(durations.num_added - self._num_reported[i])))
            self._num_reported[i] = durations.num_added
        self._outbox.send(EngineReport(self.stats(), *new))


def serve(
    pipe: Connection, engine_class: type[PipedTalkerEngine] = PipedTalkerEngine, config_class: type[EngineConfig] = EngineConfig
) -> None:
    """Load the engine that the first message describes, and run it until `pipe` closes.

    Raises:
        EngineDeadError: it has failed.
    """
    inbox, outbox = Inbox(pipe, TO_ENGINE), Outbox(pipe, FROM_ENGINE)
    setup = inbox.next()
    assert isinstance(setup, LoadEngine)

    def load(config: EngineConfig) -> PipedTalkerEngine:
        return engine_class(Checkpoint(config.model_path), config, inbox, outbox)

    run_engine("talker", setup, outbox, load, lambda engine: EngineLoaded(engine.stats()), config_class)


if __name__ == "__main__":
    run_child(serve, "the talker's process")
