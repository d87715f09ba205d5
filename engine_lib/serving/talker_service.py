"""TalkerService: requests in, messages for the codec out. Everything the talker's shell does, without Triton's types.

`handle` runs on Triton's thread and returns once the request is queued or refused; chunks travel from the engine thread
through the OrderedSender to the server. Every accepted request ends with one message that has no frames, is final and
carries FINAL.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError
from engine_lib.prompt import PromptBuilder
from engine_lib.serving.backend import Reply, TritonBackend
from engine_lib.serving.errors import STATUS_CODES, status
from engine_lib.serving.message import AudioFormat, CodesMessage
from engine_lib.serving.parse import RequestParser
from engine_lib.serving.service import EngineService
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import CodesChunk, FinishReason, Request

FIRST_CODES_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass(frozen=True)
class _Stream:
    key: str
    reply: Reply
    audio_format: AudioFormat
    accepted_at: float


class TalkerService(EngineService):
    """The talker of one server."""

    def __init__(self, backend: TritonBackend, config: EngineConfig) -> None:
        """Load the checkpoint and start the engine.

        Raises:
            ConfigError, CheckpointError: the model must not load.
        """
        super().__init__(backend, config)
        checkpoint = Checkpoint(config.model_path)
        self._prompts = PromptBuilder(checkpoint, config.max_text_length)
        sampling = checkpoint.sampling_defaults()
        self._parser = RequestParser(kind=checkpoint.config.kind, sampling=sampling, chunk_frames=config.chunk_frames)
        self._engine = TalkerEngine(checkpoint, config)
        self._streams: dict[str, _Stream] = {}
        self._add_metrics()
        self._start(self._engine, self._streams, backend.ping)

    def handle(self, request: Any) -> None:
        """Queue one request of Triton's, or refuse it. A request with the input `cancel` stops the stream it names."""
        reply = self._backend.reply(request)
        try:
            tensors = self._backend.tensors(request)
            if "cancel" in tensors:
                self._engine.cancel(tensors["cancel"][0].decode("ascii", "replace"))
                reply.finish()
            else:
                self._accept(tensors, request.parameters(), reply)
        except Exception as error:
            code, message = status(error)
            self._refused.add(1, code)
            if code == "INTERNAL":
                self._log_failure(error)
            reply.fail(code, message)

    def _accept(self, tensors: dict[str, Any], parameters: str, reply: Reply) -> None:
        if self._lifecycle.is_draining:
            raise EngineDeadError("the server is shutting down; use another one")
        speech = self._parser.parse(tensors, parameters)
        prompt = self._prompts.build(
            text=speech.text,
            voice=speech.voice,
            language=speech.language,
            instruct=speech.instruct,
            non_streaming_mode=speech.non_streaming_mode,
        )
        stream = _Stream(uuid4().hex, reply, speech.audio_format, time.monotonic())
        self._streams[stream.key] = stream
        try:
            self._engine.submit(Request(stream.key, prompt, speech.sampling, speech.chunk_frames, partial(self._on_chunk, stream)))
        except Exception:
            del self._streams[stream.key]
            raise

    def _on_chunk(self, stream: _Stream, chunk: CodesChunk) -> None:
        """On the engine thread: count, and leave the rest to a sender thread."""
        if chunk.index == 0 and len(chunk.codes):
            self._first_codes.observe(time.monotonic() - stream.accepted_at)
        self._sender.put(stream.key, partial(self._send, stream, chunk))

    def _send(self, stream: _Stream, chunk: CodesChunk) -> None:
        message = CodesMessage(
            codes=chunk.codes,
            stream_key=stream.key,
            chunk_index=chunk.index,
            is_final=chunk.is_final,
            finish_reason=chunk.finish_reason,
            error=chunk.error,
            audio_format=stream.audio_format,
        )
        if chunk.is_final:
            self._finished.add(1, chunk.finish_reason)
            if chunk.error:
                self._backend.log.log_error(f"stream {stream.key} ended with an error: {chunk.error}")
        try:
            stream.reply.send(message.pack(), is_final=chunk.is_final)
        finally:
            if chunk.is_final:
                del self._streams[stream.key]

    def _add_metrics(self) -> None:
        metrics, stats = self._metrics, self._engine.stats
        reasons = [reason.value for reason in FinishReason]
        metrics.gauge("active_streams", "Streams whose last message has not been sent", lambda: len(self._streams))
        metrics.gauge("running_requests", "Requests the talker decodes together", lambda: stats().running)
        metrics.gauge("waiting_requests", "Requests that wait for a place in the talker's batch", lambda: stats().waiting)
        metrics.gauge("kv_blocks_free", "Free blocks of the talker's KV cache", lambda: stats().free_blocks)
        metrics.gauge("kv_blocks_total", "Blocks of the talker's KV cache", lambda: stats().total_blocks)
        metrics.total("preemptions_total", "Requests recomputed because the KV cache ran dry", lambda: stats().num_preemptions)
        self._first_codes = metrics.histogram(
            "time_to_first_codes_seconds", "From the arrival of a request to its first codec frame", FIRST_CODES_BUCKETS
        )
        metrics.total("frames_total", "Codec frames generated", lambda: stats().num_frames)
        self._finished = metrics.counter("finished_requests_total", "Accepted requests that ended, by finish reason", "reason", reasons)
        self._refused = metrics.counter("refused_requests_total", "Requests refused with an error, by status code", "code", STATUS_CODES)
