"""WyomingVoices: the voices and languages of the Triton servers, in Wyoming's words."""

from __future__ import annotations

from wyoming.tts import SynthesizeVoice

from qwen3_tts_client.errors import InvalidRequest
from qwen3_tts_client.voices import VoiceList
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.routing import Route

# Wyoming's clients know a language by its code, the model by its name.
CODES = {
    "chinese": "zh",
    "english": "en",
    "french": "fr",
    "german": "de",
    "italian": "it",
    "japanese": "ja",
    "korean": "ko",
    "portuguese": "pt",
    "russian": "ru",
    "spanish": "es",
}


class WyomingVoices:
    """What `info` lists, and what a request's voice means. Use it inside one running event loop."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._default_model = gateway.settings.model
        self._model_of: dict[str, str] = {}  # by voice, as it was last listed

    async def languages_by_name(self) -> list[tuple[str, list[str]]]:
        """Each voice with the codes of the languages it speaks, as the servers have them now.

        Raises:
            Qwen3TTSClientError: no server answers.
        """
        languages = _languages(await self._listing())
        return [(name, [CODES.get(language, language) for language in languages.get(model, ())]) for name, model in self._model_of.items()]

    async def chosen(self, voice: SynthesizeVoice | None) -> tuple[Route, str | None]:
        """Who speaks as a request wants, and in which language; None: that of the text.

        Raises:
            InvalidRequest: the servers have no such voice or language.
        """
        if voice is None:
            return Route(self._default_model, None, ""), None
        if voice.speaker is not None:
            raise InvalidRequest("speaker: no voice of this server has several speakers; give the voice's name alone", field="speaker")
        if voice.name is not None:
            if voice.name not in self._model_of:
                await self._listing()
            if voice.name not in self._model_of:
                known = ", ".join(self._model_of) or "none, this server has no voices"
                raise InvalidRequest(f"voice: {voice.name[:100]!r} is unknown; allowed: {known}", field="voice")
            return Route(self._model_of[voice.name], voice.name, ""), None
        if voice.language is not None:
            return Route(self._default_model, None, ""), await self._language(voice.language)
        return Route(self._default_model, None, ""), None

    async def _language(self, asked: str) -> str:
        """The model's name of a language that is given as a code ("en", "en-GB") or as that name."""
        allowed = _languages(await self._listing()).get(self._default_model, ())
        code = asked.replace("_", "-").split("-")[0].lower()
        for name in allowed:
            if code in (CODES.get(name), name):
                return name
        known = ", ".join(CODES.get(name, name) for name in allowed)
        raise InvalidRequest(f"language: {asked[:100]!r} is unknown; allowed: {known}", field="language")

    async def _listing(self) -> VoiceList:
        listing = await self._gateway.voices(fresh=True)
        self._model_of = {
            voice.name: self._default_model if self._default_model in voice.models else voice.models[0]
            for voice in listing.voices
            if voice.models
        }
        return listing


def _languages(listing: VoiceList) -> dict[str, tuple[str, ...]]:
    """By model, the names of its languages."""
    return {model.name: model.languages for model in listing.models}
