"""TalkerEngine: the thread that admits requests, steps the batch and emits chunks of codec frames.

Callers only touch the inbox; scheduler, worker and requests belong to the engine thread. Every accepted request gets
exactly one final chunk, whatever happens. On a GPU the next step is launched before the codes of the last one are read, but as
late as possible: a request that comes while a step runs is prefilled beside it, and joins the next step if that is not launched yet.
In a long step prompts wait for that launch and share one: the next step samples their first frames together.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.admission.deadlines import Deadlines
from engine_lib.admission.turn import Priority
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device, resolve_device, resolve_dtype
from engine_lib.errors import DEADLINE_ERROR, SHUTDOWN_ERROR
from engine_lib.talker.base_engine import BaseTalkerEngine, TalkerStats
from engine_lib.talker.block_keys import BlockKeys
from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.device.load_summary import load_summary
from engine_lib.talker.device.worker import FrameResult, TalkerWorker
from engine_lib.talker.output.chunking import ChunkGrowth
from engine_lib.talker.output.runaway import RUNAWAYS, RunawayCause, RunawayOutcome, SilentStream
from engine_lib.talker.parallel.rank_zero import start_ranks
from engine_lib.talker.planner import Planner
from engine_lib.talker.request import TEXT_IDLE_ERROR, FinishReason, FurtherText, Request, RequestListener
from engine_lib.talker.scheduler import Schedule, Scheduler
from engine_lib.talker.sequence import RUNNING, Scores, Sequence
from engine_lib.talker.text.waits import TextWaits

logger = logging.getLogger(__name__)

LAUNCH_SHARE = 0.6  # the next step is launched after this share of the shortest recent step; launching it takes the host the rest
RECENT_STEPS = 8
PREFILL_SECONDS = 0.003  # a launch of prompts: 1.5 to 2 ms on the device, and launching it


@dataclass(frozen=True)
class LaunchedFrames:
    """Unread frames: row i of `result` belongs to `sequences[i]` unless `num_preemptions[i]` has changed since."""

    sequences: list[Sequence]
    num_preemptions: list[int]
    result: FrameResult


class TalkerEngine(BaseTalkerEngine[Sequence]):
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
            self.worker = TalkerWorker(checkpoint, config, device=device, dtype=dtype, ranks=self._ranks)
            self.worker.capture()
        logger.info("%s", load_summary(self.worker))
        block_size = config.kv_block_size
        self.scheduler = Scheduler(
            BlockManager(self.worker.num_blocks, block_size),
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=min(config.max_num_batched_tokens, config.max_model_len),
            block_keys=BlockKeys(block_size, checkpoint.config.tts_pad_token_id) if config.enable_prefix_caching else None,
            backpressure=self._backpressure,
        )
        self.planner = Planner(self.scheduler, self.worker)
        # On a GPU one result stays unread while the next step runs; the CPU runs a launch at once, so waiting only delays audio.
        self._pipelined = device.type == "cuda"
        self._unread: deque[LaunchedFrames] = deque()
        self._eos, self._codebook_size = checkpoint.config.talker.codec_eos_token_id, checkpoint.config.codec.codebook_size
        self._num_frames = self._num_steps = 0
        self._num_runaways = dict.fromkeys(RUNAWAYS, 0)
        self._seconds_waited = self._now = 0.0
        self._step_began = 0.0  # when the device began with the oldest unread result
        self._step_seconds: deque[float] = deque(maxlen=RECENT_STEPS)  # from one result to the next

        self._is_disturbed = False  # since the last step, by prefill or by text
        self._rank_ended = False
        self._inbox: list[Sequence] = []
        self._fed: list[FurtherText] = []
        self._silent: list[SilentStream] = []
        self._cancelled: dict[str, str] = {}  # stream keys, and the error that each ends with
        self._deadlines = Deadlines(self._deadline_of)
        self._text_waits = TextWaits(config.text_idle_seconds, self.worker.frame_seconds)
        self._stopping = False
        self._thread = threading.Thread(target=self.run, name="talker-engine", daemon=True)
        self._ranks.watch(self._notice_end_of_rank)

    # callers

    def start(self) -> None:
        """Start the engine thread."""
        self._alive = True
        self._thread.start()

    def _accept(self, request: Request, listener: RequestListener) -> Sequence:
        growth = ChunkGrowth.of(request.delivery, self.checkpoint.config, self.config)
        sequence = Sequence(request, listener, self.max_frames(request), growth)
        self._inbox.append(sequence)
        self._changed.notify()
        return sequence

    def _accept_text(self, text: FurtherText) -> None:
        self._fed.append(text)
        self._changed.notify()

    def _accept_cancel(self, stream_key: str, error: str) -> None:
        self._cancelled[stream_key] = error
        self._changed.notify()

    def _accept_silence(self, silent: SilentStream) -> None:
        self._silent.append(silent)
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
        """See BaseTalkerEngine."""
        scheduler = self.scheduler
        blocks = scheduler.block_manager
        running = len(scheduler.active)
        return TalkerStats(
            running=running,
            waiting=max(len(self._open) - running, 0),
            waiting_batch=scheduler.waiting.count(Priority.BATCH),
            free_slots=scheduler.num_free_slots,
            free_blocks=blocks.num_free_blocks,
            total_blocks=blocks.num_usable_blocks,
            num_frames=self._num_frames,
            num_steps=self._num_steps,
            num_decode_steps=scheduler.num_decode_steps,
            num_decode_rows=scheduler.num_decode_rows,
            num_preemptions=scheduler.num_preemptions,
            num_prefix_hits=scheduler.num_prefix_hits,
            num_cached_rows=scheduler.num_cached_rows,
            starving=scheduler.num_starving,
            num_runaways=tuple(self._num_runaways.values()),
        )

    # engine thread

    def run(self) -> None:
        """Step until `shutdown` or a failure. `start` runs this on a thread."""
        reason = SHUTDOWN_ERROR
        try:
            with torch.inference_mode(), on_device(self.worker.device), self.worker.on_stream():
                while self._take_inbox():
                    if time.perf_counter() >= self._launch_due():
                        self._step()
                    elif not self._gathers_prompts:
                        self._prefill_ahead()
                    self._after_step()
                self._ranks.finish()
        except Exception as error:
            reason = f"the talker engine failed: {type(error).__name__}"
            logger.exception("the talker engine failed")
        finally:
            with self._changed:
                self._alive = False
            for sequence in list(self._open.values()):
                self._close(sequence, FinishReason.ERROR, reason)
            self._after_step()
            self._ranks.close()

    def _after_step(self) -> None:
        """Called after the chunks of a step, or those that end all streams, have been emitted."""

    def _wait_for_news(self) -> None:
        """Wait until a caller wants something or a step must be launched."""
        with self._changed:
            while not self._has_news:
                seconds = self._seconds_to_launch()
                if seconds is not None and seconds <= 0:
                    break
                self._changed.wait(seconds)

    @property
    def _has_news(self) -> bool:
        return bool(self._stopping or self._rank_ended or self._inbox or self._fed or self._silent or self._cancelled)

    def _seconds_to_launch(self) -> float | None:
        """Seconds until the next step must be launched or read; None if there is nothing to do."""
        if self._unread or self.scheduler.has_work:
            return self._launch_due() - time.perf_counter()
        if not (self.scheduler.waiting or self._text_waits):
            return None
        due = [*self._text_waits.due, *([] if self._deadlines.next is None else [self._deadlines.next])]
        if self._backpressure.is_on:
            due.append(self._backpressure.until)
        return min(due) - time.monotonic() if due else None

    def _take_inbox(self) -> bool:
        """Wait for work; take in new, fed, cancelled and late requests. Returns False if the engine must stop."""
        if self._text_waits:
            self._text_waits.look(time.monotonic())
        self._wait_for_news()
        with self._changed:
            if self._stopping:
                return False
            self._ranks.check()
            arrived, self._inbox = self._inbox, []
            fed, self._fed = self._fed, []
            silent, self._silent = self._silent, []
            cancelled, self._cancelled = self._cancelled, {}
        for sequence in arrived:
            self.scheduler.add(sequence)
            if sequence.text_is_open:
                self._text_waits.add(sequence)
            if sequence.request.deadline is not None:
                self._deadlines.add(sequence.request.stream_key, sequence.request.deadline)
        for text in fed:
            if text.stream_key in self._open:
                self._take_text(self._open[text.stream_key], text)
        for stream in silent:
            if stream.stream_key in self._open:
                self._end_runaway(self._open[stream.stream_key], RunawayCause.SILENCE, stream.num_good_frames)
            else:  # the codec has told its client so
                self._num_runaways[RunawayCause.SILENCE, RunawayOutcome.STOPPED] += 1
        for stream_key, error in cancelled.items():
            if stream_key in self._open:
                self._close(self._open[stream_key], FinishReason.ERROR if error else FinishReason.CANCELLED, error)
        for stream_key in self._deadlines.passed(time.monotonic()):
            self._close(self._open[stream_key], FinishReason.ERROR, DEADLINE_ERROR)
        if self._text_waits:
            self._end_text_waits(time.monotonic())
        return True

    def _deadline_of(self, stream_key: str) -> float | None:
        sequence = self._open.get(stream_key)
        return None if sequence is None else sequence.request.deadline

    def _take_text(self, sequence: Sequence, text: FurtherText) -> None:
        """Add text to a sequence; its next step may have waited for it."""
        if sequence.text_is_open:
            sequence.feed(text, self.max_frames(sequence.request, text.num_text_tokens))
            self.scheduler.fed(sequence)
            self._text_waits.fed(sequence)
            self._is_disturbed = True  # steps that waited for text have no rhythm

    def _end_text_waits(self, now: float) -> None:
        """Let streams that wait for text send what they have, and end those that have waited for too long."""
        self._text_waits.look(now)  # one may have been closed meanwhile
        for sequence in self._text_waits.to_flush(now):
            sequence.flush()
        for sequence in self._text_waits.to_end(now):
            self._close(sequence, FinishReason.ERROR, TEXT_IDLE_ERROR.format(self.config.text_idle_seconds))

    def _notice_end_of_rank(self) -> None:
        with self._changed:
            self._rank_ended = True
            self._changed.notify()

    def _launch_due(self) -> float:
        """When (time.perf_counter) the next step must be launched, so that the device does not wait for it; 0: at once."""
        if not (self._pipelined and self._unread and self._step_seconds and self.scheduler.will_decode):
            return 0.0
        return self._step_began + LAUNCH_SHARE * min(self._step_seconds)

    @property
    def _gathers_prompts(self) -> bool:
        """Whether prompts wait for the launch of the next step: they join it, or are done when the step that runs ends."""
        they_join = self.config.prompts_join(len(self.scheduler.active)) and self.scheduler.may_gather_prompts(in_step=True)
        has_time = (1 - LAUNCH_SHARE) * min(self._step_seconds) >= PREFILL_SECONDS
        return they_join or (has_time and self.scheduler.may_gather_prompts())

    def _prefill_ahead(self) -> None:
        """Launch the prompts of new sequences beside the step that runs; the next step samples their first frames."""
        schedule = self.scheduler.schedule_prefill()
        for sequence in schedule.admitted:
            sequence.begin()
        self._unread.extend(self.launch(schedule))  # adds nothing: no frame is sampled yet
        self._is_disturbed |= bool(schedule.prefill)

    def _step(self) -> None:
        """Launch one prefill and one decode step, then read the results that are due."""
        begin, self._seconds_waited = time.perf_counter(), 0.0
        if not self._unread:
            self._step_began = begin
        schedule = self.scheduler.schedule()
        launches_anything = bool(schedule.prefill or schedule.decode)
        self._num_steps += launches_anything  # before its frames are handed out, so that their receiver finds it counted
        for sequence in schedule.admitted:
            sequence.begin()
        for frames in self.launch(schedule):
            self._unread.append(frames)
            if not self._pipelined:
                self._read_unread(0)
        self._read_unread(1 if self._pipelined and launches_anything else 0)
        is_steady = bool(schedule.decode) and not schedule.prefill and not self._is_disturbed
        self._is_disturbed = False
        self.step_times.add(begin, self._seconds_waited, time.perf_counter(), is_steady=is_steady)

    def launch(self, schedule: Schedule) -> Iterator[LaunchedFrames]:
        """Launch the prefill step and the decode step of `schedule`; yield the frames of each, unread, once it is launched."""
        for plan, sequences in self.planner.plans(schedule):
            result = self.worker.execute(plan)
            if result is not None:
                yield LaunchedFrames(sequences, [sequence.num_preemptions for sequence in sequences], result)

    def _read_unread(self, keep: int) -> None:
        """Read results, oldest first, until `keep` are left."""
        while len(self._unread) > keep:
            self._read(self._unread.popleft())

    def _read(self, launched: LaunchedFrames) -> None:
        """Hand each frame to its sequence; end those that are done."""
        begin = time.perf_counter()
        rows = launched.result.read()
        self._now = time.perf_counter()
        self._seconds_waited += self._now - begin
        self._step_seconds.append(self._now - self._step_began)
        self._step_began = self._now
        # All rows at once: asking numpy row by row would take half a millisecond of every step at 64 streams.
        has_ended = (rows[:, 0] == self._eos).tolist()
        has_failed = ((rows < 0) | (rows >= self._codebook_size)).any(1).tolist()
        all_scores: Iterable[Scores | None] = [None] * len(rows) if (scores := launched.result.scores) is None else scores
        streams = zip(launched.sequences, launched.num_preemptions, rows, has_ended, has_failed, all_scores, strict=True)
        for sequence, num_preemptions, codes, ended, failed, its_scores in streams:
            if sequence.status is RUNNING and sequence.num_preemptions == num_preemptions:
                self._receive(sequence, codes, ended, failed, its_scores)

    def _receive(self, sequence: Sequence, codes: npt.NDArray[np.int16], has_ended: bool, has_failed: bool, scores: Scores | None) -> None:
        if has_ended:
            self._close(sequence, FinishReason.STOP)
        elif has_failed:
            self.scheduler.quarantine(sequence)
            self._close(sequence, FinishReason.ERROR, "the talker computed a value that is not a number or not a code")
        else:
            self._num_frames += 1
            sequence.append_frame(codes, self._now, len(self.scheduler.active), scores)
            self.scheduler.received(sequence)
            if sequence.emitter.has_failed:
                self._close(sequence, FinishReason.CANCELLED)
            elif sequence.runaway.has_run_away:
                self._end_runaway(sequence, RunawayCause.REPETITION, sequence.num_good_frames)
            elif len(sequence.frames) >= sequence.max_frames:
                self._close(sequence, FinishReason.LENGTH)

    def _end_runaway(self, sequence: Sequence, cause: RunawayCause, num_good_frames: int) -> None:
        """Speak a stream anew behind its good frames, if that is wanted and may help; else end it."""
        outcome = RunawayOutcome.RETRIED if sequence.runaway.take_retry() else RunawayOutcome.STOPPED
        self._num_runaways[cause, outcome] += 1
        if outcome is RunawayOutcome.RETRIED:
            self.scheduler.cut(sequence, num_good_frames)
        else:
            sequence.cut(sequence.num_good_frames)
            self._close(sequence, FinishReason.RUNAWAY)

    def _close(self, sequence: Sequence, reason: FinishReason, error: str = "") -> None:
        """Free the slot and the blocks of `sequence`, then end its stream."""
        self.scheduler.release(sequence)
        with self._changed:
            self._forget(sequence.request.stream_key, has_run=sequence.emitter.has_begun)
        sequence.finish(reason, error)
