"""TalkerEngine: the thread that admits requests, steps the whole batch and hands out chunks of codec frames.

Callers only touch the inbox; scheduler, runner and requests belong to the engine thread. Every accepted request gets
exactly one final chunk, whatever happens. On a GPU the next step is launched before the codes of the last one are read.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device, resolve_device, resolve_dtype
from engine_lib.errors import ConfigError, EngineDeadError, InvalidRequestError, OverloadedError
from engine_lib.prompt import Prompt
from engine_lib.talker.block_manager import BlockManager
from engine_lib.talker.request import FinishReason, Request, RequestStatus
from engine_lib.talker.runner import FrameResult, TalkerRunner
from engine_lib.talker.scheduler import Scheduler

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TalkerStats:
    """A snapshot for metrics and tests. Counters count since the start."""

    running: int
    waiting: int
    free_slots: int
    free_blocks: int
    total_blocks: int
    num_frames: int
    num_steps: int
    num_preemptions: int


class TalkerEngine:
    """Continuous batching of requests on one talker."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Load the weights and allocate all state.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
        """
        if config.tensor_parallel_size > 1:
            raise ConfigError(f"tensor_parallel_size: {config.tensor_parallel_size} is not available in this version; use 1")
        self.checkpoint, self.config = checkpoint, config
        device = resolve_device(config.device)
        with torch.inference_mode(), on_device(device):
            self.runner = TalkerRunner(checkpoint, config, device=device, dtype=resolve_dtype(config.dtype, device))
            self.runner.capture()
        block_manager = BlockManager(self.runner.num_blocks, config.kv_block_size)
        self.scheduler = Scheduler(
            block_manager,
            max_num_seqs=config.max_num_seqs,
            max_num_batched_tokens=min(config.max_num_batched_tokens, config.max_model_len),
        )
        # On a GPU one result stays unread while the next step runs; the CPU runs a launch at once, so waiting only delays audio.
        self._pipelined = device.type == "cuda"
        self._unread: deque[FrameResult] = deque()
        self._eos, self._codebook_size = checkpoint.config.talker.codec_eos_token_id, checkpoint.config.codec.codebook_size
        self._num_frames = self._num_steps = 0

        self._changed = threading.Condition()
        self._inbox: list[Request] = []
        self._cancelled: set[str] = set()
        self._open: dict[str, Request] = {}
        self._stopping = False
        self._alive = False
        self._thread = threading.Thread(target=self._run, name="talker-engine", daemon=True)

    # callers

    @property
    def is_alive(self) -> bool:
        """True from start() until shutdown() or until the engine thread fails."""
        return self._alive

    def start(self) -> None:
        """Start the engine thread."""
        self._alive = True
        self._thread.start()

    def submit(self, request: Request) -> None:
        """Accept `request`; its chunks follow on the engine thread.

        Raises:
            InvalidRequestError: text and frames do not fit the engine, or the id is that of an open request.
            OverloadedError: too many requests are waiting.
            EngineDeadError: the engine has stopped.
        """
        self._check_length(request)
        with self._changed:
            if not self._alive:
                raise EngineDeadError("the talker engine has stopped; restart the process")
            if request.request_id in self._open:
                raise InvalidRequestError("request_id", f"{request.request_id!r} is already open; give every request its own")
            limit = self.config.max_num_seqs + self.config.max_waiting_requests
            if len(self._open) >= limit:
                raise OverloadedError(
                    f"{len(self._open)} requests are open and at most {limit} are allowed "
                    f"({self.config.max_num_seqs} running, {self.config.max_waiting_requests} waiting); try again later"
                )
            self._open[request.request_id] = request
            self._inbox.append(request)
            self._changed.notify()

    def cancel(self, request_id: str) -> None:
        """End a request with finish reason `cancelled`; one that is not open is left alone."""
        with self._changed:
            if request_id in self._open:
                self._cancelled.add(request_id)
                self._changed.notify()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the thread; every open request ends with an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

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

    # engine thread

    def _run(self) -> None:
        reason = "the server is shutting down"
        try:
            with torch.inference_mode(), on_device(self.runner.device):
                while self._take_inbox():
                    self._step()
        except Exception as error:
            reason = f"the talker engine failed: {type(error).__name__}"
            logger.exception("the talker engine failed")
        finally:
            with self._changed:
                self._alive = False
            for request in list(self._open.values()):
                self._close(request, FinishReason.ERROR, reason)

    def _take_inbox(self) -> bool:
        """Wait for work; take in new and cancelled requests. False when the engine shall stop."""
        with self._changed:
            while not (self._stopping or self._inbox or self._cancelled or self._unread or self.scheduler.has_work):
                self._changed.wait()
            if self._stopping:
                return False
            arrived, self._inbox = self._inbox, []
            cancelled, self._cancelled = self._cancelled, set()
        for request in arrived:
            self.scheduler.add(request)
        for request_id in cancelled:
            if request_id in self._open:
                self._close(self._open[request_id], FinishReason.CANCELLED)
        return True

    def _step(self) -> None:
        """Launch one prefill and one decode step, then read what is due."""
        schedule = self.scheduler.schedule()
        for request in schedule.admitted:
            self.runner.admit(request)
        self.runner.update_block_tables(schedule.grown)

        # prefill
        if schedule.prefill:
            self._launched(self.runner.prefill(schedule.prefill))
            self.scheduler.prefilled(schedule.prefill)
            if not self._pipelined:
                self._read_unread(0)
        # decode
        if schedule.decode:
            self._launched(self.runner.decode(schedule.decode))
            self.scheduler.decoded(schedule.decode)
        self._num_steps += 1
        launched_anything = schedule.prefill or schedule.decode
        self._read_unread(1 if self._pipelined and launched_anything else 0)

    def _launched(self, result: FrameResult | None) -> None:
        if result is not None:
            self._unread.append(result)

    def _read_unread(self, keep: int) -> None:
        """Read results, oldest first, until `keep` are left."""
        while len(self._unread) > keep:
            self._read(self._unread.popleft())

    def _read(self, result: FrameResult) -> None:
        """Hand each frame of `result` to its request; end those that are done."""
        for request, num_preemptions, codes in zip(result.requests, result.num_preemptions, result.read(), strict=True):
            if request.status is RequestStatus.RUNNING and request.num_preemptions == num_preemptions:
                self._receive(request, codes)

    def _receive(self, request: Request, codes: npt.NDArray[np.int16]) -> None:
        if codes[0] == self._eos:
            self._close(request, FinishReason.STOP)
        elif codes.min() < 0 or codes.max() >= self._codebook_size:
            self.runner.erase(request.block_table)
            self._close(request, FinishReason.ERROR, "the talker computed a value that is not a number or not a code")
        else:
            self._num_frames += 1
            request.append_frame(codes)
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
