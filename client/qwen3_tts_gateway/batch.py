"""POST /v1/audio/speech/batch: several utterances in one answer, spoken at the same time."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

from fastapi import APIRouter, Request
from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from qwen3_tts_client.errors import Qwen3TTSClientError
from qwen3_tts_gateway.context import RequestContext, current_context, set_context
from qwen3_tts_gateway.delivery import encoded, encoding_of
from qwen3_tts_gateway.errors import ApiError, api_error
from qwen3_tts_gateway.gateway import Gateway
from qwen3_tts_gateway.openapi import ERRORS
from qwen3_tts_gateway.settings import MOST_ITEMS
from qwen3_tts_gateway.speech_request import SpeechOptions, SpeechRequest

router = APIRouter(tags=["speech"])


class BatchItem(SpeechOptions):
    """One utterance; a field that it leaves out is the batch's."""

    input: str = Field(validation_alias=AliasChoices("input", "text"), min_length=1, description="The text to speak.")


class BatchRequest(SpeechOptions):
    """Utterances, and the fields that they share."""

    items: list[BatchItem] = Field(min_length=1, max_length=MOST_ITEMS)


class BatchResult(BaseModel):
    """One utterance's audio or error."""

    model_config = ConfigDict(extra="forbid")

    index: int
    status: str = Field(description="success or error")
    audio_data: str | None = Field(default=None, description="The audio file in base64.")
    media_type: str | None = None
    finish_reason: str | None = None
    error: dict[str, Any] | None = Field(default=None, description="As in an answer with an error.")


class BatchAnswer(BaseModel):
    """The results in the order of the items."""

    id: str
    results: list[BatchResult]
    total: int
    succeeded: int
    failed: int


@router.post("/v1/audio/speech/batch", responses=ERRORS)
async def create_batch(request: Request, body: BatchRequest) -> BatchAnswer:
    """Speak several texts. One that fails does not disturb the others."""
    gateway: Gateway = request.app.state.gateway
    most = gateway.settings.max_batch
    if len(body.items) > most:
        raise ApiError(400, f"items: {len(body.items)} are not allowed; allowed: 1 to {most}", param="items", code="invalid_value")
    shared = body.model_dump(exclude_unset=True, exclude={"items"})
    requests = [SpeechRequest.model_validate(shared | item.model_dump(exclude_unset=True)) for item in body.items]
    context = current_context()
    context.facts["items"] = len(requests)
    tasks = [asyncio.create_task(_speak(gateway, index, item, context)) for index, item in enumerate(requests)]
    try:
        results = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
    good = sum(result.status == "success" for result in results)
    return BatchAnswer(id=context.request_id, results=results, total=len(results), succeeded=good, failed=len(results) - good)


async def _speak(gateway: Gateway, index: int, request: SpeechRequest, batch: RequestContext) -> BatchResult:
    context = RequestContext(f"{batch.request_id}-{index}", batch.caller)
    set_context(context)  # of this task alone
    try:
        encoding = encoding_of(request, is_whole=True)
        chunks = gateway.stream(request)
        parts = [part async for part in encoded(gateway, encoding, await anext(chunks), chunks)]
    except (ApiError, Qwen3TTSClientError) as error:
        answer = error if isinstance(error, ApiError) else api_error(error)
        return BatchResult(index=index, status="error", error=answer.body["error"])
    audio = base64.b64encode(b"".join(parts)).decode()
    reason = context.facts["finish_reason"]
    return BatchResult(index=index, status="success", audio_data=audio, media_type=encoding.media_type, finish_reason=reason)
