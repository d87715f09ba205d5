"""Built-in and stored voices of a server, through its control model `voices`."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError, StreamFailed, error_from_rpc
from qwen3_tts_client.lifetime import Lifetime
from qwen3_tts_client.wire import add_reference, add_string, add_timeout, checked_timeout, read_string

if TYPE_CHECKING:
    from tritonclient.grpc import service_pb2_grpc

MODEL = "voices"
OTHER_VERSION = "is it of this project, of the same version?"


@dataclass(frozen=True, kw_only=True)
class Voice:
    """One voice. A field is None if a built-in speaker does not have it, or if only `show` returns it.

    Attributes:
        name: value of `voice` in a request.
        source: "built-in" or "stored".
        models: ensembles that speak with it.
        created: date and time, UTC, ISO 8601.
        made_by: the checkpoint that encoded it.
        x_vector_only: True: only its timbre is cloned; False: its reference is continued, in context.
        reference_seconds, reference_sample_rate: of the recording it was made from.
        reference_text, consent: as they were given; only from `show`.
        blend: the stored voices it was mixed of and their shares, as in "anna:0.7+ben:0.3".
        lexicon: words and their spellings, for words that it says wrong; only from `show`.
        lexicon_words: how many these are; None if there are none.
    """

    name: str
    source: str
    models: tuple[str, ...]
    created: str | None = None
    made_by: str | None = None
    x_vector_only: bool | None = None
    reference_seconds: float | None = None
    reference_sample_rate: int | None = None
    reference_text: str | None = None
    consent: str | None = None
    blend: str | None = None
    lexicon: Mapping[str, str] | None = None
    lexicon_words: int | None = None

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Voice:
        """The voice that the server describes; fields unknown to this client are ignored."""
        known = {spec.name: values[spec.name] for spec in fields(cls) if spec.name in values}
        return cls(**known | {"models": tuple(values["models"])})


@dataclass(frozen=True)
class ServedModel:
    """One ensemble that speaks.

    Attributes:
        name: of the ensemble; `model` of a client.
        kind: of its checkpoint: "custom_voice", "voice_design" or "base"; only the last clones voices.
        languages: that its checkpoint names, beside "auto".
    """

    name: str
    kind: str
    languages: tuple[str, ...]


@dataclass(frozen=True)
class VoiceList:
    """All voices of a server.

    Attributes:
        voices: built-in ones first.
        refused: by name, why a stored voice cannot be used.
        has_store: whether voices can be stored.
        models: that speak; none if the server is older than this field.
    """

    voices: tuple[Voice, ...]
    refused: Mapping[str, str]
    has_store: bool
    models: tuple[ServedModel, ...] = ()


class Voices:
    """The voices of one server; `Client.voices`.

    Every method raises InvalidRequest, ServerUnavailable, ServerOverloaded, StreamFailed or RequestTimeout, or their base
    Qwen3TTSClientError if the answer is not this project's; see qwen3_tts_client.errors. `timeout` is in seconds; None or infinity: no
    limit.
    """

    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, url: str, lifetime: Lifetime | None = None) -> None:
        self._stub, self._url, self._lifetime = stub, url, lifetime or Lifetime()

    def list(self, *, timeout: float | None = None) -> VoiceList:
        """All voices, without consents and texts."""
        return _voice_list(self._ask(_request("list"), timeout))

    def show(self, name: str, *, timeout: float | None = None) -> Voice:
        """All facts about one voice."""
        return _voice(self._ask(_request("show", name), timeout))

    def add(
        self,
        name: str,
        audio: npt.NDArray[np.floating[Any]],
        sample_rate: int,
        *,
        consent: str,
        text: str | None = None,
        x_vector_only: bool | None = None,
        model: str | None = None,
        lexicon: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Voice:
        """Store the voice of a recording; the recording itself is not kept.

        Args:
            name: letters a-z, digits, -, _ and dots, 64 at most; upper case becomes lower case.
            audio: float [samples], mono, -1 to 1.
            sample_rate: in Hz.
            consent: the person who agreed that this voice is cloned; kept with it.
            text: the words of the recording; needed unless `x_vector_only`.
            x_vector_only: clone only the timbre.
            model: the ensemble it is for; None: the first of a base checkpoint.
            lexicon: words and their spellings, kept with the voice; a request's own win over them.
        """
        request = _addition(name, audio, sample_rate, consent, text, x_vector_only, model, lexicon)
        return _voice(self._ask(request, timeout))

    def blend(
        self,
        name: str,
        blend: str,
        *,
        consent: str | None = None,
        lexicon: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Voice:
        """Store a blend of stored voices, by their timbre alone.

        Args:
            name: as in `add`.
            blend: 1 to 8 stored voices, as in "anna:0.7+ben:0.3", or "anna+ben" for equal shares.
            consent: None keeps the consents of these voices.
            lexicon: as in `add`; those of the voices are not taken over.
        """
        return _voice(self._ask(_blend(name, blend, consent, lexicon), timeout))

    def remove(self, name: str, *, timeout: float | None = None) -> None:
        """Delete a stored voice."""
        self._ask(_request("remove", name), timeout)

    def _ask(self, request: service_pb2.ModelInferRequest, timeout: float | None) -> dict[str, Any]:
        self._lifetime.check()
        timeout = checked_timeout(timeout)
        add_timeout(request, timeout)
        try:
            return _result(self._stub.ModelInfer(request, timeout=timeout))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._url, 0) from None


class AsyncVoices:
    """Voices for asyncio; `AsyncClient.voices`. Arguments, results and errors are those of Voices."""

    def __init__(self, stub: service_pb2_grpc.GRPCInferenceServiceStub, url: str, lifetime: Lifetime | None = None) -> None:
        self._stub, self._url, self._lifetime = stub, url, lifetime or Lifetime()

    async def list(self, *, timeout: float | None = None) -> VoiceList:
        """As Voices.list."""
        return _voice_list(await self._ask(_request("list"), timeout))

    async def show(self, name: str, *, timeout: float | None = None) -> Voice:
        """As Voices.show."""
        return _voice(await self._ask(_request("show", name), timeout))

    async def add(
        self,
        name: str,
        audio: npt.NDArray[np.floating[Any]],
        sample_rate: int,
        *,
        consent: str,
        text: str | None = None,
        x_vector_only: bool | None = None,
        model: str | None = None,
        lexicon: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Voice:
        """As Voices.add."""
        request = _addition(name, audio, sample_rate, consent, text, x_vector_only, model, lexicon)
        return _voice(await self._ask(request, timeout))

    async def blend(
        self,
        name: str,
        blend: str,
        *,
        consent: str | None = None,
        lexicon: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Voice:
        """As Voices.blend."""
        return _voice(await self._ask(_blend(name, blend, consent, lexicon), timeout))

    async def remove(self, name: str, *, timeout: float | None = None) -> None:
        """As Voices.remove."""
        await self._ask(_request("remove", name), timeout)

    async def _ask(self, request: service_pb2.ModelInferRequest, timeout: float | None) -> dict[str, Any]:
        self._lifetime.check()
        timeout = checked_timeout(timeout)
        add_timeout(request, timeout)
        try:
            return _result(await self._stub.ModelInfer(request, timeout=timeout))
        except grpc.RpcError as error:
            raise error_from_rpc(error, self._url, 0) from None
        except asyncio.CancelledError:
            if not self._lifetime.has_cut():
                raise
            raise StreamFailed(f"{self._url}: the client was closed before the answer came") from None


def _request(action: str, name: str | None = None) -> service_pb2.ModelInferRequest:
    request = service_pb2.ModelInferRequest(model_name=MODEL)
    add_string(request, "action", action)
    if name is not None:
        add_string(request, "name", name)
    return request


def _addition(
    name: str,
    audio: npt.NDArray[np.floating[Any]],
    sample_rate: int,
    consent: str,
    text: str | None,
    x_vector_only: bool | None,
    model: str | None,
    lexicon: Mapping[str, str] | None,
) -> service_pb2.ModelInferRequest:
    request = _request("add", name)
    _add_lexicon(request, lexicon)
    add_string(request, "consent", consent)
    if model is not None:
        add_string(request, "model", model)
    add_reference(request, audio, sample_rate, text, x_vector_only)
    return request


def _blend(name: str, blend: str, consent: str | None, lexicon: Mapping[str, str] | None) -> service_pb2.ModelInferRequest:
    request = _request("blend", name)
    _add_lexicon(request, lexicon)
    add_string(request, "blend", blend)
    if consent is not None:
        add_string(request, "consent", consent)
    return request


def _add_lexicon(request: service_pb2.ModelInferRequest, lexicon: Mapping[str, str] | None) -> None:
    if lexicon is None:
        return
    if not isinstance(lexicon, Mapping):
        kind = type(lexicon).__name__
        raise InvalidRequest(f"lexicon: {kind} is not allowed; give words and their spellings, as a mapping", field="lexicon")
    try:
        text = json.dumps(dict(lexicon), ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise InvalidRequest(f"lexicon: cannot be written as JSON ({error}); give words and their spellings", field="lexicon") from None
    add_string(request, "lexicon", text)


def _result(response: service_pb2.ModelInferResponse) -> dict[str, Any]:
    if not response.raw_output_contents:
        raise Qwen3TTSClientError(f"model {response.model_name!r} gave no output", hint=OTHER_VERSION)
    try:
        result = json.loads(read_string(response.raw_output_contents[0]))
    except ValueError:
        result = None
    if not isinstance(result, dict):
        raise Qwen3TTSClientError(f"model {response.model_name!r} gave no JSON object", hint=OTHER_VERSION)
    return result


def _voice(result: Mapping[str, Any]) -> Voice:
    try:
        return Voice.from_json(result)
    except (KeyError, TypeError) as error:
        raise Qwen3TTSClientError(f"model {MODEL!r} gave another voice than expected: {error!r}", hint=OTHER_VERSION) from None


def _voice_list(result: Mapping[str, Any]) -> VoiceList:
    try:
        voices = tuple(Voice.from_json(values) for values in result["voices"])
        models = tuple(ServedModel(m["name"], m["kind"], tuple(m["languages"])) for m in result.get("models", ()))
        return VoiceList(voices, result["refused"], result["has_store"], models)
    except (KeyError, TypeError) as error:
        raise Qwen3TTSClientError(f"model {MODEL!r} gave another list of voices than expected: {error!r}", hint=OTHER_VERSION) from None
