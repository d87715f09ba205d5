"""Sequence: one request in the engine, with its slot, KV blocks and frames. No device module knows it."""

from __future__ import annotations

import secrets
import time
from enum import Enum

import numpy as np
import numpy.typing as npt

from engine_lib.delivery import MAX_CHUNK_FRAMES, Timestamps
from engine_lib.sampling import MAX_SEED
from engine_lib.speech.runaway import RUNAWAY_FRAMES
from engine_lib.talker.output.chunking import ChunkCutter, ChunkGrowth
from engine_lib.talker.output.emitter import Emitter
from engine_lib.talker.output.runaway import RunawayWatch
from engine_lib.talker.request import FinishReason, FurtherText, Request, RequestListener, StreamTimes

Scores = npt.NDArray[np.float16]


class SequenceStatus(Enum):
    """Where a sequence is."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    FINISHED = "finished"


# Compared for every sequence at every step: a lookup in the class takes six times as long (Python 3.11).
PREFILLING, RUNNING = SequenceStatus.PREFILLING, SequenceStatus.RUNNING


class Sequence:
    """The progress of one request.

    Attributes:
        request, prompt: the caller's choices.
        emitter: the way to the listener.
        seed: of the random numbers.
        text_ids: [n] int32, text of the first n rows, the prompt's and those behind it; further rows have tts_pad.
        text_is_open: further rows have text that has not come yet.
        max_frames: frames after which the stream ends.
        num_possible_frames: frames that can be sampled with the text there is.
        slot: -1 unless it has one.
        block_table: numbers of its KV blocks.
        block_keys: keys of its first blocks, as far as computed.
        num_prefilled_rows: rows in the cache, or launched.
        num_sound_rows: rows known to be in the cache and free of NaN.
        num_text_rows_on_device: of `text_ids`, once it has a slot.
        wants_scores: its frames come with scores of its text.
        num_launched_frames: frames launched on the device, read or not.
        num_preemptions: a result launched before the latest preemption is void.
        runaway: notices that it does not end.
        frames: [num_code_groups] int16 each, as read.
        prefilled_at: as in StreamTimes; 0.0 if no row of the prompt has been launched.
    """

    def __init__(self, request: Request, listener: RequestListener, max_frames: int, growth: ChunkGrowth | None = None) -> None:
        """`growth`: sizes of chunks after the ramp; None repeats its last entry."""
        self.request, self.prompt = request, request.prompt
        self.emitter = Emitter(request, listener)
        self.seed = secrets.randbits(63) if request.sampling.seed is None else request.sampling.seed
        self.wants_scores = request.delivery.timestamps is Timestamps.WORD
        self.num_prompt_rows = len(request.prompt)
        self.text_ids = np.concatenate([request.prompt.text_ids, request.prompt.trailing_text_ids])
        self.text_is_open = request.text_is_open
        self._set_max_frames(max_frames)

        self.status = SequenceStatus.WAITING
        self.slot = -1
        self.block_table: list[int] = []
        self.block_keys: list[bytes] = []
        self.num_prefilled_rows = 0
        self.num_sound_rows = 0
        self.num_text_rows_on_device = 0
        self.num_launched_frames = 0
        self.num_preemptions = 0
        self.frames: list[npt.NDArray[np.int16]] = []
        self.prefilled_at = self._begun_at = 0.0
        self._must_report = request.announce_times
        self._num_sent_frames = 0
        self._scores: list[Scores | None] = []  # of frames that are not sent yet, if it wants scores
        self._cutter = ChunkCutter(request.delivery.chunk_frames, growth)
        self.runaway = RunawayWatch(request)

    @property
    def num_rows(self) -> int:
        """Input rows known so far: the prompt, and one row for each frame that has been read."""
        return self.num_prompt_rows + len(self.frames)

    @property
    def num_rows_on_device(self) -> int:
        """Input rows in the KV cache once everything launched has run, if the next step samples a frame of this sequence."""
        return self.num_prompt_rows + self.num_launched_frames - 1

    @property
    def max_rows(self) -> int:
        """Input rows it can ever need: its last frame is sampled, but never fed back."""
        return self.num_prompt_rows + self.max_frames - 1

    @property
    def num_text_rows(self) -> int:
        """Rows of the text to be spoken, the one that ends it included, as far as it has come."""
        if self.request.text_is_open:
            return max(len(self.text_ids) - self.prompt.text_start, 0)
        return self.prompt.num_text_tokens + 1

    @property
    def has_text(self) -> bool:
        """Whether there is text for all rows known so far, so that they can be prefilled."""
        return not self.text_is_open or self.num_rows <= len(self.text_ids)

    @property
    def lacks_text(self) -> bool:
        """Whether it can do nothing until more text comes."""
        if self.status is RUNNING:
            return self.num_possible_frames <= self.num_launched_frames < self.max_frames
        return self.status is SequenceStatus.WAITING and not self.has_text

    @property
    def num_good_frames(self) -> int:
        """Frames to keep of a stream with codes that have run away: those before the pattern, and those that have been sent."""
        return max(self._num_sent_frames, len(self.frames) - RUNAWAY_FRAMES)

    def cut(self, num_frames: int) -> None:
        """Forget the frames behind the first `num_frames`, sent or not. Those that follow have other random numbers."""
        del self.frames[num_frames:], self._scores[max(num_frames - self._num_sent_frames, 0) :]
        self.runaway.begin_behind(self.frames)
        self.seed = (self.seed + 1) & MAX_SEED
        self._num_sent_frames, num_sent_frames = min(self._num_sent_frames, num_frames), self._num_sent_frames
        if num_sent_frames > num_frames:
            self.emitter.start_over(np.array(self.frames, np.int16).reshape(-1, self.prompt.codes.shape[1]))

    def feed(self, text: FurtherText, max_frames: int) -> None:
        """Take in more text, and the limit of frames that goes with it."""
        self.text_ids = np.concatenate([self.text_ids, text.text_ids])
        self.text_is_open = not text.is_last
        self._set_max_frames(max_frames)

    def _set_max_frames(self, max_frames: int) -> None:
        self.max_frames = self.num_possible_frames = max_frames
        if self.text_is_open:
            self.num_possible_frames = min(max(len(self.text_ids) - self.num_prompt_rows + 1, 0), max_frames)

    def rows(self, start: int, stop: int, pad_text_id: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Text ids [n] and codes [n, num_code_groups] of input rows start..stop; those behind the prompt are kept frames."""
        length = self.num_prompt_rows
        text_ids, codes = self.text_ids[start:stop], self.prompt.codes[start:stop]
        if stop > length:
            first, last = max(start - length, 0), stop - length
            codes = np.concatenate([codes, np.array(self.frames[first:last], np.int32)])
        if stop > len(self.text_ids):
            text_ids = np.concatenate([text_ids, np.full(stop - start - len(text_ids), pad_text_id, np.int32)])
        return text_ids, codes

    def begin(self) -> None:
        """Its next step is about to be launched, the first one or the one after a preemption."""
        self._begun_at = self._begun_at or time.monotonic()
        self.emitter.start()

    def append_frame(self, codes: npt.NDArray[np.int16], now: float, num_running: int, scores: Scores | None = None) -> None:
        """Keep one frame [num_code_groups], and send a chunk if it is due.

        Args:
            now, num_running: for ChunkCutter.
            scores: [heads, text rows] of the frame, if the sequence wants them and the frame has them.
        """
        self.frames.append(codes)
        if self.wants_scores:
            self._scores.append(None if scores is None else scores[:, : self.num_text_rows])
        self.runaway.add(codes)
        num_gathered = self._num_ready - self._num_sent_frames
        if self._cutter.is_due(num_gathered, now, num_running):
            self._cutter.sent(num_gathered, now)
            self._send_frames(self._num_ready)

    @property
    def _num_ready(self) -> int:
        """Frames that may be sent."""
        return len(self.frames) - self.runaway.num_doubtful

    def flush(self) -> None:
        """Send the frames gathered for the next chunk, if there are any."""
        if (num_gathered := self._num_ready - self._num_sent_frames) > 0:
            self._cutter.sent(num_gathered, time.perf_counter())
            self._send_frames(self._num_ready)

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """Send the frames that are left, then the final chunk."""
        self.status = SequenceStatus.FINISHED
        if reason in (FinishReason.STOP, FinishReason.LENGTH, FinishReason.RUNAWAY):
            self._send_frames(len(self.frames))
        if self._must_report and self._begun_at:
            self._report(0.0)
        self.emitter.end(reason, error)

    def _send_frames(self, stop: int) -> None:
        """Send the frames up to `stop`, in one chunk unless many have waited."""
        if self._must_report and stop:
            self._report(time.monotonic())
        while (start := self._num_sent_frames) < stop:
            self._num_sent_frames = min(stop, start + MAX_CHUNK_FRAMES)
            frames = np.array(self.frames[start : self._num_sent_frames])  # a third of the time of np.stack
            self.emitter.emit_frames(frames, self._take_scores(len(frames)) if self.wants_scores else None)

    def _report(self, first_frames_at: float) -> None:
        """Tell the listener the times of its stream, once."""
        self._must_report = False
        prefilled_at = (self.prefilled_at or self._begun_at) if self.num_launched_frames or self.frames else 0.0
        self.emitter.report(StreamTimes(self.request.stream_key, self._begun_at, prefilled_at, first_frames_at))

    def _take_scores(self, num_frames: int) -> Scores:
        """[num_frames, heads, text rows] of the frames to be sent, -inf if a frame has none."""
        taken, self._scores = self._scores[:num_frames], self._scores[num_frames:]
        shapes = [scores.shape for scores in taken if scores is not None] or [(1, 0)]
        together = np.full((len(taken), shapes[0][0], max(rows for _, rows in shapes)), -np.inf, np.float16)
        for frame, scores in zip(together, taken, strict=True):
            if scores is not None:
                frame[:, : scores.shape[1]] = scores
        return together
