"""CodecEngine: the thread that decodes the chunks of all streams and answers each once, in order.

Callers only touch the inbox; batcher, lifecycle and runner belong to the codec thread. A stream opens with its first chunk, gets a
slot with its first frames, and ends with its final chunk, with an error, with `drop`, or when no chunk has come for too long.
"""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.backpressure import Backpressure
from engine_lib.codec.base_engine import SHUTTING_DOWN, BaseCodecEngine, CodecStats
from engine_lib.codec.batcher import Batcher, Cohort
from engine_lib.codec.reference_states import ReferenceStates
from engine_lib.codec.request import AudioChunk, CodecRequest, Drop, KeepOpen
from engine_lib.codec.runner import CodecRunner, StepAudio
from engine_lib.codec.step_limits import FRAMES_OF_A_STREAM
from engine_lib.codec.step_pace import StepPace
from engine_lib.codec.stream_lifecycle import StreamLifecycle
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device, resolve_device, resolve_dtype
from engine_lib.process.long_waits import NOTICED_AFTER

__all__ = ["AudioChunk", "CodecEngine", "CodecRequest", "CodecStats"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Step:
    """A cohort that was launched, and when (time.monotonic)."""

    cohort: Cohort
    audio: StepAudio
    launched_at: float


class CodecEngine(BaseCodecEngine):
    """Stateful decoding of many streams on one device."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        config: EngineConfig,
        on_backpressure: Callable[[float], None] | None = None,
        on_idle: Callable[[str], None] | None = None,
    ) -> None:
        """Load the weights and allocate the state of `codec_slots` streams.

        Args:
            on_backpressure: called on the codec's thread with the seconds from `Backpressure.update`; it must only pass them on.
            on_idle: called on the codec's thread with the key of a stream that has been idle for too long and is forgotten.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
        """
        super().__init__(checkpoint, config)
        device = resolve_device(config.codec_device, "codec_device") if config.codec_device else resolve_device(config.device)
        started = time.perf_counter()
        with on_device(device):
            self.runner = CodecRunner(
                checkpoint,
                config.codec_slots,
                dtype=resolve_dtype(config.codec_dtype, device),
                device=device,
                priority=config.codec_stream_priority,
            )
            if not config.enforce_eager:
                self.runner.capture(config.codec_max_batch_size)
        logger.info(
            "codec on %s in %s; state of %d streams %.2f GiB; %d graphs; loaded and captured in %.1f s",
            device,
            str(self.runner.dtype).removeprefix("torch."),
            config.codec_slots,
            self.runner.arena.rows.nbytes / 2**30,
            len(self.runner.graphs.sizes) if self.runner.graphs is not None else 0,
            time.perf_counter() - started,
        )
        # The CPU decodes in `step` itself; waiting for the next step would only delay audio.
        self._pipelined = device.type == "cuda"
        frame_seconds = self.samples_per_frame / self.sample_rate
        limits = self.runner.limits.at_most(config.codec_max_batch_size * FRAMES_OF_A_STREAM)
        self.batcher = Batcher(config.codec_slots, limits, frame_seconds, config.codec_max_wait_ms / 1e3)
        self._pace = StepPace()
        self._backpressure, self._on_backpressure = Backpressure(config.codec_slots), on_backpressure
        self._references = ReferenceStates(self.runner, config.codec_reference_cache)
        self._lifecycle = StreamLifecycle(self.batcher, self.runner, self._codec, on_idle)
        self._num_steps = self._num_frames = self._num_decoded_pieces = 0
        self._busy_seconds = 0.0

        self._changed = threading.Condition()
        self._inbox: deque[CodecRequest | Drop | KeepOpen] = deque()
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="codec-engine", daemon=True)

    # callers

    def start(self) -> None:
        """See BaseCodecEngine."""
        self._alive = True
        self._thread.start()

    def submit(self, request: CodecRequest) -> None:
        """See BaseCodecEngine."""
        with self._changed:
            if self._alive:
                self._inbox.append(request)
                self._changed.notify()
                return
        request.answer(error=self._dead_because)

    def drop(self, stream_key: str) -> None:
        """See BaseCodecEngine."""
        with self._changed:
            self._inbox.append(Drop(stream_key))
            self._changed.notify()

    def keep_open(self, stream_key: str) -> None:
        """See BaseCodecEngine."""
        with self._changed:
            self._inbox.append(KeepOpen(stream_key))
            self._changed.notify()

    def shutdown(self, timeout: float = 10.0) -> None:
        """See BaseCodecEngine."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def stats(self) -> CodecStats:
        """See BaseCodecEngine."""
        free_slots = len(self.batcher.free_slots)
        return CodecStats(
            open_streams=self.config.codec_slots - free_slots,
            free_slots=free_slots,
            queued_chunks=len(self._inbox) + self.batcher.num_pending,
            num_steps=self._num_steps,
            num_frames=self._num_frames,
            num_decoded_pieces=self._num_decoded_pieces,
            busy_seconds=self._busy_seconds,
            num_failed_streams=self._lifecycle.num_failed_streams,
            num_recalled_references=self._references.num_recalled,
        )

    # codec thread

    def _run(self) -> None:
        with on_device(self.runner.device):
            self._serve()

    def _serve(self) -> None:
        """Decode and answer until the engine is stopped or fails."""
        reason = SHUTTING_DOWN
        try:
            busy, last = False, None  # last: the step on the device
            while self._wait(busy):
                if last is not None:
                    self._wait_to_launch_behind(last)
                # The device runs the next step while the last one is answered. A step is chosen only shortly before the
                # device is free for it, so a first chunk waits for little more than one step at most.
                self._take_inbox()
                self._lifecycle.close_idle(self.config.codec_idle_timeout)
                step = self._launch_next()
                self._update_backpressure()
                busy = step is not None or last is not None
                if last is not None:
                    self._read(last)
                if self._pipelined:
                    last = step
                elif step is not None:
                    self._read(step)
        except Exception as error:
            reason = f"the codec failed: {type(error).__name__}"
            logger.exception("the codec engine failed")
        finally:
            self._die(reason)

    def _wait_to_launch_behind(self, last: Step) -> None:
        """Wait until the next step must be launched: shortly before `last` ends, or when it has ended if its time is unknown."""
        due = self._pace.launch_due(last.cohort.num_frames, last.launched_at)
        if due is None or last.audio.copied is None:
            last.audio.wait()
        else:
            self._sleep_until(due)

    def _sleep_until(self, due: float) -> None:
        """Wait until time.monotonic() is `due`."""
        time.sleep(max(due - time.monotonic(), 0.0))

    def _wait(self, busy: bool) -> bool:
        """Wait for work, unless `busy`. Return False when the engine must stop."""
        with self._changed:
            if not (busy or self._inbox or self._stopping):
                self._changed.wait(self._seconds_until_due())
            return not self._stopping

    def _seconds_until_due(self) -> float | None:
        """Time until a cohort is due or a stream has been idle for too long; None if neither can happen."""
        idle_since = min((stream.last_active for stream in self.batcher.streams.values() if not stream.pending), default=math.inf)
        idle_due = max(idle_since + NOTICED_AFTER * self.config.codec_idle_timeout, self._lifecycle.look_for_idle_at)
        due = min(idle_due, self.batcher.wait_until)
        return None if due == math.inf else max(due - time.monotonic(), 0.0)

    def _take_inbox(self) -> None:
        while self._inbox:
            item = self._inbox.popleft()
            match item:
                case CodecRequest():
                    self._lifecycle.receive(item)
                case Drop():
                    self._lifecycle.drop(item.stream_key)
                case KeepOpen():
                    self._lifecycle.keep_open(item.stream_key)

    def _launch_next(self) -> Step | None:
        """Start to decode the next cohort. Return None if there is none."""
        for stream in self.batcher.open_slots():
            if self._references.recall(stream):
                self.batcher.skip(stream)
                self._lifecycle.answer_decoded(stream)
        cohort = self.batcher.next_cohort(time.monotonic())
        if cohort is None:
            return None
        self._num_steps += 1
        self._num_decoded_pieces += len(cohort.streams)
        self._num_frames += cohort.num_frames
        called_at = time.monotonic()
        step = Step(cohort, self.runner.step(cohort.slots(), cohort.pieces), time.monotonic())
        if not self._pipelined:
            self._busy_seconds += step.launched_at - called_at
        for stream in cohort.streams:
            self._references.keep(stream)
        return step

    def _update_backpressure(self) -> None:
        seconds = self._backpressure.update(self.batcher.num_without_slot, time.monotonic())
        if seconds is not None and self._on_backpressure is not None:
            self._on_backpressure(seconds)

    def _read(self, step: Step) -> None:
        """Answer the chunks that `step` completes."""
        rows, now, seconds = step.audio.read(), time.monotonic(), step.audio.device_seconds
        self._busy_seconds += seconds
        self._pace.ended(step.cohort.num_frames, step.launched_at, seconds)
        for stream, piece, row in zip(step.cohort.streams, step.cohort.pieces, rows, strict=True):
            if stream.error:
                continue  # it failed or was dropped after the launch; all its chunks have been answered
            if np.isnan(row[:: self.samples_per_frame]).any():
                self._references.discard(stream.reference_key)
                self._lifecycle.fail(stream, "the codec computed samples that are not numbers")
            else:
                # A copy, because the rows share memory that the device needs again.
                self.batcher.decoded(stream, len(piece), row.copy(), now)
                self._lifecycle.answer_decoded(stream)

    def _die(self, reason: str) -> None:
        """Answer all pending and all later chunks with `reason`."""
        with self._changed:
            self._dead_because, self._alive = reason, False
        self._lifecycle.answer_all(reason)
        while self._inbox:
            item = self._inbox.popleft()
            if isinstance(item, CodecRequest):
                item.answer(error=reason)
