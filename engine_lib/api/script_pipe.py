"""ScriptPipe: the way of a script through the talker and the codec of a process."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from msgspec import structs

from engine_lib.api.pipe import Pipe
from engine_lib.api.utterance import Utterance
from engine_lib.codec.engine import CodecEngine
from engine_lib.codec.lines import DecodedLines
from engine_lib.delivery import Delivery
from engine_lib.process.serial import Serial
from engine_lib.speech.heard import Take
from engine_lib.speech.script import line_key
from engine_lib.speech.script_words import ScriptWords
from engine_lib.speech.stream_words import SpokenWords
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.output.runaway import past_of
from engine_lib.talker.request import CodesChunk, Request, RequestListener
from engine_lib.talker.script.lines import LinePart, SpokenLines


class ScriptPipe(Pipe):
    """A Pipe for a script. Its lines share one place in the talker, as in a server."""

    def __init__(self, talker: TalkerEngine, codec: CodecEngine, new_words: Callable[[], SpokenWords] | None = None) -> None:
        """`new_words`: makes the words of a line, which has no text yet, for a delivery with timestamps."""
        super().__init__(talker, codec)
        self._new_words, self._frame_seconds = new_words, codec.samples_per_frame / codec.sample_rate
        self._decoded = DecodedLines(codec, self.stream_key)
        self._serial = Serial()  # for the lines
        self._lines: SpokenLines

    def start(self, utterance: Utterance, delivery: Delivery) -> None:
        """See Pipe."""
        assert utterance.script is not None
        self._heard = self._new_heard(delivery)
        key, lines = self.stream_key, utterance.lines

        def request_of(line: int) -> tuple[Request, RequestListener]:
            prompt, sampling = lines[line].prompt, lines[line].sampling
            announce_start = prompt.reference_codes is not None
            request = Request(line_key(key, line), prompt, sampling, delivery, announce_start=announce_start, turn=utterance.turn)
            return request, _LineListener(self, line, request)

        for line in range(len(lines)):
            self._talker.check(request_of(line)[0])
        self._talker.reserve(key, utterance.turn)
        self._lines = SpokenLines(
            self._talker,
            key,
            utterance.script,
            utterance.prompt.codes.shape[1],
            speaker=utterance.speaker,
            request_of=request_of,
            send=self._send,
            words=None if self._new_words is None else ScriptWords(utterance.script, self._new_words, self._frame_seconds),
        )
        try:
            self._lines.begin()
        except BaseException:
            self._talker.release(key)
            raise

    def cancel(self) -> None:
        """See Pipe."""
        self._serial.run(self._lines.cancel)

    def receive(self, line: int, chunk: CodesChunk) -> None:
        """On the talker's thread: take a chunk of a line."""
        self._serial.run(partial(self._lines.received, line, chunk))

    def _send(self, chunk: CodesChunk, part: LinePart) -> None:
        if chunk.is_final:
            self._talker.release(self.stream_key, has_run=True)
        take = self._heard.take(part.line, is_anew=chunk.is_reference and part.index > 0)
        self._decoded.submit(self._codec_request(chunk, chunk.stream_key, take), part.line, part.index, part.silence_ms)

    def _key_of(self, take: Take) -> str:
        return line_key(self.stream_key, take.line)


class _LineListener(RequestListener):
    """Hears one line."""

    def __init__(self, pipe: ScriptPipe, line: int, request: Request) -> None:
        self._pipe, self._line, self._reference = pipe, line, request.prompt.reference_codes

    def on_start(self) -> None:
        """See RequestListener; the reference goes before the chunks of its line."""
        if self._reference is not None:
            self._pipe.receive(self._line, CodesChunk("", 0, self._reference, is_reference=True))

    def on_chunk(self, chunk: CodesChunk) -> None:
        """See RequestListener."""
        if chunk.starts_over:
            chunk = structs.replace(chunk, codes=past_of(self._reference, chunk.codes))
        self._pipe.receive(self._line, chunk)
