"""Which ensemble and which voice a request gets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from qwen3_tts_client.voices import Voice, VoiceList
from qwen3_tts_gateway.errors import ApiError
from qwen3_tts_gateway.settings import GatewaySettings
from qwen3_tts_gateway.speech_request import TASKS, SpeechRequest
from qwen3_tts_gateway.voice_names import names_in, voice_of

BASE, DESIGN = TASKS["Base"], TASKS["VoiceDesign"]


@dataclass(frozen=True)
class Route:
    """Who speaks.

    Attributes:
        model: the ensemble.
        voice: of it; None: its default, or none at all.
        kind: of its checkpoint; "" if the server does not say.
    """

    model: str
    voice: str | None
    kind: str


def route(request: SpeechRequest, found: VoiceList, settings: GatewaySettings) -> Route:
    """Choose.

    The model: the request's if it is served; else one that has the voice; with a reference one that clones; else the default. A model
    of another name (`tts-1`) says nothing. A reference or a design is a voice of its own: a name that the model does not have is then
    left out, because OpenAI's clients always send one.

    Raises:
        ApiError: a voice is to be designed, and no model does that. Another one would speak, with a voice of its own.
    """
    kinds = {model.name: model.kind for model in found.models}
    by_name = {voice.name: voice for voice in found.voices}
    voice = voice_of(request.voice_name or "", by_name, settings.voice_names)
    models = _models_with(names_in(voice, by_name), by_name) if voice is not None else ()
    if request.model in kinds:
        model = str(request.model)
    elif wanted := BASE if request.ref_audio is not None else TASKS.get(request.task_type or ""):
        if wanted == DESIGN and kinds and DESIGN not in kinds.values():
            message = "task_type: no model here designs voices; leave it out, or serve a VoiceDesign checkpoint"
            raise ApiError(400, message, param="task_type", code="invalid_value")
        model = next((name for name, kind in kinds.items() if kind == wanted), settings.model)
    elif models and settings.model not in models:
        model = models[0]
    else:
        model = settings.model if settings.model in kinds or not kinds else next(iter(kinds))
    kind = kinds.get(model, "")
    if request.ref_audio is not None or kind == DESIGN:
        voice = voice if model in models else None
    elif kind == BASE and voice is None:
        voice = next((stored.name for stored in found.voices if model in stored.models), None)
    return Route(model, voice, kind)


def _models_with(names: list[str], by_name: Mapping[str, Voice]) -> tuple[str, ...]:
    """The models that speak with all of these voices."""
    first, *others = (by_name[name].models if name in by_name else () for name in names)
    return tuple(model for model in first if all(model in models for models in others))
