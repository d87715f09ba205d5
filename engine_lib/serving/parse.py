"""RequestParser: Triton's request -> SpeechRequest. Errors name the field in the client's words."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.admission.turn import DEFAULT_TURN, TURN_NAMES, Turn
from engine_lib.delivery import DELIVERY_NAMES, DELIVERY_PARAMETERS, Delivery
from engine_lib.errors import InvalidRequestError, nearest
from engine_lib.sampling import SamplingParams
from engine_lib.serving.request_values import RequestValues, session_key, turn_of
from engine_lib.serving.served import ServedCheckpoint, where_to_go
from engine_lib.speech.blend import MAX_LENGTH
from engine_lib.speech.checks import is_blank, true_or_false
from engine_lib.speech.compiler import TextCompiler
from engine_lib.speech.lexicon import NO_LEXICON, Lexicon
from engine_lib.speech.script import Script
from engine_lib.speech.text_options import DEFAULT_TEXT, TEXT_NAMES
from engine_lib.voices.reference_audio import MAX_SAMPLE_RATE

REFERENCE_FIELDS = ("reference_audio", "reference_text", "reference_sample_rate", "x_vector_only")
SESSION_FIELDS = ("session", "session_action", "text_end")
PARAMETERS = (*TURN_NAMES, *DELIVERY_PARAMETERS)  # that are request parameters and nothing else
FIELDS = ("text", "voice", "language", "instruct", *REFERENCE_FIELDS, "sampling_parameters", *SESSION_FIELDS, *PARAMETERS)
SAMPLING_NAMES = tuple(spec.name for spec in fields(SamplingParams))
# Keys of sampling_parameters that do not control how codes are sampled.
SERVING_NAMES = (*DELIVERY_NAMES, *TEXT_NAMES, "non_streaming_mode")


@dataclass(frozen=True, eq=False, kw_only=True)
class Reference:
    """A recording of the voice to clone, as the client sent it.

    Attributes:
        audio: [samples] float32, mono; checked by checked_reference_audio.
        sample_rate: in Hz.
        text: the words spoken in it.
        x_vector_only: clone its timbre alone; the text is not needed.
    """

    audio: npt.NDArray[np.float32]
    sample_rate: int
    text: str | None = None
    x_vector_only: bool = False

    @property
    def seconds(self) -> float:
        """Playing time."""
        return len(self.audio) / self.sample_rate


@dataclass(frozen=True, kw_only=True)
class SpeechRequest:
    """A client's request. PromptBuilder checks text, voice, language and instruct against the checkpoint.

    Attributes:
        text: as the client sent it.
        script: the lines to speak instead of `text`; None: `text` is spoken as it is.
        turn: how it waits: for the encoder of its recording, and to start.
        session: from session_key, if further requests may name the stream.
        text_is_open: `text` is the beginning of it, and may be empty.
    """

    text: str
    script: Script | None = None
    voice: str | None = None
    language: str | None = None
    instruct: str | None = None
    non_streaming_mode: bool | None = None
    sampling: SamplingParams
    delivery: Delivery
    reference: Reference | None = None
    turn: Turn = DEFAULT_TURN
    session: str | None = None
    text_is_open: bool = False


@dataclass(frozen=True, kw_only=True)
class RequestParser:
    """Parses requests for one checkpoint.

    Attributes:
        kind: kind of the checkpoint: custom_voice, base or voice_design.
        sampling, delivery: defaults of a request.
        texts: what makes scripts of texts.
        lexicon_of: the lexicon of a voice by its name; of None it is empty.
        max_text_length, max_reference_seconds: of a reference.
        served: all checkpoints of the server.
    """

    kind: str
    sampling: SamplingParams
    delivery: Delivery
    texts: TextCompiler
    max_text_length: int
    max_reference_seconds: float
    served: Sequence[ServedCheckpoint] = ()
    lexicon_of: Callable[[str | None], Lexicon] = lambda _voice: NO_LEXICON

    def parse(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str) -> SpeechRequest:
        """Check one request.

        Args:
            tensors: the inputs of the request; strings as objects of bytes.
            parameters: its request parameters, a JSON object; "" for none.

        Raises:
            InvalidRequestError: a field is missing or has a value that is not allowed.
        """
        values = RequestValues(tensors, parameters)
        for name in values.parameters:
            if name in SAMPLING_NAMES + SERVING_NAMES:
                raise InvalidRequestError(
                    name, f"is not a request parameter; put it into sampling_parameters, as {{{json.dumps(name)}: ...}}"
                )
        values.report_unknown(FIELDS)
        options = values.json_object("sampling_parameters")
        serving = {name: options.pop(name) for name in SERVING_NAMES if name in options}
        for name in options:
            if name in PARAMETERS:
                raise InvalidRequestError(name, "is a request parameter; take it out of sampling_parameters")
            if name not in SAMPLING_NAMES:
                allowed = ", ".join(SAMPLING_NAMES + SERVING_NAMES) + nearest(name[:100], SAMPLING_NAMES + SERVING_NAMES)
                raise InvalidRequestError("sampling_parameters", f"{name[:100]!r} is unknown; allowed: {allowed}")
        reading = DEFAULT_TEXT.updated({name: serving.pop(name) for name in TEXT_NAMES if name in serving})
        text = values.string("text", self.texts.longest(reading), self.texts.advice(reading))
        session, text_is_open = session_key(values), values.boolean("text_end") is False
        if text_is_open:
            text = text or ""
            if session is None:
                problem = "is missing, and text_end is false; give an id of your own, by which further requests bring the text"
                raise InvalidRequestError("session", problem)
            reading.check_open()
        if text is None:
            raise InvalidRequestError("text", "is missing; give the text to speak")
        reference = self._reference(values)
        non_streaming_mode = serving.pop("non_streaming_mode", None)
        if non_streaming_mode is not None:
            true_or_false("non_streaming_mode", non_streaming_mode)
        if non_streaming_mode and text_is_open:
            raise InvalidRequestError("non_streaming_mode", "true takes the whole text at once, and text_end is false; leave one out")
        language, voice = values.string("language"), values.string("voice", MAX_LENGTH)
        spoken = text if text_is_open else self.texts.compile(text, reading, language, lambda own: self.lexicon_of(own or voice))
        return SpeechRequest(
            text=text,
            script=None if isinstance(spoken, str) else spoken,
            voice=voice,
            language=language,
            instruct=values.string("instruct", self.max_text_length),
            non_streaming_mode=non_streaming_mode,
            sampling=self.sampling.updated(options),
            delivery=self.delivery.updated(serving | {name: values.parameters.get(name) for name in DELIVERY_PARAMETERS}),
            reference=reference,
            turn=turn_of(values),
            session=session,
            text_is_open=text_is_open,
        )

    def parse_reference(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str) -> tuple[Reference, Turn]:
        """The recording in a request to store a voice, and how it waits.

        Raises:
            InvalidRequestError: there is none, or a field of it has a value that is not allowed.
        """
        values = RequestValues(tensors, parameters)
        reference = self._reference(values)
        if reference is None:
            raise InvalidRequestError("reference_audio", "is missing; give a recording of the voice")
        return reference, turn_of(values)

    def _reference(self, values: RequestValues) -> Reference | None:
        given = [name for name in REFERENCE_FIELDS if values.has(name)]
        if not given:
            return None
        if self.kind != "base":
            problem = f"only a checkpoint of kind base clones a voice, and this one is of kind {self.kind}"
            raise InvalidRequestError(given[0], f"{problem}; {where_to_go(self.served, 'base')}, or leave {given[0]} out")
        sample_rate = values.number("reference_sample_rate")
        audio = values.samples("reference_audio")
        if audio is None:
            raise InvalidRequestError("reference_audio", f"is missing, and {given[0]} is given; give the recording it belongs to")
        if sample_rate is None or sample_rate < 1:
            raise InvalidRequestError("reference_sample_rate", "is missing or not above 0; give the samples a second of reference_audio")
        if len(audio) > self.max_reference_seconds * MAX_SAMPLE_RATE:  # checked before the copy; checked_reference_audio checks the rest
            limit = f"more than {self.max_reference_seconds:g} s at any rate; give a shorter recording"
            raise InvalidRequestError("reference_audio", f"has {len(audio)} samples, {limit}")
        text = values.string("reference_text", self.max_text_length)
        x_vector_only = bool(values.boolean("x_vector_only"))
        if (text is None or is_blank(text)) and not x_vector_only:
            raise InvalidRequestError("reference_text", "is missing; give the words of reference_audio, or set x_vector_only")
        return Reference(audio=audio.copy(), sample_rate=sample_rate, text=text, x_vector_only=x_vector_only)
