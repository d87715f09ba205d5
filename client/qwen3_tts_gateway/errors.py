"""Errors as OpenAI's clients read them: a status and {"error": {"message", "type", "param", "code"}}."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import ValidationError
from starlette.exceptions import HTTPException

from qwen3_tts_client.errors import InvalidRequest, Qwen3TTSClientError, RequestTimeout, ServerOverloaded, ServerUnavailable
from qwen3_tts_gateway.logs import LOGGER

RETRY_SECONDS = 1
NO_JSON = "the body is not valid JSON in UTF-8"
NO_ROUTE = "there is no such route; GET /docs lists them. The base URL of OpenAI's clients ends with /v1, that of ElevenLabs' does not"
OBJECTS = ("voice_settings",)  # fields that have fields
NO_OBJECT = ("dict_type", "model_type", "model_attributes_type")  # pydantic's words
# The server's names of fields -> those of a request to the gateway.
FIELDS = {
    "text": "input",
    "instruct": "instructions",
    "max_frames": "max_new_tokens",
    "reference_audio": "ref_audio",
    "reference_sample_rate": "ref_audio",
    "reference_text": "ref_text",
    "x_vector_only": "x_vector_only_mode",
    "chunk_frames": "initial_codec_chunk_frames",
}
STREAMED_FIELDS = {**FIELDS, "text": "text"}  # of a WebSocket's events
ELEVENLABS_FIELDS = {"text": "text", "language": "language_code"}
DIALOGUE_FIELDS = {"text": "inputs", "voice": "inputs", "language": "language_code"}
FIELDS_OF_PATHS = {"/v1/text-to-speech/": ELEVENLABS_FIELDS, "/v1/text-to-dialogue": DIALOGUE_FIELDS}  # by their beginning


class TextTooLong(InvalidRequest):
    """The gateway takes no text of this length."""

    def __init__(self, characters: int, allowed: int) -> None:
        super().__init__(f"text: it has {characters} characters; allowed: {allowed}", field="text")


class ApiError(Exception):
    """An answer other than 2xx.

    Attributes:
        status: HTTP status.
        message: what is wrong, and what is allowed.
        kind: OpenAI's `type`.
        param: the field of the request; None if it is not about one.
        code: a word for programs; None if there is none.
        retry_after: seconds after which the same request may succeed; None if it will not.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        kind: str = "invalid_request_error",
        param: str | None = None,
        code: str | None = None,
        retry_after: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.message, self.kind, self.param, self.code, self.retry_after = status, message, kind, param, code, retry_after

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return {"error": {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        """The whole answer."""
        headers = {} if self.retry_after is None else {"Retry-After": str(max(1, round(self.retry_after)))}
        if self.status == 426:
            headers["Upgrade"] = "websocket"
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        return JSONResponse(self.body, self.status, headers)


def api_error(error: Qwen3TTSClientError, fields: Mapping[str, str] = FIELDS) -> ApiError:
    """The answer for an error of a Triton server; `fields`: its names of fields -> those of the request."""
    if isinstance(error, InvalidRequest):
        param = fields.get(error.field or "", error.field)
        named = f"{error.field}:"
        message = f"{param}:{error.message.removeprefix(named)}" if error.message.startswith(named) else error.message
        code = "string_above_max_length" if isinstance(error, TextTooLong) else "invalid_value"
        return ApiError(400, message, param=param, code=code)
    if isinstance(error, ServerOverloaded):
        return ApiError(503, error.message, kind="server_error", code="overloaded", retry_after=error.retry_after or RETRY_SECONDS)
    if isinstance(error, ServerUnavailable):
        return ApiError(503, error.message, kind="server_error", code="no_server", retry_after=RETRY_SECONDS)
    if isinstance(error, RequestTimeout):
        return ApiError(504, error.message, kind="server_error", code="timeout")
    return ApiError(502, error.message, kind="server_error", code="stream_failed")


def answer_of(error: Exception, fields: Mapping[str, str] = STREAMED_FIELDS) -> ApiError:
    """The answer for any error of an utterance on a WebSocket. A defect of the gateway is logged with its traceback."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Qwen3TTSClientError):
        return api_error(error, fields)
    if isinstance(error, ValidationError):
        return invalid(error.errors())
    LOGGER.error("defect", exc_info=error)
    return _internal()


def _internal() -> ApiError:
    return ApiError(500, "the gateway failed; its log has the reason", kind="server_error", code="internal")


def add_error_handlers(app: FastAPI) -> None:
    """Let every error of `app` leave in OpenAI's shape."""

    @app.exception_handler(ApiError)
    async def _api_error(_request: Request, error: ApiError) -> JSONResponse:
        return error.response()

    @app.exception_handler(Qwen3TTSClientError)
    async def _client_error(request: Request, error: Qwen3TTSClientError) -> JSONResponse:
        fields = next((fields for path, fields in FIELDS_OF_PATHS.items() if request.scope["path"].startswith(path)), FIELDS)
        return api_error(error, fields).response()

    @app.exception_handler(RequestValidationError)
    async def _validation_error(_request: Request, error: RequestValidationError) -> JSONResponse:
        return invalid(error.errors()).response()

    @app.exception_handler(HTTPException)
    async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, ApiError):  # raised while FastAPI reads a body, which would make another error of it
            return error.__cause__.response()
        if isinstance(error.__cause__, (ValueError, RecursionError)):  # FastAPI's reason: not UTF-8, nested too deeply, a number too long
            return ApiError(400, NO_JSON, code="invalid_json").response()
        answer = ApiError(error.status_code, str(error.detail))
        if error.status_code == 404:
            answer = ApiError(404, NO_ROUTE, code="not_found")
        elif error.status_code == 405:
            answer = ApiError(405, f"{request.method} is not allowed here; allowed: {(error.headers or {}).get('Allow', '')}")
        response = answer.response()
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def _defect(_request: Request, _error: Exception) -> JSONResponse:
        return _internal().response()


def invalid(errors: Sequence[Any]) -> ApiError:
    """The first thing that a request's schema does not allow, by pydantic. Values are never quoted, because they may be a user's text."""
    first = errors[0]
    if first["type"] == "json_invalid":
        return ApiError(400, NO_JSON, code="invalid_json")
    path = [str(part) for part in first["loc"] if part not in ("body", "query", "path", "header")]
    # A union has the names of its members behind the field's; the field is what a caller knows.
    depth = 3 if len(path) > 1 and path[1].isdigit() else 2 if path and path[0] in OBJECTS else 1
    field = ".".join(path[:depth]) or None
    if field is None and first["type"] in NO_OBJECT:
        message = "body: it is no JSON object; send one, with the header Content-Type: application/json"
        return ApiError(422, message, code=first["type"])
    if "UploadFile" in first["msg"]:
        return ApiError(422, f"{field}: it is no file; send one, as curl -F {field}=@FILE does", param=field, code="invalid_value")
    return ApiError(422, f"{field or 'body'}: {first['msg']}", param=field, code=first["type"])
