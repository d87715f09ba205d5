"""CodecService: messages of the talker in, audio out, without Triton's types.

Every message gets exactly one answer with FINAL, even if its client has gone or its audio failed: a dropped message leaks the whole
ensemble request. FINAL alone, which no client sees, answers a reference, a question, and a chunk with samples that wait: in the audio
chain of its stream, or because they may be the silence of a stream that has run away. What still waits at the end goes out ahead of
the last answer, without FINAL.

A stream that must stop early is stopped at its source. The codec asks the talker to cancel it and answers the messages that still
come; the talker's final message ends it like any other.
"""

from __future__ import annotations

import json
import logging
import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import fields
from functools import partial
from math import ceil, inf
from typing import Any

from msgspec.structs import replace

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.base_engine import BaseCodecEngine
from engine_lib.codec.engine import CodecEngine
from engine_lib.codec.isolation.remote_engine import RemoteCodecEngine
from engine_lib.codec.lines import DecodedLines
from engine_lib.codec.request import ANEW, NO_AUDIO, AudioChunk, CodecRequest
from engine_lib.config import EngineConfig
from engine_lib.delivery import OnRunaway, Timestamps
from engine_lib.devices import limit_gpu_share
from engine_lib.errors import InvalidRequestError
from engine_lib.serving.backend import Reply, Tensors, TritonBackend, request_name
from engine_lib.serving.codec_metrics import CodecMetrics
from engine_lib.serving.codes_channel import CLAIMED_FROM_STREAMS, CodesInlet
from engine_lib.serving.message import AudioAnswer, CodesMessage, talker_of
from engine_lib.serving.metrics import Counter
from engine_lib.serving.open_stream import OpenStream, Source
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.progress import Progress
from engine_lib.serving.service import SHUTDOWN_SECONDS, EngineService, has_own_process
from engine_lib.serving.stream_audio import StreamAudio
from engine_lib.serving.tracing import Span
from engine_lib.serving.warm_up import warm_up_codec
from engine_lib.speech.audio.loudness import VoiceLoudness
from engine_lib.speech.heard import HeardPiece, HeardStream, Take
from engine_lib.speech.runaway import Audio
from engine_lib.speech.script import line_key, stream_of
from engine_lib.speech.stream_words import compact_json
from engine_lib.speech.words import TimedWord
from engine_lib.talker.request import CodesChunk, FinishReason

logger = logging.getLogger(__name__)

MAX_REFERENCE_SECONDS: float = next(spec.metadata["maximum"] for spec in fields(EngineConfig) if spec.name == "reference_max_seconds")
# A client of the talker can send its messages to the codec, where each stream of them takes a slot. It cannot keep them for later.
MAX_AGE_SECONDS = 60.0
WELL_ENDED = (FinishReason.STOP.value, FinishReason.LENGTH.value)
SENDER_THREADS = 4  # a send waits for the server most of its time, and every chunk has one

Heard = list[tuple[CodesMessage, AudioAnswer]]  # answers before the audio chain, each with the message that it came with


class CodecService(EngineService):
    """The codec decoder of one server."""

    _engine: BaseCodecEngine

    def __init__(self, backend: TritonBackend, config: EngineConfig) -> None:
        """Load the codec of the checkpoint and start the engine.

        Raises:
            Qwen3TTSError: the model must not load.
        """
        super().__init__(backend, config, sender_threads=SENDER_THREADS)
        # In float32 the codec computes with torch's products, which a share may break (devices.check_products).
        if config.codec_device in ("", config.device) and config.codec_dtype != "float32":
            limit_gpu_share(config.codec_gpu_share)
        own_process = has_own_process(config.codec_isolation, config.codec_device or config.device)
        engine_class = RemoteCodecEngine if own_process else CodecEngine
        self._engine = engine_class(Checkpoint(config.model_path), config, self._slow_talkers, self._forget)
        # The most that any server can have made, because a stored voice may be older than this server's options.
        self._max_reference_frames = ceil(MAX_REFERENCE_SECONDS * self._engine.sample_rate / self._engine.samples_per_frame)
        self._voice_loudness = VoiceLoudness()
        self._streams: dict[str, OpenStream] = {}
        self._controller = OrderedSender("codec-control", 1, backend.log_failure)
        self._slowed_talkers: set[str] = set()
        self._claimed_from_streams = CLAIMED_FROM_STREAMS.get(config.codes_channel, inf)
        self._intake = threading.Lock()  # messages come from Triton and from talkers
        self._inlet = CodesInlet(backend.secret, self._take_direct, self._give_back, self._lose)
        with self._started():
            warm_up_codec(self._engine, self._sender)
        self._counts = CodecMetrics(self._metrics, self._engine, self._streams)
        stats = self._engine.stats
        self._watch(self._streams, Progress(lambda: stats().queued_chunks > 0, lambda: stats().num_steps))

    def handle(self, request: Any) -> None:
        """Queue one message for decoding."""
        arrived_at = time.monotonic()
        reply = self._backend.reply(request)
        try:
            message = CodesMessage.unpack(self._backend.tensors(request), self._backend.secret, self._max_reference_frames)
        except ValueError as error:
            self._backend.forgeries.add(1)
            reply.refuse(InvalidRequestError("header", f"is not a message of the talker ({error})"))
            return
        with self._intake:
            self._take(message, reply, arrived_at)

    def _take(self, message: CodesMessage, reply: Reply, arrived_at: float) -> None:
        """Queue a message that has come through Triton."""
        chunk = message.chunk
        stream = self._streams.get(chunk.stream_key)
        if message.is_question:
            if arrived_at - message.sent_at <= MAX_AGE_SECONDS:
                self._engine.keep_open(stream.present_key if stream else chunk.stream_key)
            self._sender.put(chunk.stream_key, partial(self._answer_question, chunk.stream_key, reply))
            return
        # Of a claimed stream later messages may wait for this one.
        is_old = stream.order.has_come(message.place) if stream and stream.claimed_from else arrived_at - message.sent_at > MAX_AGE_SECONDS
        if is_old:
            too_old = AudioChunk(chunk.stream_key, chunk.index, NO_AUDIO, chunk.is_final, "the message is too old")
            self._sender.put(chunk.stream_key, partial(self._answer, message, reply, None, too_old))
            return
        stream = stream or self._open(message)
        in_order = stream.in_order(message, reply)
        is_busy = len(self._streams) >= self._claimed_from_streams
        if is_busy and stream.may_be_claimed(message) and self._inlet.claim(message.channel, chunk.stream_key):
            stream.claim(message, reply)
        for due, its_reply in in_order:
            self._decode(stream, due, its_reply, arrived_at)

    def _take_direct(self, tensors: Tensors) -> None:
        """On a talker's thread: queue a message that has come past Triton."""
        arrived_at = time.monotonic()
        try:
            message = CodesMessage.unpack(tensors, self._backend.secret)
        except ValueError:
            self._backend.forgeries.add(1)
            return
        with self._intake:
            stream = self._streams.get(message.chunk.stream_key)
            if stream is None or stream.held is None or not stream.claimed_from:
                return
            self._counts.direct_messages.add(1)
            for due, its_reply in stream.in_order(message, stream.held):
                self._decode(stream, due, its_reply, arrived_at)

    def _give_back(self, stream_key: str) -> None:
        """On a talker's thread: a stream had ended when it was claimed, so its messages come through Triton alone."""
        with self._intake:
            if (stream := self._streams.get(stream_key)) is not None and stream.claimed_from:
                for message, reply in stream.give_back():
                    self._decode(stream, message, reply, time.monotonic())
                self._sender.put(stream_key, stream.let_go)

    def _lose(self, address: str) -> None:
        """On its thread: a talker sends nothing past Triton any more, so the streams claimed from it cannot go on."""
        with self._intake:
            lost = [(key, stream) for key, stream in list(self._streams.items()) if stream.claimed_from == address]
            for stream_key, stream in lost:
                stream.claimed_from, stream.error = "", "the talker's process no longer sends its codes"
                self._cancel(stream_key, self._counts.failures)
                self._sender.put(stream_key, stream.release)
                for message, reply in stream.order.rest():
                    self._decode(stream, message, reply, time.monotonic())

    def _decode(self, stream: OpenStream, message: CodesMessage, reply: Reply, arrived_at: float) -> None:
        chunk, part = message.chunk, message.part
        starts_over = chunk.is_reference and (chunk if part is None else part).index > 0
        if starts_over and part is None:
            stream.speak_anew(self._engine, chunk.codes[:0])
        take = stream.heard.take(0 if part is None else part.line, is_anew=starts_over)
        # A stream's first audio must not wait behind a question.
        is_asked = reply is not stream.held and not chunk.is_final and not _is_first_frame(chunk)
        if is_asked and stream.is_question_due(arrived_at, len(self._streams)):
            # The question blocks on the server while the engine decodes; on one worker it cannot come after the answer.
            self._sender.put(chunk.stream_key, partial(self._cancel_if_client_gone, chunk, reply))
        answer = partial(self._answer_later, message, reply, arrived_at, take)
        codec_request = CodecRequest(stream.engine_key, chunk.index, chunk.codes, chunk.is_final, answer, chunk.is_reference)
        if part is None:
            self._engine.submit(codec_request)
        else:
            stream.lines = stream.lines or DecodedLines(self._engine, chunk.stream_key)
            stream.lines.submit(codec_request, part.line, part.index, part.silence_ms)

    def _open(self, message: CodesMessage) -> OpenStream:
        engine, key, delivery = self._engine, message.chunk.stream_key, message.delivery
        is_watched = delivery.on_runaway is not OnRunaway.OFF
        heard = HeardStream[Source](engine.sample_rate, engine.samples_per_frame, is_watched=is_watched)
        stream = self._streams[key] = OpenStream(key, heard, is_sparse=delivery.sparse_answers)
        return stream

    def shutdown(self) -> None:
        """Answer the queued messages, then end the engine and all threads, within a few seconds."""
        self._inlet.close(SHUTDOWN_SECONDS)
        super().shutdown()
        self._controller.close(SHUTDOWN_SECONDS)

    def _answer_later(self, message: CodesMessage, reply: Reply, arrived_at: float, take: Take, chunk: AudioChunk) -> None:
        """On the engine's thread: leave the answer to a sender thread; send a lone stream's first frame at once: no other stream waits."""
        decoded_at = time.monotonic()
        if message.chunk.index == 0 and len(chunk.audio):
            self._counts.first_audio_times.add(decoded_at - arrived_at)
        is_first_frame = _is_first_frame(message.chunk)
        if is_first_frame and len(self._streams) == 1 and message.delivery.audio.is_neutral and not reply.is_held:
            self._answer(message, reply, take, chunk)
        else:
            self._sender.put(message.chunk.stream_key, partial(self._answer, message, reply, take, chunk), urgent=is_first_frame)
        if reply.is_traced:
            numbers = {"chunk_index": chunk.index, "frames": len(message.chunk.codes)}
            span = Span("decoding", arrived_at, decoded_at, numbers, bool(chunk.error))
            self._sender.put(message.chunk.stream_key, partial(reply.trace, span))

    def _answer(self, message: CodesMessage, reply: Reply, take: Take | None, chunk: AudioChunk) -> None:
        """Send what the client hears now that a message is decoded. A defect of this code ends the stream, and no other."""
        stream = self._streams.get(message.chunk.stream_key)
        try:
            self._send_heard(message, reply, take, chunk)
        except Exception as error:
            self._backend.log_failure(error, reply.request_id)
            problem = f"the codec's model failed: {type(error).__name__}"
            if stream is not None:
                stream.error = stream.error or problem
                self._cancel(message.chunk.stream_key, self._counts.failures)
            with suppress(Exception):  # it has been answered already
                if message.chunk.is_final:
                    answer = self._last_answer(message, problem)
                    self._send(reply, answer if stream is None else stream.numbered([answer])[0], stream, is_final=True)
                else:
                    reply.finish()

    def _send_heard(self, message: CodesMessage, reply: Reply, take: Take | None, chunk: AudioChunk) -> None:
        """FINAL goes with the last answer, or alone."""
        codes = message.chunk
        if codes.is_reference:  # if it failed, the chunks behind it fail too, and their answers say so
            reply.finish()
            return
        stream = self._streams.get(codes.stream_key)
        problem = chunk.error or (stream.error if stream is not None else "")
        if codes.is_final:
            self._streams.pop(codes.stream_key, None)
            if stream is not None:
                stream.release()
            if problem:
                logger.error("%s, stream %s: its audio failed: %s", request_name(reply.request_id), codes.stream_key, problem)
        elif chunk.error:
            self._cancel(codes.stream_key, self._counts.failures)
        self._counts.audio_seconds.add(len(chunk.audio) / self._engine.sample_rate)
        if stream is None or take is None:
            self._send(reply, self._last_answer(message, problem), None, is_final=True)
            return
        if codes.is_final:
            heard = self._heard_at_the_end(stream, message, take, problem)
        else:
            heard = self._heard(stream, message, take, chunk.audio)
        answers = self._through_chain(stream, message, heard)
        for one in answers[:-1]:
            self._send(reply, one, stream, is_final=False)
        if answers:
            self._send(reply, answers[-1], stream, is_final=True)
        else:
            reply.finish()

    def _last_answer(self, message: CodesMessage, problem: str) -> AudioAnswer:
        """The answer to a final message, which says why the stream has ended; `problem` is why its audio failed, "" if it did not."""
        codes = message.chunk
        reason, error = (FinishReason.ERROR.value, problem) if problem and codes.is_final else (codes.finish_reason, codes.error)
        answer = self._audio_answer(message, metadata=codes.metadata)
        return replace(answer, is_final=codes.is_final, finish_reason=reason, error=error)

    def _heard_at_the_end(self, stream: OpenStream, message: CodesMessage, take: Take, problem: str) -> Heard:
        """What is left of a stream, then its last answer."""
        last, (told, words) = self._last_answer(message, problem), _told(message.chunk)
        pieces, left = stream.heard.end(take, words, is_complete=last.finish_reason in WELL_ENDED)
        reason, told = stream.heard.ending(last.finish_reason, told)
        return [*self._of_pieces(pieces), (message, replace(last, finish_reason=reason, metadata=_metadata(told, left)))]

    def _heard(self, stream: OpenStream, message: CodesMessage, take: Take, audio: Audio) -> Heard:
        """What is heard now that there is this audio; if a take has run away with it, the talker is told."""
        told, words = _told(message.chunk)
        had_run_away = take.gate is not None and take.gate.has_run_away
        is_pause = message.part is not None and not len(message.chunk.codes)
        pieces = stream.heard.heard(take, audio, (message, told), words, is_pause=is_pause)
        if take.gate is not None and take.gate.has_run_away and not had_run_away:
            stream_key = message.chunk.stream_key
            key = stream_key if message.part is None else line_key(stream_key, message.part.line)
            self._end_silence(key, take.gate.num_good_frames)
        return self._of_pieces(pieces)

    def _of_pieces(self, pieces: Iterable[HeardPiece[Source]]) -> Heard:
        """The pieces as answers, each with the message that it came with."""
        heard: Heard = []
        for piece in pieces:
            message, told = piece.source
            heard.append((message, self._audio_answer(message, piece.audio, _metadata(told, piece.words))))
        return heard

    def _audio_answer(self, message: CodesMessage, audio: Audio = NO_AUDIO, metadata: str = "") -> AudioAnswer:
        """One that is not the last, to be numbered."""
        return AudioAnswer(
            audio=audio,
            sample_rate=self._engine.sample_rate,
            index=message.chunk.index,
            is_final=False,
            finish_reason="",
            error="",
            audio_format=message.delivery.audio_format,
            metadata=metadata,
        )

    def _through_chain(self, stream: OpenStream, message: CodesMessage, heard: Heard) -> list[AudioAnswer]:
        """The answers once their samples have gone through the stream's audio chain, if its client asks for what that does."""
        answers: list[AudioAnswer] = []
        for source, answer in heard:
            settings = source.delivery.audio
            # A later line of a script may need a chain, which tells the times of words only of what has gone through it.
            is_timed_script = source.part is not None and source.delivery.timestamps is not Timestamps.NONE
            if stream.audio is None and settings.is_neutral and not is_timed_script:
                answers.append(answer)
                continue
            stream.audio = stream.audio or StreamAudio(settings, self._engine.sample_rate, self._voice_loudness)
            answers += stream.audio.answers(answer, settings, source.part)
        if stream.audio is not None and stream.audio.has_failed and not message.chunk.is_final:
            self._cancel(message.chunk.stream_key, self._counts.failures)
        if stream.audio is not None and message.chunk.is_final:
            self._counts.clipped_samples.add(stream.audio.clipped_samples)
        return stream.numbered(answers)

    def _end_silence(self, key: str, num_good_frames: int) -> None:
        """`key`: the talker's own of a stream or a line."""
        self._controller.put(stream_of(key), partial(self._backend.end_silence, talker_of(key), key, num_good_frames))

    def _send(self, reply: Reply, answer: AudioAnswer, stream: OpenStream | None, *, is_final: bool) -> None:
        reply.send(answer.pack() if stream is None else stream.packed(answer), is_final=is_final)
        self._counts.playback.send(None if stream is None else stream.playback, len(answer.audio) / answer.sample_rate, time.monotonic())

    def _answer_question(self, stream_key: str, reply: Reply) -> None:
        """Tell the talker if the client of a stream that sends nothing has gone. FINAL alone reaches no client."""
        stream = self._streams.get(stream_key)
        if not (stream and stream.is_cancelled) and reply.is_cancelled():
            if stream is not None:
                stream.is_cancelled = True
            self._counts.client_cancels.add(1)
            self._controller.put(stream_key, partial(self._backend.cancel_stream, talker_of(stream_key), stream_key))
        reply.finish()

    def _cancel_if_client_gone(self, chunk: CodesChunk, reply: Reply) -> None:
        stream = self._streams.get(chunk.stream_key)
        if not (stream and stream.is_cancelled) and reply.is_cancelled():
            self._cancel(chunk.stream_key, self._counts.client_cancels)

    def _cancel(self, stream_key: str, counter: Counter) -> None:
        """Ask the talker, once, to end the stream."""
        stream = self._streams.get(stream_key)
        if stream is not None and not stream.is_cancelled:
            stream.is_cancelled = True
            counter.add(1)
            self._controller.put(stream_key, partial(self._backend.cancel_stream, talker_of(stream_key), stream_key))

    def _slow_talkers(self, seconds: float) -> None:
        """On the engine's thread: let the talkers of open streams begin none for `seconds`; 0 lifts that."""
        self._slowed_talkers |= {talker_of(stream_key) for stream_key in list(self._streams)}
        for talker in self._slowed_talkers:
            self._controller.put(talker, partial(self._backend.apply_backpressure, talker, seconds))
        if not seconds:
            self._slowed_talkers.clear()

    def _forget(self, stream_key: str) -> None:
        """On the engine's thread: a stream without a message for `codec_idle_timeout` has ended, although its final one never came.

        If it is a script that waits for its next line, that line opens it anew. Any other is stopped: Triton no longer carries its
        messages, as those of a client that wants its audio in a region of shared memory that is too small.
        """
        key = stream_of(stream_key).rstrip(ANEW)
        if (stream := self._streams.pop(key, None)) is not None:
            self._sender.put(key, stream.release)
            self._controller.put(key, partial(self._inlet.release, stream.claimed_from, key))
            if stream.lines is None and not stream.is_cancelled:
                self._controller.put(key, partial(self._backend.cancel_stream, talker_of(key), key))


def _told(chunk: CodesChunk) -> tuple[dict[str, Any], list[TimedWord]]:
    """What the talker tells the client beside the audio of a chunk, and the words in it."""
    told = json.loads(chunk.metadata) if chunk.metadata else {}
    return told, [TimedWord(**word) for word in told.pop("words", ())]


def _metadata(told: dict[str, Any], words: Sequence[TimedWord]) -> str:
    return compact_json(told | {"words": [word.to_json() for word in words]} if words else told)


def _is_first_frame(chunk: CodesChunk) -> bool:
    """Whether this is a stream's first audio and just one frame: `handle` then asks nothing before its answer."""
    return chunk.index == 0 and len(chunk.codes) == 1 and not chunk.is_reference
