"""One request on its way through the talker, and the chunks of codec frames it answers with."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable
from enum import Enum
from functools import partial

import numpy as np
import numpy.typing as npt

from engine_lib.process.wire import Message
from engine_lib.prompt import Prompt
from engine_lib.sampling import SamplingParams
from engine_lib.talker.chunking import ChunkCutter, ChunkGrowth

logger = logging.getLogger(__name__)

# Frames a text may take before it is cut: speech seldom needs more than four frames a token.
FRAME_BUDGET_BASE = 100
FRAME_BUDGET_PER_TOKEN = 12

DEADLINE_ERROR = "DEADLINE_EXCEEDED: timeout: the time this request was given has passed; give it more, or ask a server with less load"


class FinishReason(str, Enum):
    """Why a stream ended."""

    STOP = "stop"
    LENGTH = "length"
    CANCELLED = "cancelled"
    ERROR = "error"


class RequestStatus(Enum):
    """Where a request is."""

    WAITING = "waiting"
    PREFILLING = "prefilling"
    RUNNING = "running"
    FINISHED = "finished"


# For what asks every stream at every step: looking a member up in its class takes six times as long (Python 3.11).
PREFILLING, RUNNING = RequestStatus.PREFILLING, RequestStatus.RUNNING


class CodesChunk(Message, frozen=True):
    """Consecutive frames of one stream.

    Attributes:
        codes: [frames, num_code_groups] int16. The last chunk of a stream has no frames.
        index: 0, 1, 2.. within the stream.
        is_final: True for the last chunk, which every accepted request gets exactly once.
        finish_reason: "" until the final chunk.
        error: what went wrong, where finish_reason is "error".
    """

    codes: npt.NDArray[np.int16]
    index: int
    is_final: bool = False
    finish_reason: str = ""
    error: str = ""


class Request:
    """A prompt to be spoken, its sampling, and its progress.

    The arguments are what a caller chooses; everything else belongs to the engine thread.
    """

    def __init__(
        self,
        request_id: str,
        prompt: Prompt,
        sampling: SamplingParams,
        chunk_frames: tuple[int, ...],
        on_chunk: Callable[[CodesChunk], None],
        deadline: float | None = None,
        chunk_growth: ChunkGrowth | None = None,
        on_start: Callable[[], None] | None = None,
    ) -> None:
        """
        Args:
            request_id: unique key of this request.
            prompt: from PromptBuilder.
            sampling: how codes are drawn.
            chunk_frames: frames in the first, second, .. chunk; the last entry repeats.
            on_chunk: called on the engine thread for each chunk; must only hand the chunk on. If it raises, the
                request ends as cancelled.
            deadline: time.monotonic() at which it ends with an error, waiting or running; None: never.
            chunk_growth: what follows the last entry of `chunk_frames`; None: it repeats.
            on_start: called on the engine thread when its first step is about to be launched; as `on_chunk`.
        """
        self.request_id = request_id
        self.prompt = prompt
        self.num_prompt_rows = len(prompt)
        self.sampling = sampling
        self.on_chunk = on_chunk
        self.deadline = deadline
        self.chunk_frames, self.chunk_growth = chunk_frames, chunk_growth
        self._on_start = on_start
        self.seed = secrets.randbits(63) if sampling.seed is None else sampling.seed
        self.max_frames = sampling.max_frames or FRAME_BUDGET_BASE + FRAME_BUDGET_PER_TOKEN * prompt.num_text_tokens

        self.status = RequestStatus.WAITING
        self.slot = -1
        self.block_table: list[int] = []
        self.block_keys: list[bytes] = []  # of its first blocks, as far as anybody asked
        self.num_prefilled_rows = 0  # in the cache already, or launched
        self.num_sound_rows = 0  # known to be in the cache and to hold numbers
        self.num_launched_frames = 0  # frames the device has been asked for, read or not
        self.num_preemptions = 0  # a result launched before the latest preemption is void
        self.frames: list[npt.NDArray[np.int16]] = []
        self.listener_failed = False
        self._cutter = ChunkCutter(chunk_frames, chunk_growth)
        self._num_sent_frames = 0
        self._num_chunks = 0

    @property
    def has_start_listener(self) -> bool:
        """Whether somebody waits to hear that work begins."""
        return self._on_start is not None

    @property
    def num_rows(self) -> int:
        """Input rows known so far: the prompt, and one row for each frame that has been read."""
        return self.num_prompt_rows + len(self.frames)

    @property
    def num_rows_on_device(self) -> int:
        """Input rows in the KV cache once everything launched has run, from the moment the next step draws a frame."""
        return self.num_prompt_rows + self.num_launched_frames - 1

    @property
    def max_rows(self) -> int:
        """Input rows this request can ever need: its last frame is drawn, but never fed back."""
        return self.num_prompt_rows + self.max_frames - 1

    def rows(self, start: int, stop: int, pad_text_id: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
        """Text ids [n] and codes [n, num_code_groups] of input rows start..stop, past the prompt from the kept frames."""
        prompt, length = self.prompt, self.num_prompt_rows
        text_ids, codes = prompt.text_ids[start:stop], prompt.codes[start:stop]
        if stop > length:
            first, last = max(start - length, 0), stop - length
            trailing = prompt.trailing_text_ids[first:last]
            padding = np.full(last - first - len(trailing), pad_text_id, np.int32)
            text_ids = np.concatenate([text_ids, trailing, padding])
            codes = np.concatenate([codes, np.array(self.frames[first:last], np.int32)])
        return text_ids, codes

    def start(self) -> None:
        """Tell the listener, once, that work begins: a preempted request starts again unheard."""
        on_start, self._on_start = self._on_start, None
        if on_start is not None:
            self._call(on_start)

    def append_frame(self, codes: npt.NDArray[np.int16], now: float, num_running: int) -> None:
        """Keep one frame [num_code_groups] and send a chunk when enough have gathered; for `now` and load see ChunkCutter."""
        self.frames.append(codes)
        num_gathered = len(self.frames) - self._num_sent_frames
        if self._cutter.is_due(num_gathered, now, num_running):
            self._cutter.sent(num_gathered, now)
            self._send_frames()

    def finish(self, reason: FinishReason, error: str = "") -> None:
        """Send what is left, then the final chunk."""
        self.status = RequestStatus.FINISHED
        if reason in (FinishReason.STOP, FinishReason.LENGTH) and len(self.frames) > self._num_sent_frames:
            self._send_frames()
        if self.listener_failed:
            reason, error = FinishReason.CANCELLED, ""
        nothing = np.empty((0, self.prompt.codes.shape[1]), np.int16)
        self.emit(CodesChunk(nothing, self._num_chunks, is_final=True, finish_reason=reason.value, error=error))

    def emit(self, chunk: CodesChunk) -> None:
        """Give the listener its next chunk."""
        self._num_chunks += 1
        self._call(partial(self.on_chunk, chunk))

    def _send_frames(self) -> None:
        frames = np.array(self.frames[self._num_sent_frames :])  # a third of what np.stack takes
        self._num_sent_frames = len(self.frames)
        self.emit(CodesChunk(frames, self._num_chunks))

    def _call(self, listener: Callable[[], None]) -> None:
        try:
            listener()
        except Exception as error:
            # One listener's fault must not reach other streams. The message is left out: it may hold a user's text.
            self.listener_failed = True
            logger.error("request %s: its listener raised %s; its stream ends", self.request_id, type(error).__name__)
