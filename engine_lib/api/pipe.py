"""Pipe: the way of one request through the talker and the codec of a process."""

from __future__ import annotations

import json
import queue
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.api.utterance import Utterance
from engine_lib.codec.engine import AudioChunk, CodecEngine, CodecRequest
from engine_lib.delivery import Delivery, OnRunaway
from engine_lib.errors import Qwen3TTSError
from engine_lib.speech.alignment_file import MAX_TEXT_ROWS
from engine_lib.speech.heard import HeardPiece, HeardStream, Take
from engine_lib.speech.stream_words import SpokenWords
from engine_lib.speech.words import TimedWord
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.output.runaway import SilentStream, past_of
from engine_lib.talker.request import CodesChunk, FinishReason, Request, RequestListener

_Source = tuple[dict[str, Any], bool]  # what is told beside audio, and whether it is a pause


@dataclass(frozen=True, eq=False)
class SpeechChunk:
    """A piece of a stream. Two are equal only if they are the same object.

    Attributes:
        audio: [samples] float32 in -1..1, at `SpeechStream.sample_rate`; the last chunk has none.
        index: 0, 1, 2..
        is_final: True for the last chunk.
        finish_reason: "" until the last chunk, then stop, length, cancelled or runaway.
        samples_sent: of the last chunk: samples of all chunks of the stream.
        is_pause: the audio is the silence before a line of a script, or behind the last.
        words: with timestamps: the words whose times are known now. A word comes with the chunk that was made 0.3 s after its end, or with
            a later one, the rest with the last chunk; its times count from the beginning of the stream.
        metadata: what there is to say beside the audio: of a script, `line`, `begin`, `speaker`, and in the last chunk `cut_lines`.
    """

    audio: npt.NDArray[np.float32] = field(repr=False)
    index: int
    is_final: bool
    finish_reason: str
    samples_sent: int = 0
    is_pause: bool = False
    metadata: Mapping[str, Any] = field(default_factory=dict)
    words: tuple[TimedWord, ...] = ()

    @property
    def line(self) -> int | None:
        """The line of a script that it belongs to, 1, 2, 3..; None without a script."""
        return self.metadata.get("line")

    @property
    def speaker(self) -> str | None:
        """Name of the voice of that line, if it has one."""
        return self.metadata.get("speaker")


class Pipe(RequestListener):
    """Passes the codes of a request to the codec, and the codec's audio to the reader of `chunks`.

    The engines refer to it while the request runs. It must not refer to the SpeechStream: then a dropped one would never be freed.
    """

    def __init__(self, talker: TalkerEngine, codec: CodecEngine, words: SpokenWords | None = None) -> None:
        """`words`: of its text, for a delivery with timestamps."""
        self.stream_key = self._codec_key = uuid.uuid4().hex
        self.chunks: queue.SimpleQueue[SpeechChunk | BaseException] = queue.SimpleQueue()
        self._num_sent, self._samples_sent, self._words = 0, 0, words
        self._heard: HeardStream[_Source]
        self._take: Take | None = None  # of the latest audio
        self._talker, self._codec = talker, codec
        self._reference: npt.NDArray[np.int16] | None = None

    def start(self, utterance: Utterance, delivery: Delivery) -> None:
        """Queue the request.

        Raises:
            InvalidRequestError, OverloadedError, EngineDeadError: as in TalkerEngine.submit.
        """
        prompt, text, key = utterance.prompt, utterance.text, self.stream_key
        self._reference = prompt.reference_codes
        if self._words is not None and text is None:
            self._words.add_text(utterance.whole_text)
        elif self._words is not None and text is not None:
            text.follow(self._words.add_text, MAX_TEXT_ROWS - 1)
        self._heard = self._new_heard(delivery)
        self._talker.submit(
            Request(
                key,
                prompt,
                utterance.sampling,
                delivery,
                announce_start=self._reference is not None,
                turn=utterance.turn,
                text_is_open=text is not None,
            ),
            self,
        )
        if text is not None:
            text.begin(self._talker, key, self.chunks.put)

    def cancel(self) -> None:
        """Stop speaking; no effect if the request has ended."""
        self._talker.cancel(self.stream_key)

    def on_start(self) -> None:
        """On the talker's thread: the codec takes in the reference while the talker takes in the prompt."""
        if self._reference is not None:
            self._codec.submit(CodecRequest.of_reference(self.stream_key, self._reference))

    def on_chunk(self, chunk: CodesChunk) -> None:
        """On the talker's thread."""
        if chunk.is_reference:
            self._speak_anew(chunk)
        else:
            self._codec.submit(self._codec_request(chunk, self._codec_key, self._heard.take()))

    def _new_heard(self, delivery: Delivery) -> HeardStream[_Source]:
        codec, is_watched = self._codec, delivery.on_runaway is not OnRunaway.OFF
        return HeardStream(codec.sample_rate, codec.samples_per_frame, is_watched=is_watched)

    def _speak_anew(self, chunk: CodesChunk) -> None:
        """Go on with another stream of the codec, behind the frames of `chunk`."""
        self._codec.submit(CodecRequest(self._codec_key, 0, chunk.codes[:0], is_final=True, on_audio=lambda _answer: None))
        self._codec_key = uuid.uuid4().hex
        self._codec.submit(CodecRequest.of_reference(self._codec_key, past_of(self._reference, chunk.codes)))
        self._heard.take(is_anew=True)

    def _codec_request(self, chunk: CodesChunk, codec_key: str, take: Take) -> CodecRequest:
        return CodecRequest(codec_key, chunk.index, chunk.codes, chunk.is_final, partial(self._on_audio, chunk, take), chunk.is_reference)

    def _key_of(self, take: Take) -> str:
        """The talker's key of a take."""
        return self.stream_key

    def _on_audio(self, chunk: CodesChunk, take: Take, answer: AudioChunk) -> None:
        """On the codec's thread: pass on what is heard."""
        if chunk.is_reference:  # if it failed, so do the chunks after it
            return
        if error := answer.error or chunk.error:
            self.cancel()
            self.chunks.put(Qwen3TTSError(error))
            return
        told = json.loads(chunk.metadata) if chunk.metadata else {}
        words = [TimedWord(**word) for word in told.pop("words", ())]  # those of a script
        if self._words is not None:
            words = self._words_of(self._words, chunk, take)
        is_pause = not (chunk.is_final or len(chunk.codes))
        if chunk.is_final:
            is_complete = chunk.finish_reason in (FinishReason.STOP.value, FinishReason.LENGTH.value)
            pieces, left = self._heard.end(take, words, is_complete=is_complete)
            self._put(pieces)
            reason, told = self._heard.ending(chunk.finish_reason, told)
            self.chunks.put(
                SpeechChunk(
                    answer.audio,
                    self._num_sent,
                    is_final=True,
                    finish_reason=reason,
                    samples_sent=self._samples_sent,
                    metadata=told,
                    words=left,
                )
            )
            return
        had_run_away = take.gate is not None and take.gate.has_run_away
        self._put(self._heard.heard(take, answer.audio, (told, is_pause), words, is_pause=is_pause))
        if take.gate is not None and take.gate.has_run_away and not had_run_away:
            self._talker.end_silence(SilentStream(self._key_of(take), take.gate.num_good_frames))

    def _words_of(self, words: SpokenWords, chunk: CodesChunk, take: Take) -> list[TimedWord]:
        """Those that are settled with a chunk of a stream that is no script."""
        if self._take is not None and take.number != self._take.number:
            if take.number < self._take.number:
                return []  # it has been spoken anew meanwhile
            words.start_over(take.gate.num_good_frames if take.gate is not None else 0)
        self._take = take
        return words.of_chunk(chunk.scores, chunk.finish_reason)

    def _put(self, pieces: Iterable[HeardPiece[_Source]]) -> None:
        for piece in pieces:
            told, is_pause = piece.source
            chunk = SpeechChunk(
                piece.audio, self._num_sent, is_final=False, finish_reason="", is_pause=is_pause, metadata=told, words=piece.words
            )
            self.chunks.put(chunk)
            self._num_sent += 1
            self._samples_sent += len(piece.audio)
