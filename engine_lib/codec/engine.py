"""CodecEngine: the thread that decodes the chunks of all streams and answers each of them once, in order.

Callers only touch the inbox. A stream opens with the chunk of index 0, holds one slot of the arena, and ends with its final
chunk, an error, `drop` or silence for longer than the idle limit.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.batcher import Piece, PlaybackQueue, next_cohort
from engine_lib.codec.runner import CodecRunner
from engine_lib.config import EngineConfig
from engine_lib.devices import resolve_device, resolve_dtype

logger = logging.getLogger(__name__)

MAX_PIECE_FRAMES = 64  # a longer chunk (a reference) is decoded in pieces, so that it cannot stall the others
_NO_AUDIO = np.empty(0, np.float32)


@dataclass(frozen=True)
class AudioChunk:
    """The answer to one CodecRequest.

    Attributes:
        audio: [frames * samples_per_frame] float32 in -1..1; empty for references, zero frames and errors.
        is_final: as in the request.
        error: "" or why there is no audio.
    """

    stream_key: str
    index: int
    audio: npt.NDArray[np.float32]
    is_final: bool
    error: str = ""


@dataclass(frozen=True)
class CodecRequest:
    """The next frames of one stream.

    Attributes:
        stream_key: unique key of the stream.
        index: 0, 1, 2.. within the stream; 0 opens it.
        codes: [frames, num_quantizers], any integer dtype; may have no frames.
        is_final: nothing follows; the slot is free after this chunk.
        on_audio: called once on the engine thread; must only hand the chunk on.
        reference: codes of a reference recording: they set the state and give no audio.
    """

    stream_key: str
    index: int
    codes: npt.NDArray[np.integer[Any]]
    is_final: bool
    on_audio: Callable[[AudioChunk], None]
    reference: bool = False


@dataclass(frozen=True)
class CodecStats:
    """A snapshot for metrics and tests. Counters count since the start."""

    open_streams: int
    free_slots: int
    queued_chunks: int
    num_steps: int
    num_frames: int


@dataclass
class _Stream(PlaybackQueue):
    """One open stream; `requests[0]` is the message its oldest piece belongs to."""

    requests: deque[CodecRequest] = field(default_factory=deque)
    audio: list[npt.NDArray[np.float32]] = field(default_factory=list)  # decoded pieces of requests[0]
    slot: int = -1
    last_message_at: float = 0.0


class CodecEngine:
    """Stateful decoding of many streams on one device."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Load the weights and allocate the arena.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
        """
        self.config, self._codec = config, checkpoint.config.codec
        device = resolve_device(config.device)
        with torch.inference_mode():
            self.runner = CodecRunner(
                checkpoint, num_slots=config.codec_slots, device=device, dtype=resolve_dtype(config.codec_dtype, device)
            )
        self._free_slots = deque(range(config.codec_slots))
        self._streams: dict[str, _Stream] = {}  # in the order they opened
        self._num_steps = self._num_frames = 0
        self._changed = threading.Condition()
        self._inbox: list[CodecRequest] = []
        self._dropped: set[str] = set()
        self._stopping = False
        self._alive = False
        self._stop_reason = "the codec engine has not been started"
        self._thread = threading.Thread(target=self._run, name="codec-engine", daemon=True)

    # callers

    @property
    def sample_rate(self) -> int:
        """Samples a second."""
        return self._codec.sample_rate

    @property
    def samples_per_frame(self) -> int:
        """Audio samples of one frame."""
        return self._codec.samples_per_frame

    @property
    def is_alive(self) -> bool:
        """True from start() until shutdown() or until the engine thread fails."""
        return self._alive

    def start(self) -> None:
        """Start the engine thread."""
        self._alive = True
        self._thread.start()

    def submit(self, request: CodecRequest) -> None:
        """Queue a chunk; its answer follows on the engine thread, or at once when the engine has stopped."""
        with self._changed:
            if self._alive:
                self._inbox.append(request)
                self._changed.notify()
                return
        _answer(request, error=self._stop_reason)

    def drop(self, stream_key: str) -> None:
        """End a stream and free its slot; its waiting chunks are answered with an error. An unknown key is left alone."""
        with self._changed:
            self._dropped.add(stream_key)
            self._changed.notify()

    def decode(self, codes: npt.NDArray[np.integer[Any]]) -> npt.NDArray[np.float32]:
        """Decode one whole utterance [frames, num_quantizers] on the calling thread, apart from all streams.

        Raises:
            ValueError: the codes have the wrong shape or are out of range.
        """
        error = self._codes_error(codes)
        if error:
            raise ValueError(error)
        if not len(codes):
            return _NO_AUDIO
        with torch.inference_mode():
            return self.runner.decode(codes.astype(np.int64))

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the thread; every chunk not yet decoded is answered with an error."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread.is_alive():
            self._thread.join(timeout)

    def stats(self) -> CodecStats:
        """What the engine holds now; safe to call from any thread, taken without stopping it."""
        streams = list(self._streams.values())
        return CodecStats(
            open_streams=len(streams),
            free_slots=len(self._free_slots),
            queued_chunks=sum(len(stream.requests) for stream in streams) + len(self._inbox),
            num_steps=self._num_steps,
            num_frames=self._num_frames,
        )

    # engine thread

    def _run(self) -> None:
        reason = "the server is shutting down"
        try:
            with torch.inference_mode():
                while self._take_inbox():
                    self._open_waiting_streams()
                    self._step()
        except Exception as error:
            reason = f"the codec engine failed: {type(error).__name__}"
            logger.exception("the codec engine failed")
        finally:
            with self._changed:
                self._alive, self._stop_reason = False, reason
                unanswered, self._inbox = self._inbox, []
            for key in list(self._streams):
                self._close(key, reason)
            for request in unanswered:
                _answer(request, error=reason)

    def _take_inbox(self) -> bool:
        """Wait for work; take in new chunks, drops and idle streams. False when the engine shall stop."""
        with self._changed:
            while not (self._stopping or self._inbox or self._dropped or self._has_work()):
                if not self._changed.wait(self._seconds_to_idle_limit()):
                    break
            if self._stopping:
                return False
            arrived, self._inbox = self._inbox, []
            dropped, self._dropped = self._dropped, set()
        now = time.monotonic()
        for request in arrived:
            self._take(request, now)
        for key in dropped & self._streams.keys():
            self._close(key, "the stream was dropped")
        for key, stream in list(self._streams.items()):
            if stream.slot >= 0 and not stream.requests and now - stream.last_message_at > self.config.codec_idle_timeout:
                self._close(key, "")
        return True

    def _has_work(self) -> bool:
        return any(stream.pieces and (stream.slot >= 0 or self._free_slots) for stream in self._streams.values())

    def _seconds_to_idle_limit(self) -> float | None:
        waiting = [stream.last_message_at for stream in self._streams.values() if not stream.requests]
        return max(min(waiting) + self.config.codec_idle_timeout - time.monotonic(), 0.01) if waiting else None

    def _take(self, request: CodecRequest, now: float) -> None:
        """Check one arrived chunk and queue its frames."""
        stream = self._streams.get(request.stream_key)
        if stream is None:
            if request.index != 0:
                _answer(request, error="the stream is not open: it failed, was dropped or was idle for too long")
                return
            stream = self._streams[request.stream_key] = _Stream()
        error = self._codes_error(request.codes)
        if error:
            stream.requests.append(request)
            self._close(request.stream_key, error)
            return
        stream.last_message_at = now
        stream.requests.append(request)
        codes = request.codes.astype(np.int64)
        pieces = [codes[start : start + MAX_PIECE_FRAMES] for start in range(0, len(codes), MAX_PIECE_FRAMES)]
        stream.pieces.extend(Piece(piece, is_last=i == len(pieces) - 1) for i, piece in enumerate(pieces))
        self._answer_empty(request.stream_key, stream)

    def _codes_error(self, codes: npt.NDArray[np.integer[Any]]) -> str:
        books, size = self._codec.num_quantizers, self._codec.codebook_size
        if codes.ndim != 2 or codes.shape[1] != books:
            return f"codes have shape {codes.shape}; [frames, {books}] expected"
        if codes.size and (codes.min() < 0 or codes.max() >= size):
            return f"a code is out of range; 0 to {size - 1} are allowed"
        return ""

    def _open_waiting_streams(self) -> None:
        """Give free slots to streams that wait for one, in the order they came."""
        opened = []
        for stream in self._streams.values():
            if not self._free_slots:
                break
            if stream.slot < 0 and stream.pieces:
                stream.slot = self._free_slots.popleft()
                opened.append(stream.slot)
        if opened:
            self.runner.reset(opened)

    def _step(self) -> None:
        """Decode one cohort and answer the chunks it completes."""
        keys = {id(stream): key for key, stream in self._streams.items()}
        cohort = next_cohort((stream for stream in self._streams.values() if stream.slot >= 0), self.config.codec_max_batch_size)
        if not cohort:
            return
        pieces = [stream.pieces.popleft() for stream in cohort]
        audio = self.runner.run([stream.slot for stream in cohort], np.stack([piece.codes for piece in pieces]))
        self._num_steps += 1
        self._num_frames += sum(len(piece.codes) for piece in pieces)
        finite = np.isfinite(audio).all(axis=1)
        now = time.monotonic()
        for stream, piece, samples, good in zip(cohort, pieces, audio, finite, strict=True):
            key = keys[id(stream)]
            if not good:
                self._close(key, "the codec computed a value that is not a number")
                continue
            stream.audio.append(samples)
            if piece.is_last:
                self._answer_oldest(key, stream, now)

    def _answer_oldest(self, key: str, stream: _Stream, now: float) -> None:
        """Answer the oldest chunk, whose pieces are all decoded, and those without frames behind it."""
        request = stream.requests.popleft()
        audio = _NO_AUDIO if request.reference else np.concatenate(stream.audio)
        stream.audio.clear()
        if len(audio):
            stream.started_at = now if stream.started_at is None else stream.started_at
            stream.seconds_sent += len(audio) / self.sample_rate
        self._finish_chunk(key, request, audio)
        self._answer_empty(key, stream)

    def _answer_empty(self, key: str, stream: _Stream) -> None:
        """Answer chunks without frames that have reached the front of the queue."""
        while stream.requests and not len(stream.requests[0].codes):
            self._finish_chunk(key, stream.requests.popleft(), _NO_AUDIO)

    def _finish_chunk(self, key: str, request: CodecRequest, audio: npt.NDArray[np.float32]) -> None:
        """Answer; a final chunk ends its stream first, so that whoever sees the answer finds the slot free."""
        if request.is_final:
            self._close(key, "the stream has ended")
        _answer(request, audio)

    def _close(self, key: str, error: str) -> None:
        """Free the stream's slot; chunks still waiting are answered with `error`."""
        stream = self._streams.pop(key)
        if stream.slot >= 0:
            self._free_slots.append(stream.slot)
        for request in stream.requests:
            _answer(request, error=error)
        stream.requests.clear()


def _answer(request: CodecRequest, audio: npt.NDArray[np.float32] = _NO_AUDIO, error: str = "") -> None:
    request.on_audio(AudioChunk(request.stream_key, request.index, audio, request.is_final, error))
