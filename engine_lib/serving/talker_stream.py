"""TalkerStream: one client's stream through the talker, from its request to its last message.

The engine calls `on_start` and `on_chunk` on a thread of its own. They only put into the sender, with one exception: the first
codes of a lone stream are sent from that thread if no step waits for it. First chunks overtake other messages. The codes of a
reference go before the first chunk of their stream, and nothing of the stream overtakes them.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import structs

from engine_lib.delivery import Timestamps
from engine_lib.errors import DEADLINE_ERROR, InvalidRequestError, OverloadedError
from engine_lib.prompt import PromptBuilder
from engine_lib.serving.backend import Reply, request_name
from engine_lib.serving.client_watch import Watched
from engine_lib.serving.codes_channel import CodesOutlet
from engine_lib.serving.codes_route import CodesRoute
from engine_lib.serving.errors import status
from engine_lib.serving.message import CodesMessage, new_stream_key
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.parse import Reference, SpeechRequest
from engine_lib.serving.request_voices import RequestVoices
from engine_lib.serving.secret import ServerSecret
from engine_lib.serving.talker_metrics import TalkerMetrics
from engine_lib.serving.tracing import Span
from engine_lib.speech.alignment_file import MAX_TEXT_ROWS
from engine_lib.speech.stream_words import SpokenWords, words_json
from engine_lib.streamed_text import TextRows
from engine_lib.talker.base_engine import BaseTalkerEngine
from engine_lib.talker.output.runaway import past_of
from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener, StreamTimes
from engine_lib.talker.text.feed import TextFeed
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.voice_key import voice_key

logger = logging.getLogger(__name__)

# The codec is asked about the client of a stream that sends no chunk for so long: it waits to begin, for text, or after a preemption.
# It also learns so that the stream goes on.
QUIET_SECONDS = 1.0
PARTS = ("waiting", "prefill", "first frame", "speaking")  # of a stream, as spans


@dataclass(frozen=True)
class TalkerParts:
    """The parts of one talker's model that its streams and control requests use.

    Attributes:
        name: of the model.
        secret: of the server.
        streams: the open ones, by stream key.
        orders: those to store a voice that are not answered yet, by stream key.
        outlet: sends messages past Triton; None: all go through it.
        sessions: open streams that further requests may name, by `session_key`.
    """

    name: str
    secret: ServerSecret
    engine: BaseTalkerEngine[Any]
    prompts: PromptBuilder
    voices: RequestVoices
    sender: OrderedSender
    metrics: TalkerMetrics
    streams: dict[str, TalkerStream]
    orders: dict[str, Watched]
    outlet: CodesOutlet | None = None
    sessions: dict[str, TalkerStream] = field(default_factory=dict)

    def cancel(self, stream_key: str) -> None:
        """End a stream because its client has gone; no effect if it is not open."""
        if (stream := self.streams.get(stream_key)) is not None:
            stream.cancel()


class TalkerStream(RequestListener):
    """One stream, among the open ones until its last message has been sent or its request is refused.

    Attributes:
        stream_key: the server's own key of it.
        due_at: as in Watched: its deadline while its recording is to be encoded; the engine minds it later.
    """

    def __init__(self, talker: TalkerParts, reply: Reply, speech: SpeechRequest, arrived_at: float, deadline: float | None) -> None:
        """
        Args:
            talker: the model it runs on.
            reply: takes its messages.
            speech: its request.
            arrived_at: time.monotonic() of its arrival.
            deadline: time.monotonic() at which it ends with an error; None: never.

        Raises:
            InvalidRequestError: a stream of its session is open.
        """
        if speech.session is not None and speech.session in talker.sessions:
            raise InvalidRequestError("session", "is that of an open stream; make a new id for each")
        self.stream_key = new_stream_key(talker.name)
        self._talker, self._reply = talker, reply
        self._speech = replace(speech, reference=None)  # the recording is not needed once it is encoded
        self._arrived_at, self._deadline = arrived_at, deadline
        self.due_at: float | None = None
        self._encoding: Future[VoiceClonePromptItem] | None = None
        self._encoded_at = 0.0  # time.monotonic(); 0.0: no recording has been encoded
        self._times: StreamTimes | None = None
        self._heard_at = 0.0  # time.monotonic() of its last chunk; 0.0: none has come
        self._route = CodesRoute(self.stream_key, reply, talker.outlet)
        self._has_ended = False  # its last message or its refusal has been sent
        self._reference: npt.NDArray[np.int16] | None = None  # codes that the codec takes in before the first chunk
        self._words: SpokenWords | None = None  # with timestamps
        self._feed: TextFeed | None = None
        if speech.text_is_open:
            self._feed = TextFeed(talker.prompts.max_text_length)
            self._feed.append(speech.text)
        talker.streams[self.stream_key] = self
        if speech.session is not None:
            talker.sessions[speech.session] = self

    def begin(self, voice: Reference | VoiceClonePromptItem | None) -> None:
        """Queue the request, or refuse it; if `voice` is a recording, once that has been encoded."""
        talker, speech = self._talker, self._speech
        try:
            if isinstance(voice, Reference):
                self._check()
                talker.engine.reserve(self.stream_key, speech.turn)
                self._encoding = talker.voices.encode(voice, speech.turn)
                self.due_at = self._deadline
                self._encoding.add_done_callback(self._on_encoded)
            else:
                self._submit(voice)
        except Exception as error:
            self._refuse(error)

    @property
    def has_whole_text(self) -> bool:
        """Whether its text has ended."""
        return self._feed is None or self._feed.is_complete

    def append(self, text: str, *, is_last: bool) -> bool:
        """Add to a text that has not ended; False if the stream has.

        Raises:
            InvalidRequestError: as in TextFeed.append.
        """
        if self._feed is None or self._has_ended:
            return False
        try:
            return self._feed.append(text, is_last=is_last)
        except InvalidRequestError as error:
            if self._feed.is_complete:  # it cannot be spoken; a piece that was refused changes nothing
                self._talker.engine.cancel(self.stream_key, status(error)[1])
            raise

    def cancel(self) -> None:
        """Stop; the last message says that it was cancelled."""
        self._stop_speaking()
        if self._encoding is not None:
            self._talker.sender.put(self.stream_key, self._cancel_encoding)

    def on_claim(self) -> None:
        """On the outlet's thread: the codec has claimed this stream."""
        self._route.add_claim(time.monotonic())
        self._talker.sender.put(self.stream_key, self._route.send_waiting)

    def on_start(self) -> None:
        """On an engine's thread: let the codec take in the reference while the talker takes in the prompt."""
        if self._reference is not None:
            chunk = CodesChunk(self.stream_key, 0, self._reference, is_reference=True)
            self._talker.sender.put(self.stream_key, partial(self._send, chunk))

    def on_times(self, times: StreamTimes) -> None:
        """See RequestListener."""
        self._times = times

    def on_chunk(self, chunk: CodesChunk) -> None:
        """On an engine's thread: count, and leave the rest to a sender thread."""
        self._heard_at = time.monotonic()
        talker, is_first = self._talker, chunk.index == 0
        if chunk.is_reference:  # it is spoken anew behind these frames
            chunk = structs.replace(chunk, codes=past_of(self._reference, chunk.codes))
        elif is_first and len(chunk.codes):
            talker.metrics.add_first_codes(time.monotonic() - self._arrived_at)
        is_urgent = is_first and not chunk.is_final and not chunk.is_reference and self._reference is None
        if is_urgent and talker.engine.hands_out_beside_steps and len(talker.streams) == 1:
            self._send(chunk)
        else:
            talker.sender.put(self.stream_key, partial(self._end if chunk.is_final else self._send, chunk), urgent=is_urgent)

    def _on_encoded(self, voice: Future[VoiceClonePromptItem]) -> None:
        """On the encoder's thread: leave the rest to a sender thread."""
        self._talker.sender.put(self.stream_key, partial(self._submit_encoded, voice))

    def _submit_encoded(self, voice: Future[VoiceClonePromptItem]) -> None:
        """Queue the request with its encoded voice, or refuse it, unless `look_after` has answered it meanwhile."""
        if self._has_ended:
            return
        self.due_at = self._encoding = None
        self._encoded_at = time.monotonic()
        try:
            self._submit(voice.result())
        except Exception as error:
            self._refuse(error)

    def _check(self) -> None:
        """Check the request while its voice is still to be encoded.

        Raises:
            InvalidRequestError: as in PromptBuilder.check.
        """
        speech = self._speech
        text = None if speech.text_is_open else speech.text
        self._talker.prompts.check(text=text, language=speech.language, instruct=speech.instruct)

    def _submit(self, voice: VoiceClonePromptItem | None) -> None:
        """Build the prompt and queue the request.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as in PromptBuilder.build and TalkerEngine.submit.
        """
        talker, speech = self._talker, self._speech
        speaker, prompts = None if voice else speech.voice, talker.prompts
        rows = None
        if self._feed is None:
            prompt = prompts.build(
                text=speech.text,
                voice=speaker,
                language=speech.language,
                instruct=speech.instruct,
                non_streaming_mode=speech.non_streaming_mode,
                voice_prompt=voice,
            )
        else:
            prompt, rows = prompts.open(voice=speaker, language=speech.language, instruct=speech.instruct, voice_prompt=voice)
        self._reference = prompt.reference_codes
        if speech.delivery.audio.loudness is not None:
            key = voice_key(speaker or prompts.default_voice, speech.instruct, voice)
            self._speech = speech = replace(speech, delivery=speech.delivery.of_voice(f"{talker.name}/{key}"))
        self._words = self._spoken_words(rows)
        request = Request(
            self.stream_key,
            prompt,
            speech.sampling,
            speech.delivery,
            self._deadline,
            announce_start=self._reference is not None,
            announce_times=self._reply.is_traced,
            turn=speech.turn,
            text_is_open=rows is not None,
        )
        talker.engine.submit(request, self)
        if self._feed is not None and rows is not None:
            try:
                self._feed.connect(talker.engine, self.stream_key, rows)
            except InvalidRequestError as error:  # too late to refuse the request: the engine has it
                talker.engine.cancel(self.stream_key, status(error)[1])
        talker.metrics.accept_times.add(time.monotonic() - self._arrived_at)

    def _spoken_words(self, rows: TextRows | None) -> SpokenWords | None:
        """The words of this stream if it is to tell of them; `rows`: of a text that comes in pieces."""
        # The engine refuses timestamps of a checkpoint without heads for them.
        if self._speech.delivery.timestamps is Timestamps.NONE or self._talker.engine.checkpoint.alignment is None:
            return None
        words = self._new_words()
        if rows is None:
            words.add_text(self._speech.text)
        else:
            rows.follow(words.add_text, MAX_TEXT_ROWS - 1)
        return words

    def _new_words(self) -> SpokenWords:
        """Words of a text that is still to come."""
        talker = self._talker
        alignment, codec = talker.engine.checkpoint.alignment, talker.prompts.config.codec
        assert alignment is not None
        return SpokenWords(alignment, codec.samples_per_frame / codec.sample_rate, talker.prompts.token_spans)

    def look_after(self) -> None:
        """See Watched."""
        if self._has_ended:
            return
        if self.due_at is not None and time.monotonic() >= self.due_at:
            self._give_up(FinishReason.ERROR, DEADLINE_ERROR)
        elif self._reply.is_cancelled():
            self.cancel()
        elif time.monotonic() >= self._heard_at + QUIET_SECONDS:
            self._route.send_waiting()
            nothing = CodesChunk(self.stream_key, 0, self._no_codes)
            self._reply.send(CodesMessage(nothing, self._speech.delivery, is_question=True).pack(self._talker.secret), is_final=False)

    def _cancel_encoding(self) -> None:
        """On its sender: end a stream with a voice that is not encoded yet, which then is not, unless that has begun."""
        if self._encoding is None:
            self._stop_speaking()
        elif not self._has_ended:
            self._give_up(FinishReason.CANCELLED)

    def _stop_speaking(self) -> None:
        """End the stream in the engine, if that has it."""
        self._talker.engine.cancel(self.stream_key)

    def _give_up(self, reason: FinishReason, error: str = "") -> None:
        """End the stream before the engine has it."""
        encoding, self._encoding, self.due_at = self._encoding, None, None
        self._talker.engine.release(self.stream_key)
        try:
            self._end(CodesChunk(self.stream_key, 0, self._no_codes, is_final=True, finish_reason=reason.value, error=error))
        finally:
            if encoding is not None:
                encoding.cancel()

    @property
    def _no_codes(self) -> npt.NDArray[np.int16]:
        return np.empty((0, self._talker.prompts.config.talker.num_code_groups), np.int16)

    def _refuse(self, error: Exception) -> None:
        self._has_ended = True
        if isinstance(error, OverloadedError):
            self._talker.metrics.overloads.add(1, self._speech.turn.priority.value)
        self._talker.engine.release(self.stream_key)
        self._forget()
        self._reply.refuse(error)

    def _forget(self) -> None:
        del self._talker.streams[self.stream_key]
        if self._talker.outlet is not None:
            self._talker.outlet.release(self.stream_key)
        if self._speech.session is not None:
            del self._talker.sessions[self._speech.session]

    def _send(self, chunk: CodesChunk) -> None:
        if self._words is not None and chunk.starts_over:
            self._words.start_over(chunk.num_frames)
        elif self._words is not None and not chunk.is_reference:
            metadata = words_json(self._words.of_chunk(chunk.scores, chunk.finish_reason))
            chunk = structs.replace(chunk, metadata=metadata, scores=None)
        route, now = self._route, time.monotonic()
        message = structs.replace(self._message(chunk), place=route.place, channel=route.channel).pack(self._talker.secret, now)
        route.send(message, now, is_final=chunk.is_final, may_pass=not (chunk.is_final or chunk.is_reference))

    def _message(self, chunk: CodesChunk) -> CodesMessage:
        return CodesMessage(chunk, self._speech.delivery)

    def _end(self, chunk: CodesChunk) -> None:
        """Send the final chunk; the stream is closed whether or not that works."""
        self._has_ended = True
        self._talker.metrics.add_end(chunk.finish_reason, chunk.error)
        if chunk.error:
            logger.error("%s, stream %s, ended with an error: %s", request_name(self._reply.request_id), self.stream_key, chunk.error)
        try:
            self._send(chunk)
        finally:
            self._forget()
        if self._reply.is_traced:
            self._reply.trace(*self._spans(chunk, time.monotonic()))

    def _spans(self, chunk: CodesChunk, ended_at: float) -> list[Span]:
        """The spans of the stream, which `chunk` has ended."""
        end: dict[str, int | str] = {"finish_reason": chunk.finish_reason, "chunks": chunk.index}
        has_failed = chunk.finish_reason == FinishReason.ERROR.value
        spans, since = [], self._arrived_at
        if self._encoded_at:
            spans.append(Span("encoding", since, self._encoded_at))
            since = self._encoded_at
        times = self._times
        ends = [until for until in (times.begun_at, times.prefilled_at, times.first_frames_at) if until] if times else []
        begins = [since, *ends]
        spans += [Span(name, begin, until) for name, begin, until in zip(PARTS, begins, ends, strict=False)]
        return [*spans, Span(PARTS[len(ends)], begins[-1], ended_at, end, has_failed)]
