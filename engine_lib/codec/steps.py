"""Steps: what the device decodes at a time: a step of many streams and, beside it, one of first frames.

On a GPU a step is launched before the one before it is read, so that the device goes on meanwhile. Without an express runner nothing
else can be done while a step is under way, and the codec thread waits for it. With one a thread of its own waits and tells the codec
thread, for first frames that come meanwhile are launched beside the step.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from queue import SimpleQueue

from engine_lib.codec.batcher import Cohort, Stream
from engine_lib.codec.runner import CodecRunner, StepAudio


@dataclass(frozen=True)
class Step:
    """A cohort whose decoding was launched."""

    cohort: Cohort
    audio: StepAudio


class Steps:
    """Launches steps on one device; but for the watching thread it belongs to the codec thread.

    Attributes:
        pipelined: a step is read when the next one has been launched; else at once, where launching it computes it.
        express: decodes first frames beside other steps; None: they are part of those.
        num_steps, num_frames: launched so far.
        is_done: the step under way has ended, and nobody has taken it yet.
    """

    def __init__(self, runner: CodecRunner, express: CodecRunner | None, *, pipelined: bool, notify: Callable[[], None]) -> None:
        """`notify`: called by the watching thread when `is_done` has become true."""
        self.runner, self.express, self.pipelined, self._notify = runner, express, pipelined, notify
        self.num_steps = self.num_frames = 0
        self.is_done = False
        self._under_way: Step | None = None  # of `runner`
        self._to_watch: SimpleQueue[Step | None] = SimpleQueue()  # None ends the thread
        self._watcher = threading.Thread(target=self._watch, name="codec-watch", daemon=True)

    def start(self) -> None:
        """Start the watching thread, if one is needed."""
        if self.express is not None:
            self._watcher.start()

    def stop(self) -> None:
        """End it; it need not have been started."""
        self._to_watch.put(None)

    @property
    def beginner(self) -> CodecRunner:
        """The runner whose steps may come first in a stream, and which makes a slot what they begin with."""
        return self.express or self.runner

    @property
    def must_be_waited_for(self) -> bool:
        """Whether a step is under way and nothing else can be done."""
        return self._under_way is not None and self.express is None

    @property
    def is_free(self) -> bool:
        """Whether the next step may be launched."""
        return self._under_way is None or self.is_done

    def is_decoding(self, stream: Stream) -> bool:
        """Whether the step under way writes to the slot of `stream`."""
        return self._under_way is not None and stream in self._under_way.cohort.streams

    def wait(self) -> None:
        """Wait for the step that must be waited for."""
        if self._under_way is not None and self.express is None:
            self._under_way.audio.wait()
            self.is_done = True

    def launch(self, cohort: Cohort | None) -> Step | None:
        """Launch the next step, if there is one; the step that is to be read now. Only while `is_free`."""
        last, self.is_done = self._under_way, False
        if cohort is not None and self.express is not None:
            self.runner.wait_for(self.express)  # which may have begun some of these streams just now
        step = None if cohort is None else self._step(self.runner, cohort)
        if not self.pipelined:
            return step
        self._under_way = step
        if step is not None and self.express is not None:
            self._to_watch.put(step)
        return last

    def launch_first(self, cohort: Cohort) -> Step:
        """Launch first frames beside the step under way."""
        assert self.express is not None
        return self._step(self.express, cohort)

    def _step(self, runner: CodecRunner, cohort: Cohort) -> Step:
        self.num_steps += 1
        self.num_frames += len(cohort.streams) * cohort.frames
        return Step(cohort, runner.step(cohort.slots(), cohort.codes()))

    def _watch(self) -> None:
        while (step := self._to_watch.get()) is not None:
            with suppress(Exception):  # whoever reads it gets the error
                step.audio.wait()
            self.is_done = True
            self._notify()
