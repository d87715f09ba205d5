"""TalkerService: requests in, messages for the codec out. Everything the talker's shell does, without Triton's types.

`handle` runs on Triton's thread and returns once the request is queued or refused; chunks travel from the engine thread
through the OrderedSender to the server. Every accepted request ends with one message that has no frames, is final and
carries FINAL.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.backpressure import BACKPRESSURE_SECONDS
from engine_lib.config import EngineConfig
from engine_lib.delivery import Delivery
from engine_lib.devices import resolve_device
from engine_lib.errors import EngineDeadError, InvalidRequestError
from engine_lib.process.latency import LatencyWindow
from engine_lib.prompt import PromptBuilder
from engine_lib.serving.backend import Reply, TritonBackend
from engine_lib.serving.errors import STATUS_CODES, status
from engine_lib.serving.message import CodesMessage, new_stream_key
from engine_lib.serving.parse import Reference, RequestParser, SpeechRequest
from engine_lib.serving.request_values import RequestValues
from engine_lib.serving.request_voices import RequestVoices
from engine_lib.serving.served import served_checkpoints
from engine_lib.serving.service import SHUTDOWN_SECONDS, EngineService
from engine_lib.serving.warm_up import warm_up_talker
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.isolation.remote_engine import RemoteTalkerEngine
from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener
from engine_lib.voices.clone_prompt import VoiceClonePromptItem

FIRST_CODES_BUCKETS = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
MICROSECONDS = 1_000_000  # in a second
SENDER_THREADS = 2  # its messages are small; each thread more takes the interpreter lock from those that accept requests


@dataclass(frozen=True)
class _Stream:
    key: str
    reply: Reply
    speech: SpeechRequest
    arrived_at: float
    deadline: float | None


class TalkerService(EngineService):
    """The talker of one server."""

    def __init__(self, backend: TritonBackend, config: EngineConfig, args: Mapping[str, str]) -> None:
        """Load the checkpoint and start the engine. `args`: what the Python backend passes to `initialize`.

        Raises:
            Qwen3TTSError: the model must not load.
        """
        super().__init__(backend, config, sender_threads=SENDER_THREADS)
        checkpoint = Checkpoint(config.model_path)
        self._prompts = PromptBuilder(checkpoint, config.max_text_length)
        sampling = checkpoint.sampling_defaults()
        served = served_checkpoints(args, checkpoint.config, config.model_path)
        self._parser = RequestParser(
            kind=checkpoint.config.kind,
            sampling=sampling,
            delivery=Delivery.default(config),
            max_text_length=config.max_text_length,
            max_reference_seconds=config.reference_max_seconds,
            served=served,
        )
        self._model_path = config.model_path
        self._voices = RequestVoices(checkpoint, config, served)
        self._engine = _talker_engine(checkpoint, config)
        self._streams: dict[str, _Stream] = {}
        self._accept_times, self._first_codes_times = LatencyWindow(), LatencyWindow()
        self._start(self._engine, lambda: warm_up_talker(self._engine, self._prompts, self._sender))
        self._add_metrics()
        self._watch(self._engine, self._streams, backend.ping)

    def handle(self, request: Any) -> None:
        """Queue one request of Triton's, or refuse it.

        Control requests: the input `cancel` names a stream to stop; `hold` says for how many seconds none shall begin; `store_voice`
        (JSON: name, consent) stores the voice of the reference beside it.
        """
        arrived_at = time.monotonic()
        reply = self._backend.reply(request)
        try:
            tensors = self._backend.tensors(request)
            if "cancel" in tensors:
                self._engine.cancel(tensors["cancel"][0].decode("ascii", "replace"))
                reply.finish()
            elif "hold" in tensors:
                self._hold(float(tensors["hold"][0]))
                reply.finish()
            elif "store_voice" in tensors:
                self._store_voice(tensors, request.parameters(), reply)
            else:
                self._accept(tensors, request.parameters(), request.timeout(), reply, arrived_at)
        except Exception as error:
            self._refuse(reply, error)

    def _hold(self, seconds: float) -> None:
        # Whoever can ask for streams can ask for this, so it must not last.
        if not 0 <= seconds <= BACKPRESSURE_SECONDS:
            raise InvalidRequestError("hold", f"{seconds:g} is not allowed; give 0 to {BACKPRESSURE_SECONDS:g} seconds")
        self._engine.apply_backpressure(time.monotonic() + seconds)

    def _accept(self, tensors: dict[str, Any], parameters: str, timeout: int, reply: Reply, arrived_at: float) -> None:
        if self._lifecycle.is_draining:
            raise EngineDeadError("the server is shutting down; use another one")
        speech = self._parser.parse(tensors, parameters)
        voice = self._voices.of_request(speech)
        deadline = arrived_at + timeout / MICROSECONDS if timeout else None
        # Without the recording, which nobody needs once it is encoded.
        stream = _Stream(new_stream_key(self._backend.name), reply, replace(speech, reference=None), arrived_at, deadline)
        self._streams[stream.key] = stream
        try:
            if isinstance(voice, Reference):
                self._prompts.check(text=speech.text, language=speech.language, instruct=speech.instruct)
                self._engine.reserve(stream.key)
                self._voices.encode(voice).add_done_callback(partial(self._encoded, stream))
            else:
                self._submit(stream, voice)
        except Exception:
            del self._streams[stream.key]
            raise

    def _encoded(self, stream: _Stream, voice: Future[VoiceClonePromptItem]) -> None:
        """On the encoder's thread: leave the rest to a sender thread."""
        self._sender.put(stream.key, partial(self._submit_encoded, stream, voice))

    def _submit_encoded(self, stream: _Stream, voice: Future[VoiceClonePromptItem]) -> None:
        """Queue a request whose voice has been encoded, or refuse it: nothing has been answered yet."""
        try:
            self._submit(stream, voice.result())
        except Exception as error:
            self._engine.release(stream.key)
            del self._streams[stream.key]
            self._refuse(stream.reply, error)

    def _submit(self, stream: _Stream, voice: VoiceClonePromptItem | None) -> None:
        """Queue the request of `stream`.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as PromptBuilder.build and TalkerEngine.submit.
        """
        speech = stream.speech
        prompt = self._prompts.build(
            text=speech.text,
            voice=None if voice else speech.voice,
            language=speech.language,
            instruct=speech.instruct,
            non_streaming_mode=speech.non_streaming_mode,
            voice_prompt=voice,
        )
        request = Request(
            stream.key, prompt, speech.sampling, speech.delivery, stream.deadline, announce_start=prompt.reference_codes is not None
        )
        self._engine.submit(request, _StreamListener(self, stream, prompt.reference_codes))
        self._accept_times.add(time.monotonic() - stream.arrived_at)

    def _store_voice(self, tensors: dict[str, Any], parameters: str, reply: Reply) -> None:
        """Encode the reference of a control request and store its voice; `reply` is answered then. Counts like a waiting request."""
        values = RequestValues(tensors, parameters)
        order = values.json_object("store_voice")
        name, consent = (str(order.get(field) or "") for field in ("name", "consent"))
        store, reference = self._voices.store(), self._parser.parse_reference(tensors, parameters)
        store.check_addition(name, consent)
        key = new_stream_key(self._backend.name)
        self._engine.reserve(key)

        def add(voice: Future[VoiceClonePromptItem]) -> None:
            try:
                store.add(
                    name,
                    voice.result(),
                    consent=consent,
                    reference_seconds=reference.seconds,
                    reference_sample_rate=reference.sample_rate,
                    made_by=Path(self._model_path).name,
                )
            except Exception as error:
                self._refuse(reply, error)
            else:
                reply.finish()
            finally:
                self._engine.release(key)

        self._voices.encode(reference).add_done_callback(lambda voice: self._sender.put(key, partial(add, voice)))

    def _refuse(self, reply: Reply, error: Exception) -> None:
        code, message = status(error)
        self._refused.add(1, code)
        if code == "INTERNAL":
            self._log_failure(error)
        reply.fail(code, message)

    def _on_start(self, stream: _Stream, reference: npt.NDArray[np.int16]) -> None:
        """On an engine's thread: let the codec take in the reference while the talker takes in the prompt."""
        message = CodesMessage(CodesChunk(stream.key, 0, reference, is_reference=True), stream.speech.delivery)
        self._sender.put(stream.key, partial(self._send, stream.reply, message.pack(), is_final=False))

    def _on_chunk(self, stream: _Stream, may_overtake: bool, chunk: CodesChunk) -> None:
        """On an engine's thread: count, and leave the rest to a sender thread; a first chunk goes ahead of others' if it `may_overtake`.

        It may not where the reference of its own stream goes before it. That of a lone stream is sent at once where no step waits for it.
        """
        if chunk.index == 0 and len(chunk.codes):
            seconds = time.monotonic() - stream.arrived_at
            self._first_codes.observe(seconds)
            self._first_codes_times.add(seconds)
        is_urgent = may_overtake and chunk.index == 0 and not chunk.is_final
        if is_urgent and self._engine.hands_out_beside_steps and len(self._streams) == 1:
            self._send_chunk(stream, chunk)
        else:
            self._sender.put(stream.key, partial(self._send_chunk, stream, chunk), urgent=is_urgent)

    def _send_chunk(self, stream: _Stream, chunk: CodesChunk) -> None:
        message = CodesMessage(chunk, stream.speech.delivery)
        if chunk.is_final:
            self._finished.add(1, chunk.finish_reason)
            if chunk.error:
                self._backend.log.log_error(f"stream {stream.key} ended with an error: {chunk.error}")
        try:
            self._send(stream.reply, message.pack(), is_final=chunk.is_final)
        finally:
            if chunk.is_final:
                del self._streams[stream.key]

    def shutdown(self) -> None:
        """End every open stream, the voices, the engine and all threads, within a few seconds."""
        self._voices.shutdown(SHUTDOWN_SECONDS)
        super().shutdown()

    def _add_metrics(self) -> None:
        metrics, stats = self._metrics, self._engine.stats
        self._voices.add_metrics(metrics)
        reasons = [reason.value for reason in FinishReason]
        metrics.gauge("active_streams", "Streams whose last message has not been sent", lambda: len(self._streams))
        metrics.gauge("running_requests", "Requests the talker decodes together", lambda: stats().running)
        metrics.gauge("waiting_requests", "Requests that wait for a place in the talker's batch", lambda: stats().waiting)
        metrics.gauge("requests_held", "1 while requests wait for the codec to catch up", lambda: self._engine.has_backpressure)
        metrics.gauge("kv_blocks_free", "Free blocks of the talker's KV cache", lambda: stats().free_blocks)
        metrics.gauge("kv_blocks_total", "Blocks of the talker's KV cache", lambda: stats().total_blocks)
        metrics.total("preemptions_total", "Requests recomputed because the KV cache ran dry", lambda: stats().num_preemptions)
        metrics.total("prefix_cache_hits_total", "Requests whose first rows were in the prefix cache", lambda: stats().num_prefix_hits)
        metrics.total("prefix_cached_rows_total", "Prompt rows taken from the prefix cache", lambda: stats().num_cached_rows)
        self._first_codes = metrics.histogram(
            "time_to_first_codes_seconds", "From the arrival of a request to its first codec frame", FIRST_CODES_BUCKETS
        )
        metrics.quantiles("accept_seconds", "From the arrival of a request until the engine has it", self._accept_times)
        metrics.quantiles("first_codes_seconds", "From the arrival of a request to its first codec frame", self._first_codes_times)
        metrics.quantiles("step_interval_seconds", "Time from one decode step of the talker to the next", self._engine.step_times.interval)
        metrics.quantiles("step_host_seconds", "Work of the host in a decode step of the talker", self._engine.step_times.host)
        metrics.total("frames_total", "Codec frames generated", lambda: stats().num_frames)
        self._finished = metrics.counter("finished_requests_total", "Accepted requests that ended, by finish reason", "reason", reasons)
        self._refused = metrics.counter("refused_requests_total", "Requests refused with an error, by status code", "code", STATUS_CODES)


class _StreamListener(RequestListener):
    """Hears of one stream for the service."""

    def __init__(self, service: TalkerService, stream: _Stream, reference: npt.NDArray[np.int16] | None) -> None:
        self._service, self._stream, self._reference = service, stream, reference

    def on_start(self) -> None:
        """See RequestListener."""
        if self._reference is not None:
            self._service._on_start(self._stream, self._reference)

    def on_chunk(self, chunk: CodesChunk) -> None:
        """See RequestListener."""
        self._service._on_chunk(self._stream, self._reference is None, chunk)


def _talker_engine(checkpoint: Checkpoint, config: EngineConfig) -> BaseTalkerEngine[Any]:
    """Load the engine where `talker_isolation` wants it."""
    own_process = {"process": True, "thread": False, "auto": resolve_device(config.device).type == "cuda"}[config.talker_isolation]
    return RemoteTalkerEngine(checkpoint, config) if own_process else TalkerEngine(checkpoint, config)
