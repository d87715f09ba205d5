"""TalkerEngine: the thread that admits requests, steps the whole batch and hands out chunks of codec frames.

Callers only touch the inbox; scheduler, runner and requests belong to the engine thread. Every accepted request gets
exactly one final chunk, whatever happens. On a GPU the next step is launched before the codes of the last one are read, but no
sooner than it must be: a request that comes while a step runs is prefilled beside it and joins the next, if that is still to be launched.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterator
from heapq import heappop, heappush

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device, resolve_device, resolve_dtype
from engine_lib.talker.base_engine import BaseTalkerEngine, TalkerStats
from engine_lib.talker.block_keys import BlockKeys
from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.device.load_summary import load_summary
from engine_lib.talker.device.worker import FrameResult, TalkerRunner
from engine_lib.talker.parallel.rank_zero import start_ranks
from engine_lib.talker.request import DEADLINE_ERROR, RUNNING, FinishReason, Request
from engine_lib.talker.scheduler import Schedule, Scheduler

logger = logging.getLogger(__name__)

HELD_SHARE = 0.6  # of the time a step takes at least: when the next one is launched; the rest is the host's, to launch it
RECENT_STEPS = 8


class TalkerEngine(BaseTalkerEngine):
    """Continuous batching of requests on one talker."""

    hands_out_beside_steps = False

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, *, dtype: torch.dtype | None = None) -> None:
        """Load the weights and allocate all state.

        Args:
            dtype: None takes the option's; float64, which is no option, is for checks of exactness.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
            RankError: another rank ended while it was loading.
        """
        super().__init__(checkpoint, config)
        device = resolve_device(config.device)
        dtype = dtype or resolve_dtype(config.dtype, device)
        self._ranks = start_ranks(checkpoint, config, device, dtype)
        with self._ranks.closed_on_error(), torch.inference_mode(), on_device(device):
            self.runner = TalkerRunner(checkpoint, config, device=device, dtype=dtype, ranks=self._ranks)
            self.runner.capture()
        logger.info("%s", load_summary(self.runner))
        block_size = config.kv_block_size
        self.scheduler = Scheduler(
            BlockManager(self.runner.num_blocks, block_size, lambda blocks: self.runner.erase(blocks)),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=min(config.max_num_batched_tokens, config.max_model_len),
            block_keys=BlockKeys(block_size, checkpoint.config.tts_pad_token_id) if config.enable_prefix_caching else None,
            may_begin=lambda: not self.has_backpressure,
        )
        # On a GPU one result stays unread while the next step runs; the CPU runs a launch at once, so waiting only delays audio.
        self._pipelined = device.type == "cuda"
        self._unread: deque[FrameResult] = deque()
        self._eos, self._codebook_size = checkpoint.config.talker.codec_eos_token_id, checkpoint.config.codec.codebook_size
        self._num_frames = self._num_steps = 0
        self._seconds_waited = self._now = 0.0
        self._step_began = 0.0  # when the device began with the oldest unread result
        self._step_seconds: deque[float] = deque(maxlen=RECENT_STEPS)  # that results took

        self._prefilled_ahead = False  # since the last step
        self._rank_ended = False
        self._inbox: list[Request] = []
        self._cancelled: set[str] = set()
        self._deadlines: list[tuple[float, str]] = []  # a heap; of requests that have ended, too
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name="talker-engine", daemon=True)
        self._ranks.watch(self._notice_end_of_rank)

    # callers

    def start(self) -> None:
        """Start the engine thread."""
        self._alive = True
        self._thread.start()

    def _accept(self, request: Request) -> None:
        self._inbox.append(request)
        self._changed.notify()

    def _accept_cancel(self, request_id: str) -> None:
        self._cancelled.add(request_id)
        self._changed.notify()

    def _accept_backpressure(self) -> None:
        self._changed.notify()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the thread; every open request ends with an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)
        self._ranks.close()

    def stats(self) -> TalkerStats:
        """What the engine holds now; safe to call from any thread, taken without stopping it."""
        scheduler = self.scheduler
        blocks = scheduler.block_manager
        running = len(scheduler.active)
        return TalkerStats(
            running=running,
            waiting=max(len(self._open) - running, 0),
            free_slots=scheduler.num_free_slots,
            free_blocks=blocks.num_free_blocks,
            total_blocks=blocks.num_usable_blocks,
            num_frames=self._num_frames,
            num_steps=self._num_steps,
            num_preemptions=scheduler.num_preemptions,
            num_prefix_hits=scheduler.num_prefix_hits,
            num_cached_rows=scheduler.num_cached_rows,
        )

    # engine thread

    def run(self) -> None:
        """Step until `shutdown` or a failure. `start` lets a thread of its own do this."""
        reason = "the server is shutting down"
        try:
            with torch.inference_mode(), on_device(self.runner.device), self.runner.on_stream():
                while self._take_inbox():
                    if time.perf_counter() < self._launch_due():
                        self._prefill_ahead()
                    else:
                        self._step()
                    self._after_step()
                self._ranks.finish()
        except Exception as error:
            reason = f"the talker engine failed: {type(error).__name__}"
            logger.exception("the talker engine failed")
        finally:
            with self._changed:
                self._alive = False
            for request in list(self._open.values()):
                self._close(request, FinishReason.ERROR, reason)
            self._after_step()
            self._ranks.close()

    def _after_step(self) -> None:
        """The chunks of a step have been handed out, or those that end all requests."""

    def _wait_for_news(self) -> None:
        """Return when a caller wants something, or when a step is to be launched."""
        with self._changed:
            while not self._has_news:
                seconds = self._seconds_to_launch()
                if seconds is not None and seconds <= 0:
                    break
                self._changed.wait(seconds)

    @property
    def _has_news(self) -> bool:
        return bool(self._stopping or self._rank_ended or self._inbox or self._cancelled)

    def _seconds_to_launch(self) -> float | None:
        """Until the next step is to be launched or read; None where there is nothing to do."""
        if self._unread or self.scheduler.has_work:
            return self._launch_due() - time.perf_counter()
        if not self.scheduler.waiting:
            return None
        return min([self._backpressure_until, *(deadline for deadline, _ in self._deadlines[:1])]) - time.monotonic()

    def _take_inbox(self) -> bool:
        """Wait for something to do; take in new and cancelled requests. False when the engine shall stop."""
        self._wait_for_news()
        with self._changed:
            if self._stopping:
                return False
            self._ranks.check()
            arrived, self._inbox = self._inbox, []
            cancelled, self._cancelled = self._cancelled, set()
        for request in arrived:
            self.scheduler.add(request)
            if request.deadline is not None:
                heappush(self._deadlines, (request.deadline, request.request_id))
        for request_id in cancelled:
            if request_id in self._open:
                self._close(self._open[request_id], FinishReason.CANCELLED)
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            deadline, request_id = heappop(self._deadlines)
            if request_id in self._open and self._open[request_id].deadline == deadline:
                self._close(self._open[request_id], FinishReason.ERROR, DEADLINE_ERROR)
        return True

    def _notice_end_of_rank(self) -> None:
        with self._changed:
            self._rank_ended = True
            self._changed.notify()

    def _launch_due(self) -> float:
        """When the next step must be launched, so that the device need not wait for it; 0: at once."""
        if not (self._pipelined and self._unread and self._step_seconds and self.scheduler.will_decode):
            return 0.0
        return self._step_began + HELD_SHARE * min(self._step_seconds)

    def _prefill_ahead(self) -> None:
        """Launch the prompts of new requests beside the step that runs; the coming step draws their first frames."""
        schedule = self.scheduler.schedule_prefill()
        for request in schedule.admitted:
            request.start()
        self._unread.extend(self.launch(schedule))  # nothing yet: no frame is drawn
        self._prefilled_ahead |= bool(schedule.prefill)

    def _step(self) -> None:
        """Launch one prefill and one decode step, then read what is due."""
        begin, self._seconds_waited = time.perf_counter(), 0.0
        if not self._unread:
            self._step_began = begin
        schedule = self.scheduler.schedule()
        for request in schedule.admitted:
            request.start()
        for result in self.launch(schedule):
            self._unread.append(result)
            if not self._pipelined:
                self._read_unread(0)
        self._num_steps += 1
        launched_anything = schedule.prefill or schedule.decode
        self._read_unread(1 if self._pipelined and launched_anything else 0)
        is_steady = bool(schedule.decode) and not schedule.prefill and not self._prefilled_ahead
        self._prefilled_ahead = False
        self.step_times.add(begin, self._seconds_waited, time.perf_counter(), is_steady=is_steady)

    def launch(self, schedule: Schedule) -> Iterator[FrameResult]:
        """Launch the prefill step and the decode step of `schedule`; their results come unread, as each is launched."""
        drawing = [chunk.request for chunk in schedule.prefill if chunk.completes_prompt]
        if schedule.admitted:
            self.runner.prefill_after(schedule.prefill_after)
        for request in schedule.admitted:
            self.runner.write_speaker(request)
        if schedule.prefill:
            # Before what only draws need, which the host can write while the device is busy with this.
            self.runner.prefill(schedule.prefill)
            self.scheduler.prefilled(schedule.prefill)
        for request in schedule.admitted:
            self.runner.admit(request)
        self.runner.update_block_tables(schedule.grown)
        if drawing:
            yield self.runner.draw_first(drawing)
        if schedule.decode:
            frames = self.runner.decode(schedule.decode)
            self.scheduler.decoded(schedule.decode)
            yield frames

    def _read_unread(self, keep: int) -> None:
        """Read results, oldest first, until `keep` are left."""
        while len(self._unread) > keep:
            self._read(self._unread.popleft())

    def _read(self, result: FrameResult) -> None:
        """Hand each frame of `result` to its request; end those that are done."""
        begin = time.perf_counter()
        rows = result.read()
        self._now = time.perf_counter()
        self._seconds_waited += self._now - begin
        self._step_seconds.append(self._now - self._step_began)
        self._step_began = self._now
        # All rows at once: asking numpy row by row would take half a millisecond of every step at 64 streams.
        has_ended = (rows[:, 0] == self._eos).tolist()
        has_failed = ((rows < 0) | (rows >= self._codebook_size)).any(1).tolist()
        streams = zip(result.requests, result.num_preemptions, rows, has_ended, has_failed, strict=True)
        for request, num_preemptions, codes, ended, failed in streams:
            if request.status is RUNNING and request.num_preemptions == num_preemptions:
                self._receive(request, codes, ended, failed)

    def _receive(self, request: Request, codes: npt.NDArray[np.int16], has_ended: bool, has_failed: bool) -> None:
        if has_ended:
            self._close(request, FinishReason.STOP)
        elif has_failed:
            self.scheduler.quarantine(request)
            self._close(request, FinishReason.ERROR, "the talker computed a value that is not a number or not a code")
        else:
            self._num_frames += 1
            request.append_frame(codes, self._now, len(self.scheduler.active))
            self.scheduler.received(request)
            if request.listener_failed:
                self._close(request, FinishReason.CANCELLED)
            elif len(request.frames) >= request.max_frames:
                self._close(request, FinishReason.LENGTH)

    def _close(self, request: Request, reason: FinishReason, error: str = "") -> None:
        """Free what `request` holds, then end its stream."""
        self.scheduler.release(request)
        with self._changed:
            del self._open[request.request_id]
        request.finish(reason, error)
