"""BaseTalkerEngine: what callers of a talker's engine see, wherever its steps run: who may come in, and what is open.

Two engines stand behind it: engine.TalkerEngine steps on a thread of this process, engine_process.TalkerEngineProcess in a process of
its own.
"""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError, InvalidRequestError, OverloadedError
from engine_lib.prompt import Prompt
from engine_lib.talker.chunking import ChunkGrowth, ChunkPolicy
from engine_lib.talker.request import Request
from engine_lib.talker.step_times import StepTimes


@dataclass(frozen=True)
class TalkerStats:
    """A snapshot for metrics and tests. Counters count since the start.

    Attributes:
        free_blocks: those that keep a prefix nobody uses now included.
        num_prefix_hits: requests, preempted ones each time they come back, that found their first rows in the prefix cache.
        num_cached_rows: rows they found.
    """

    running: int
    waiting: int
    free_slots: int
    free_blocks: int
    total_blocks: int
    num_frames: int
    num_steps: int
    num_preemptions: int
    num_prefix_hits: int
    num_cached_rows: int


class BaseTalkerEngine(ABC):
    """Accepts requests. Every accepted one gets exactly one final chunk, whatever happens.

    Attributes:
        checkpoint, config: what the engine runs.
        step_times: of the latest steps.
        hands_out_beside_steps: whether chunks are handed out by a thread that no step waits for.
    """

    hands_out_beside_steps: ClassVar[bool]

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        self.checkpoint, self.config = checkpoint, config
        self.step_times = StepTimes()
        self._changed = threading.Condition()
        self._open: dict[str, Request] = {}
        self._reserved: set[str] = set()  # keys of requests to come
        self._alive = False
        self._backpressure_until = 0.0  # of time.monotonic()

    @property
    def is_alive(self) -> bool:
        """True from start() until shutdown() or until the engine fails."""
        return self._alive

    @property
    def has_backpressure(self) -> bool:
        """Whether `apply_backpressure` keeps requests waiting that have not begun."""
        return time.monotonic() < self._backpressure_until

    @abstractmethod
    def start(self) -> None:
        """Let the engine step."""

    @abstractmethod
    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the engine; every open request ends with an error."""

    @abstractmethod
    def stats(self) -> TalkerStats:
        """What the engine holds; safe to call from any thread, taken without stopping it."""

    @abstractmethod
    def _accept(self, request: Request) -> None:
        """Pass on a request that has come in. The lock is held."""

    @abstractmethod
    def _accept_cancel(self, request_id: str) -> None:
        """Pass on that an open request shall end. The lock is held."""

    @abstractmethod
    def _accept_backpressure(self) -> None:
        """Pass on that `_backpressure_until` has changed. The lock is held."""

    def apply_backpressure(self, until: float) -> None:
        """Let no further request begin before `until`, of time.monotonic(); what is in the past lifts it. They wait as for a place."""
        with self._changed:
            self._backpressure_until = until
            self._accept_backpressure()

    def reserve(self, request_id: str) -> None:
        """Hold a place for a request whose prompt is still being made; `submit` takes it, `release` gives it up.

        Raises:
            OverloadedError, EngineDeadError: as in `submit`.
        """
        with self._changed:
            self._check_room()
            self._reserved.add(request_id)

    def release(self, request_id: str) -> None:
        """Give up a place held by `reserve`; one that `submit` has taken is left alone."""
        with self._changed:
            self._reserved.discard(request_id)

    def submit(self, request: Request) -> None:
        """Accept `request`; its chunks follow, on a thread of the engine's.

        Raises:
            InvalidRequestError: text and frames do not fit the engine, or the id is that of an open request.
            OverloadedError: too many requests are waiting.
            EngineDeadError: the engine has stopped.
        """
        self._check_length(request)
        with self._changed:
            if request.request_id in self._open:
                raise InvalidRequestError("request_id", f"{request.request_id!r} is already open; give every request its own")
            self._reserved.discard(request.request_id)
            self._check_room()
            self._open[request.request_id] = request
            self._accept(request)

    def cancel(self, request_id: str) -> None:
        """End a request with finish reason `cancelled`; one that is not open is left alone."""
        with self._changed:
            if request_id in self._open:
                self._accept_cancel(request_id)

    def chunk_growth(self, policy: ChunkPolicy) -> ChunkGrowth | None:
        """What `policy` means for a Request of this engine."""
        if policy is ChunkPolicy.FIXED:
            return None
        codec, config = self.checkpoint.config.codec, self.config
        return ChunkGrowth(
            frame_seconds=codec.samples_per_frame / codec.sample_rate,
            max_frames=config.adaptive_chunk_frames,
            min_streams=config.adaptive_chunk_streams,
        )

    def _check_room(self) -> None:
        """Refuse one request more than may be open, and every one once the engine has ended. The lock must be held."""
        if not self._alive:
            raise EngineDeadError("the talker engine has stopped; restart the process")
        limit, taken = self.config.max_num_seqs + self.config.max_waiting_requests, len(self._open) + len(self._reserved)
        if taken >= limit:
            raise OverloadedError(
                f"{taken} requests are open and at most {limit} are allowed "
                f"({self.config.max_num_seqs} running, {self.config.max_waiting_requests} waiting); try again later"
            )

    def max_frames_behind(self, prompt: Prompt) -> int:
        """Frames that fit behind `prompt`; 0 or less when the prompt itself does not."""
        return self.config.max_model_len - len(prompt) + 1  # the last frame needs no input row of its own

    def _check_length(self, request: Request) -> None:
        """Fit the default frame budget to the room there is; refuse what was asked for and cannot fit."""
        num_rows = len(request.prompt) + len(request.prompt.trailing_text_ids)
        if num_rows > self.config.max_model_len:
            raise InvalidRequestError("text", f"takes {num_rows} rows; at most {self.config.max_model_len} (max_model_len) fit")
        room = self.max_frames_behind(request.prompt)
        if request.sampling.max_frames is not None and request.max_frames > room:
            raise InvalidRequestError("max_frames", f"{request.max_frames} is not allowed; at most {room} fit behind this prompt")
        request.max_frames = min(request.max_frames, room)
