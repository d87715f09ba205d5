"""The body of POST /v1/audio/speech: OpenAI's fields, the community's, and those of earlier servers of this model."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from qwen3_tts_client.protocol import RequestOptions

Format = Literal["mp3", "opus", "aac", "flac", "wav", "pcm", "mulaw", "alaw"]
# Fields of a request that are keys of the server's sampling_parameters.
SAMPLING = ("temperature", "top_k", "top_p", "repetition_penalty", "do_sample", "seed")


class VoiceId(BaseModel):
    """OpenAI's other way to name a voice."""

    id: str


class SpeechRequest(BaseModel):
    """One utterance and how it is delivered. Unknown fields are ignored, because clients send what other servers know."""

    model_config = ConfigDict(populate_by_name=True)

    input: str = Field(validation_alias=AliasChoices("input", "text"), min_length=1)
    model: str | None = None
    voice: str | VoiceId | None = Field(None, validation_alias=AliasChoices("voice", "speaker"))
    instructions: str | None = None
    response_format: Format = "mp3"
    speed: float = Field(1.0, ge=0.25, le=4.0)
    stream_format: Literal["audio", "sse"] = "audio"
    stream: bool = True
    sample_rate: int | None = Field(None, ge=8000, le=48000)
    language: str | None = Field(None, validation_alias=AliasChoices("language", "lang_code"))
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    do_sample: bool | None = None
    seed: int | None = None
    max_new_tokens: int | None = None

    @property
    def voice_name(self) -> str | None:
        """The voice that is asked for."""
        return self.voice.id if isinstance(self.voice, VoiceId) else self.voice

    def options(self) -> RequestOptions:
        """The options of the request to the server."""
        sampling: dict[str, Any] = {name: getattr(self, name) for name in SAMPLING}
        sampling["max_frames"] = self.max_new_tokens
        return RequestOptions(
            voice=self.voice_name,
            language=self.language,
            instruct=self.instructions,
            sampling={name: value for name, value in sampling.items() if value is not None},
        )
