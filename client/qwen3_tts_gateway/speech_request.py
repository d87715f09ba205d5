"""The body of POST /v1/audio/speech: fields of OpenAI, of the community, of earlier servers."""

from __future__ import annotations

import json
from typing import Any, Literal, get_args

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from qwen3_tts_client.protocol import RequestOptions
from qwen3_tts_gateway.audio.formats import FORMATS, encoder_rate
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.languages import language_of
from qwen3_tts_gateway.recordings import recording_of

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "mulaw", "alaw"]
# Fields that have the name of a key of the server's sampling_parameters.
SAMPLING = (
    "temperature",
    "top_k",
    "top_p",
    "repetition_penalty",
    "do_sample",
    "subtalker_temperature",
    "subtalker_top_k",
    "subtalker_top_p",
    "subtalker_dosample",
    "seed",
    "non_streaming_mode",
)
CODEC_RATE = 24_000  # Hz, of every Qwen3-TTS codec
RAMP = (1, 2, 4, 8)  # frames in the chunks of a stream, as the server has them by default
TASKS = {"CustomVoice": "custom_voice", "Base": "base", "VoiceDesign": "voice_design"}  # of vLLM-Omni's clients -> a model's kind
MOST_LEXICON = 15_000  # characters of ASCII JSON; the server takes 16,384, with the other parameters of a request


class NoFlags(BaseModel):
    """Fields in which true is no number, as it is to Python."""

    @field_validator("*", mode="before")
    @classmethod
    def _no_flag(cls, value: Any, info: ValidationInfo) -> Any:
        wanted = cls.model_fields[info.field_name or ""].annotation
        if isinstance(value, bool) and bool not in (wanted, *get_args(wanted)):
            raise PydanticCustomError("no_flag", "Input should not be true or false")
        return value


class VoiceId(BaseModel):
    """OpenAI's other way to name a voice."""

    id: str


class SpeechOptions(NoFlags):
    """How to speak and how to deliver it. Unknown fields are ignored, because clients send what other servers know.

    A field that is null has its default, because some clients send all fields that they know.
    """

    model_config = ConfigDict(populate_by_name=True, allow_inf_nan=False)

    model: str | None = Field(None, description="A model of GET /v1/models; any other name, such as tts-1, lets the gateway choose.")
    voice: str | VoiceId | None = Field(
        None,
        validation_alias=AliasChoices("voice", "speaker"),
        description="A voice of GET /v1/audio/voices, or one of OpenAI's names; by default the model's first.",
    )
    instructions: str | None = Field(
        None, validation_alias=AliasChoices("instructions", "instruct"), description="How to speak, in words; for VoiceDesign the voice."
    )
    response_format: Format = Field("mp3", description="pcm is signed 16-bit little-endian, mono; mulaw and alaw are at 8 kHz.")
    speed: float = Field(1.0, ge=0.25, le=4.0, description="Faster or slower, at the same pitch.")
    volume_db: float = Field(0.0, ge=-40.0, le=20.0, description="Louder or softer; what is too loud is cut off.")
    loudness: float | Literal["voice"] | None = Field(
        None, description="LUFS, -40 to -5, that the voice is brought to once the server has heard a whole utterance; voice: -16."
    )
    trim_silence: bool = Field(False, description="Leave out the silence before the first sound.")
    text_format: Literal["plain", "ssml", "dialogue"] = Field(
        "plain", description="How the text is written; dialogue: a JSON list of entries."
    )
    long_form: bool = Field(False, description="Cut the text into pieces of whole sentences; for long texts.")
    lexicon: dict[str, str] | None = Field(None, description="Words and their spellings, for words that are said wrong.")
    normalize_text: bool = Field(False, description="Write numbers, dates, times, amounts, units and addresses as words.")
    sentence_pause_ms: int | None = Field(None, ge=0, le=60_000, description="Silence between sentences, with long_form, SSML, dialogues.")
    paragraph_pause_ms: int | None = Field(None, ge=0, le=60_000, description="Silence between paragraphs, with long_form and SSML.")
    sample_rate: int | None = Field(None, ge=8000, le=48000, description="In Hz; by default 24000, of mulaw and alaw 8000.")
    bit_rate: int | None = Field(None, ge=6000, le=320_000, description="In bit/s, of mp3, opus and aac; by default 64000.")
    language: str | None = Field(
        None, validation_alias=AliasChoices("language", "lang_code"), description="english, en, en-GB, ..; by default found in the text."
    )
    task_type: str | None = Field(None, description="CustomVoice, Base or VoiceDesign: a model of this kind.")
    ref_audio: str | None = Field(None, description="The voice to clone: the content of an audio file, as a data URL or base64.")
    ref_text: str | None = Field(None, description="The words of ref_audio.")
    x_vector_only_mode: bool | None = Field(None, description="Clone the timbre alone; needs no ref_text.")
    max_new_tokens: int | None = Field(None, ge=1, description="Cut the speech after so many frames of 80 ms.")
    initial_codec_chunk_frames: int | None = Field(None, ge=0, description="Frames in the first chunk; 0: the server's own.")
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    do_sample: bool | None = None
    subtalker_temperature: float | None = None
    subtalker_top_k: int | None = None
    subtalker_top_p: float | None = None
    subtalker_dosample: bool | None = None
    seed: int | None = Field(None, description="The same seed gives the same speech; -1 is any.")
    on_runaway: Literal["stop", "retry", "off"] | None = Field(
        None, description="What becomes of speech that stays silent or repeats itself; by default the server's choice."
    )
    non_streaming_mode: bool | None = Field(None, description="false feeds the text while audio comes out.")
    timestamps: Literal["none", "word"] | None = Field(None, description="word: events (sse) and messages have the times of words.")

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, fields: Any) -> Any:
        return {name: value for name, value in fields.items() if value is not None} if isinstance(fields, dict) else fields

    @field_validator("task_type")
    @classmethod
    def _is_task(cls, task: str | None) -> str | None:
        name = next((name for name in TASKS if task and name.lower() == task.lower()), None)
        if task and name is None:
            raise PydanticCustomError("literal_error", f"Input should be one of {', '.join(TASKS)}")
        return name

    @property
    def voice_name(self) -> str | None:
        """The voice that is asked for."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice

    @property
    def asked_rate(self) -> int:
        """The sample rate of the response in Hz."""
        return self.sample_rate or FORMATS[self.response_format].default_rate

    def options(self) -> RequestOptions:
        """The options of the request to the server, without the voice. Decodes `ref_audio`, which takes a while.

        Samples come at the rate of the encoder.

        Raises:
            ApiError: ref_audio holds no recording, or the lexicon is too long.
        """
        if self.lexicon and (length := len(json.dumps(self.lexicon))) > MOST_LEXICON:
            message = f"lexicon: it has {length} characters as ASCII JSON; allowed: {MOST_LEXICON}"
            raise ApiError(400, message, param="lexicon", code="string_above_max_length")
        sampling: dict[str, Any] = {name: getattr(self, name) for name in SAMPLING} | {"max_frames": self.max_new_tokens}
        options = RequestOptions(
            language=language_of(self.language),
            instruct=self.instructions or None,
            sampling={name: value for name, value in sampling.items() if value is not None},
            reference_text=self.ref_text or None,  # some clients send all fields; these say nothing
            x_vector_only=self.x_vector_only_mode or None,
            on_runaway=self.on_runaway,
        )
        rate = encoder_rate(self.response_format, self.asked_rate)
        options |= RequestOptions(
            speed=None if self.speed == 1.0 else self.speed,
            volume_db=self.volume_db or None,
            loudness=self.loudness,
            trim_silence=self.trim_silence or None,
            timestamps=self.timestamps,
            sample_rate=None if rate == CODEC_RATE else rate,
            text_format=None if self.text_format == "plain" else self.text_format,
            long_form=self.long_form or None,
            lexicon=self.lexicon,
            normalize_text=self.normalize_text or None,
            sentence_pause_ms=self.sentence_pause_ms,
            paragraph_pause_ms=self.paragraph_pause_ms,
        )
        if first := self.initial_codec_chunk_frames:
            options["chunk_frames"] = [first, *(frames for frames in RAMP if frames > first)]
        if self.ref_audio is not None:
            clip = recording_of(self.ref_audio, "ref_audio")
            options |= RequestOptions(reference_audio=clip.audio, reference_sample_rate=clip.sample_rate)
        return options


class SpeechRequest(SpeechOptions):
    """One utterance."""

    input: str = Field(validation_alias=AliasChoices("input", "text"), min_length=1, description="The text to speak.")
    stream: bool = Field(True, description="false: one body with its length, and the header X-Finish-Reason.")
    stream_format: Literal["audio", "sse"] = Field("audio", description="sse: events with base64 audio.")
