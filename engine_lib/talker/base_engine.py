"""BaseTalkerEngine: the callers' view of a talker's engine: admission, and the streams that are open.

Two engines implement it: engine.TalkerEngine steps on a thread of this process, isolation/remote_engine.py in another process.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Generic, TypeVar

from engine_lib.admission.pause import AdmissionPause
from engine_lib.admission.room import Room
from engine_lib.admission.turn import DEFAULT_TURN, Turn
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.delivery import Timestamps
from engine_lib.errors import EngineDeadError, InvalidRequestError
from engine_lib.prompt import Prompt
from engine_lib.speech.alignment_file import ALIGNMENT_FILE, MAX_TEXT_ROWS
from engine_lib.talker.output.runaway import SilentStream
from engine_lib.talker.request import FurtherText, Request, RequestListener
from engine_lib.talker.step_times import StepTimes

# Frames that a text may take before it is cut: speech seldom needs more than four frames a token.
FRAME_BUDGET_BASE = 100
FRAME_BUDGET_PER_TOKEN = 12

OpenStream = TypeVar("OpenStream")


@dataclass(frozen=True)
class TalkerStats:
    """A snapshot for metrics and tests. Counters count since the start.

    Attributes:
        waiting_batch: how many of those that wait are of priority batch.
        free_blocks: blocks that no request uses, also if they keep a prefix.
        num_decode_steps, num_decode_rows: decode steps, and the streams of all of them together: rows a step are the batch size.
        num_prefix_hits: requests that found their first rows in the prefix cache; a preempted one counts each time it comes back.
        num_cached_rows: rows that they found.
        starving: open requests that can do nothing until more of their text comes.
        num_runaways: streams that ran away, in the order of RUNAWAYS.
    """

    running: int
    waiting: int
    waiting_batch: int
    free_slots: int
    free_blocks: int
    total_blocks: int
    num_frames: int
    num_steps: int
    num_decode_steps: int
    num_decode_rows: int
    num_preemptions: int
    num_prefix_hits: int
    num_cached_rows: int
    starving: int
    num_runaways: tuple[int, ...]


class BaseTalkerEngine(ABC, Generic[OpenStream]):
    """Accepts requests. Every accepted one gets exactly one final chunk, also after a failure.

    Attributes:
        checkpoint, config: of the engine.
        step_times: of the latest steps.
        hands_out_beside_steps: whether listeners are called on a thread that no step waits for.
    """

    hands_out_beside_steps: ClassVar[bool]

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        checkpoint.config.check_codebooks()
        self.checkpoint, self.config = checkpoint, config
        self.step_times = StepTimes()
        self._changed = threading.Condition()
        self._open: dict[str, OpenStream] = {}
        self._room = Room(config.max_num_seqs, config.max_waiting_requests)  # for open requests, and those to come
        self._alive = False
        self._backpressure = AdmissionPause()

    @property
    def is_alive(self) -> bool:
        """True from start() until shutdown() or until the engine fails."""
        return self._alive

    @property
    def has_backpressure(self) -> bool:
        """Whether `apply_backpressure` keeps new requests waiting."""
        return self._backpressure.is_on

    @property
    def has_work(self) -> bool:
        """Whether the engine should step: requests are open, and nothing keeps all of them waiting."""
        return bool(self._open) and not self._backpressure.is_on and self.stats().starving < len(self._open)

    @abstractmethod
    def start(self) -> None:
        """Let the engine step."""

    @abstractmethod
    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the engine; every open request ends with an error."""

    @abstractmethod
    def stats(self) -> TalkerStats:
        """A snapshot, taken without stopping the engine; safe to call from any thread."""

    @abstractmethod
    def _accept(self, request: Request, listener: RequestListener) -> OpenStream:
        """Pass on a checked request; return its entry in `_open`. The lock is held."""

    @abstractmethod
    def _accept_text(self, text: FurtherText) -> None:
        """Pass on text of an open request. The lock is held."""

    @abstractmethod
    def _accept_cancel(self, stream_key: str, error: str) -> None:
        """Pass on that an open stream must end. The lock is held."""

    @abstractmethod
    def _accept_silence(self, silent: SilentStream) -> None:
        """Pass on the news of a stream that is open, or was. The lock is held."""

    @abstractmethod
    def _accept_backpressure(self) -> None:
        """Pass on that `_backpressure` has changed. The lock is held."""

    def apply_backpressure(self, until: float) -> None:
        """Let no new request begin before time.monotonic() is `until`; a time in the past lifts this. They wait as for a slot."""
        with self._changed:
            self._backpressure.until = until
            self._accept_backpressure()

    def reserve(self, stream_key: str, turn: Turn = DEFAULT_TURN) -> None:
        """Reserve a place for a request while its prompt is made; `submit` takes it, `release` gives it up.

        Raises:
            OverloadedError, EngineDeadError: as in `submit`.
        """
        with self._changed:
            self._enter(stream_key, turn)

    def release(self, stream_key: str, *, has_run: bool = False) -> None:
        """Give up a place of `reserve`; no effect if `submit` has taken it.

        Args:
            has_run: requests that shared the place have begun.
        """
        with self._changed:
            if stream_key not in self._open:
                self._room.leave(stream_key, has_run=has_run)

    def submit(self, request: Request, listener: RequestListener, *, place: str = "") -> None:
        """Accept `request`; `listener` gets its chunks, on a thread of the engine.

        Args:
            place: the key of a place of `reserve`. The request shares it and does not count, so it is not refused for overload.

        Raises:
            InvalidRequestError: text and frames do not fit the engine, a stream of this key is open, or there are no timestamps here.
            OverloadedError: too many requests are waiting.
            EngineDeadError: the engine has stopped.
        """
        self.check(request)
        with self._changed:
            if request.stream_key in self._open:
                raise InvalidRequestError("stream_key", f"{request.stream_key!r} is already open; give every request its own")
            self._enter(place or request.stream_key, request.turn)
            try:
                self._open[request.stream_key] = self._accept(request, listener)
            except BaseException:
                self._room.leave(request.stream_key, has_run=False)
                raise

    def feed(self, text: FurtherText) -> bool:
        """Give a request with `text_is_open` more of its text; False if it is not open (any more)."""
        with self._changed:
            is_open = text.stream_key in self._open
            if is_open:
                self._accept_text(text)
            return is_open

    def cancel(self, stream_key: str, error: str = "") -> None:
        """End a stream with finish reason `cancelled`, or with `error`; no effect if it is not open."""
        with self._changed:
            if stream_key in self._open:
                self._accept_cancel(stream_key, error)

    def end_silence(self, silent: SilentStream) -> None:
        """Stop a stream with audio that has run away, or speak it anew from its good frames; if it has just ended, only count it."""
        with self._changed:
            self._accept_silence(silent)

    def _enter(self, stream_key: str, turn: Turn) -> None:
        """Give a request its place, or refuse it. The lock must be held."""
        if not self._alive:
            raise EngineDeadError("the talker engine has stopped; restart the process")
        self._room.enter(stream_key, turn)

    def _forget(self, stream_key: str, *, has_run: bool) -> None:
        """Close a stream and free its place. The lock must be held."""
        del self._open[stream_key]
        self._room.leave(stream_key, has_run=has_run)

    def max_frames_behind(self, prompt: Prompt) -> int:
        """Frames that fit behind `prompt`; 0 or less if the prompt itself does not fit."""
        return self.config.max_model_len - len(prompt) + 1  # the last frame needs no input row of its own

    def max_frames(self, request: Request, num_text_tokens: int | None = None) -> int:
        """Frames after which `request` ends: its own limit or else a budget from its text, at most those that fit.

        Args:
            num_text_tokens: of its text so far; None: its prompt says.
        """
        tokens = request.prompt.num_text_tokens if num_text_tokens is None else num_text_tokens
        wanted = request.sampling.max_frames or FRAME_BUDGET_BASE + FRAME_BUDGET_PER_TOKEN * tokens
        return min(wanted, self.max_frames_behind(request.prompt))

    def _check_timestamps(self, request: Request) -> None:
        """Refuse a request for timestamps that this engine cannot give."""
        if request.delivery.timestamps is Timestamps.NONE:
            return
        if self.checkpoint.alignment is None:
            missing = f"there is no {ALIGNMENT_FILE} beside the weights, which says what heads follow the text"
            problem = f"{missing}; make it with scripts/calibrate_alignment.py, or leave timestamps out"
            raise InvalidRequestError("timestamps", f"word is not possible with this checkpoint: {problem}")
        if self.config.tensor_parallel_size > 1:
            problem = f"word is not possible with tensor_parallel_size {self.config.tensor_parallel_size}"
            raise InvalidRequestError("timestamps", f"{problem}, because ranks share the heads; leave timestamps out")
        rows = request.prompt.num_text_tokens + 1
        if rows > MAX_TEXT_ROWS:
            raise InvalidRequestError("text", f"has {rows - 1} tokens; with timestamps at most {MAX_TEXT_ROWS - 1} are allowed")

    def check(self, request: Request) -> None:
        """Refuse a prompt that does not fit, more frames than fit behind it, and timestamps that this engine cannot give.

        Raises:
            InvalidRequestError: as `submit` would.
        """
        self._check_timestamps(request)
        prompt, max_frames = request.prompt, request.sampling.max_frames
        num_rows = len(prompt) + len(prompt.trailing_text_ids)
        if num_rows > self.config.max_model_len:
            raise InvalidRequestError("text", f"takes {num_rows} rows; at most {self.config.max_model_len} (max_model_len) fit")
        room = self.max_frames_behind(prompt)
        if max_frames is not None and max_frames > room:
            raise InvalidRequestError("max_frames", f"{max_frames} is not allowed; at most {room} fit behind this prompt")
