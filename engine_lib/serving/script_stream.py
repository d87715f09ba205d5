"""ScriptStream: one client's stream of several lines through the talker.

It holds one place in the engine; its lines share that, and queue there one by one. All that the lines do is done on the stream's
sender, so nothing of it overlaps.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from msgspec import structs

from engine_lib.delivery import Delivery, Timestamps
from engine_lib.serving.backend import Reply
from engine_lib.serving.message import CodesMessage
from engine_lib.serving.parse import Reference, SpeechRequest
from engine_lib.serving.talker_stream import TalkerParts, TalkerStream
from engine_lib.speech.alignment_file import MAX_TEXT_ROWS
from engine_lib.speech.script import Line, Script, line_key
from engine_lib.speech.script_words import ScriptWords
from engine_lib.talker.output.runaway import past_of
from engine_lib.talker.request import CodesChunk, Request, RequestListener, StreamTimes
from engine_lib.talker.script.lines import LinePart, SpokenLines
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.voice_key import voice_key


class ScriptStream(TalkerStream):
    """A TalkerStream that speaks a script. Every line is checked before the first one is spoken."""

    def __init__(
        self,
        talker: TalkerParts,
        reply: Reply,
        speech: SpeechRequest,
        arrived_at: float,
        deadline: float | None,
        *,
        script: Script,
        voices: Mapping[str | None, Reference | VoiceClonePromptItem | None],
    ) -> None:
        """
        Args:
            voices: from RequestVoices.of_script.
            others: as in TalkerStream.

        Raises:
            InvalidRequestError: a stream of its session is open.
        """
        super().__init__(talker, reply, speech, arrived_at, deadline)
        self._script = script
        self._voices = {name: voice for name, voice in voices.items() if not isinstance(voice, Reference)}
        sampling = speech.sampling
        self._sampling = sampling if sampling.seed is not None else replace(sampling, seed=secrets.randbits(63))
        self._speaker = speech.voice or ("" if speech.reference is not None else talker.prompts.default_voice or "")
        self._lines: SpokenLines | None = None
        self._part: LinePart | None = None  # of the latest message

    def put(self, line: int, chunk: CodesChunk, *, urgent: bool = False) -> None:
        """On an engine's thread: leave a chunk of a line to the sender."""
        self._talker.sender.put(self.stream_key, partial(self._receive, line, chunk), urgent=urgent)

    def on_first_codes(self) -> None:
        """On an engine's thread: the first line has frames."""
        self._talker.metrics.add_first_codes(time.monotonic() - self._arrived_at)

    def look_after(self) -> None:
        """See Watched. Asks whenever nothing has been sent since the last time, because a line may have to wait."""
        super().look_after()
        self._has_begun = False

    def _check(self) -> None:
        for line in self._script.lines:
            with self._script.errors_of(line):
                language, instruct = self._own(line, "language"), self._own(line, "instruct")
                self._talker.prompts.check(text=line.text, language=language, instruct=instruct)

    def _submit(self, voice: VoiceClonePromptItem | None) -> None:
        self._voices[None] = voice
        self._check_lengths()
        engine, key = self._talker.engine, self.stream_key
        engine.reserve(key, self._speech.turn)
        num_code_groups = self._talker.prompts.config.talker.num_code_groups
        self._lines = SpokenLines(
            engine,
            key,
            self._script,
            num_code_groups,
            speaker=self._speaker,
            request_of=self._request_of,
            send=self._send_part,
            words=self._script_words(),
        )
        self._lines.begin()
        self._talker.metrics.accept_times.add(time.monotonic() - self._arrived_at)

    def _check_lengths(self) -> None:
        """Check all lines as their submission would. To tokenize hundreds of lines takes some 50 ms, in which no other request could begin.

        Raises:
            InvalidRequestError: a line is not allowed, or does not fit the engine.
        """
        engine, longest = self._talker.engine, self._talker.engine.config.max_model_len
        most_tokens = longest if self._speech.delivery.timestamps is Timestamps.NONE else MAX_TEXT_ROWS - 1
        room: dict[tuple[str | None, str | None, str | None], int] = {}  # for the text of a line, in tokens
        for number, line in enumerate(self._script.lines):
            kind = (line.voice, line.language, line.instruct)
            with self._script.errors_of(line):
                if len(line.text.encode()) <= room.get(kind, -1):  # a token is a byte at least
                    self._talker.prompts.check(text=line.text)
                    continue
                request = self._request(number)
                engine.check(request)
                prompt = request.prompt
                rows = len(prompt) + len(prompt.trailing_text_ids) + (request.sampling.max_frames or 0)
                room.setdefault(kind, min(longest - rows + prompt.num_text_tokens, most_tokens))

    def _script_words(self) -> ScriptWords | None:
        """The words of the script if it is to tell of them."""
        if self._speech.delivery.timestamps is Timestamps.NONE:
            return None
        codec = self._talker.prompts.config.codec
        return ScriptWords(self._script, self._new_words, codec.samples_per_frame / codec.sample_rate)

    def _own(self, line: Line, field: str) -> Any:
        """A field of a line, or else of the request."""
        value = getattr(line, field)
        return getattr(self._speech, field) if value is None else value

    def _request(self, number: int) -> Request:
        line, speech = self._script.lines[number], self._speech
        cloned = self._voices[line.voice]
        prompt = self._talker.prompts.build(
            text=line.text,
            voice=None if cloned else self._own(line, "voice"),
            language=self._own(line, "language"),
            instruct=self._own(line, "instruct"),
            non_streaming_mode=speech.non_streaming_mode,
            voice_prompt=cloned,
        )
        return Request(
            line_key(self.stream_key, number),
            prompt,
            self._sampling,
            speech.delivery,
            self._deadline,
            announce_start=prompt.reference_codes is not None,
            announce_times=self._reply.is_traced and number == 0,
            turn=speech.turn,
        )

    def _request_of(self, number: int) -> tuple[Request, RequestListener]:
        request = self._request(number)
        return request, LineListener(self, number, request)

    def _receive(self, line: int, chunk: CodesChunk) -> None:
        assert self._lines is not None
        self._lines.received(line, chunk)

    def _stop_speaking(self) -> None:
        self._talker.sender.put(self.stream_key, self._cancel_lines)

    def _cancel_lines(self) -> None:
        if self._lines is not None:
            self._lines.cancel()

    def _send_part(self, chunk: CodesChunk, part: LinePart) -> None:
        self._has_begun, self._part = True, part
        if chunk.is_final:
            self._talker.engine.release(self.stream_key, has_run=True)
            self._end(chunk)
        else:
            self._send(chunk)

    def _message(self, chunk: CodesChunk) -> CodesMessage:
        delivery = self._speech.delivery if self._part is None else self._delivery(self._script.lines[self._part.line])
        return CodesMessage(chunk, delivery, part=self._part)

    def _delivery(self, line: Line) -> Delivery:
        delivery = self._speech.delivery
        if delivery.audio.loudness is not None:
            key = voice_key(self._own(line, "voice") or self._speaker or None, self._own(line, "instruct"), self._voices[line.voice])
            delivery = delivery.of_voice(f"{self._talker.name}/{key}")
        audio = delivery.audio.of_line(line.speed, line.volume_db)
        return delivery if audio is delivery.audio else replace(delivery, audio=audio)


class LineListener(RequestListener):
    """Hears one line; all that it does is to pass on."""

    def __init__(self, stream: ScriptStream, line: int, request: Request) -> None:
        self._stream, self._line, self._reference = stream, line, request.prompt.reference_codes

    def on_start(self) -> None:
        """See RequestListener; the reference goes before the chunks of its line."""
        if self._reference is not None:
            self._stream.put(self._line, CodesChunk("", 0, self._reference, is_reference=True))

    def on_times(self, times: StreamTimes) -> None:
        """See RequestListener."""
        self._stream.on_times(times)

    def on_chunk(self, chunk: CodesChunk) -> None:
        """See RequestListener."""
        if chunk.starts_over:
            chunk = structs.replace(chunk, codes=past_of(self._reference, chunk.codes))
        is_first = self._line == chunk.index == 0 and len(chunk.codes) > 0
        if is_first:
            self._stream.on_first_codes()
        self._stream.put(self._line, chunk, urgent=is_first and self._reference is None)
