"""Dialogue: a JSON list of entries, each with its text and its voice."""

from __future__ import annotations

import re
from typing import Annotated

import msgspec

from engine_lib.errors import InvalidRequestError
from engine_lib.speech.audio.settings import MAX_SPEED, MAX_VOLUME, MIN_SPEED, MIN_VOLUME
from engine_lib.speech.blend import MAX_LENGTH
from engine_lib.speech.checks import is_blank
from engine_lib.speech.languages import name_of
from engine_lib.speech.pieces import Border
from engine_lib.speech.reading import Passage, Style
from engine_lib.speech.text_options import MAX_PAUSE_MS
from engine_lib.speech.written import Written

FORM = '[{"voice": "ada", "text": "Hello."}, {"voice": "ben", "text": "Hello, Ada.", "pause_ms": 300}]'
_PLACE = re.compile(r" - at `\$(?:\[(\d+)\])?(?:\.(\w+))?`$")


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    text: Annotated[str, msgspec.Meta(min_length=1)]
    voice: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_LENGTH)] | None = None
    pause_ms: Annotated[int, msgspec.Meta(ge=0, le=MAX_PAUSE_MS)] | None = None
    language: Annotated[str, msgspec.Meta(max_length=256)] | None = None
    instruct: str | None = None
    speed: Annotated[float, msgspec.Meta(ge=MIN_SPEED, le=MAX_SPEED)] = 1.0
    volume_db: Annotated[float, msgspec.Meta(ge=MIN_VOLUME, le=MAX_VOLUME)] = 0.0


_DECODER = msgspec.json.Decoder(list[_Entry])


def read_dialogue(text: str, max_instruct_length: int) -> list[Passage]:
    """The passages of a dialogue, one an entry. Indices count the characters of the texts of all entries, one after the other.

    Raises:
        InvalidRequestError: it is not of the form of FORM; the message names the entry.
    """
    entries = _decoded(text)
    passages, begin = [], 0
    for number, entry in enumerate(entries, 1):
        if is_blank(entry.text):
            raise InvalidRequestError("text", f"entry {number}: text is empty; give at least one word")
        if entry.instruct is not None and len(entry.instruct) > max_instruct_length:
            problem = f"instruct has {len(entry.instruct)} characters; at most {max_instruct_length} are allowed"
            raise InvalidRequestError("text", f"entry {number}: {problem}")
        style = Style(
            voice=entry.voice,
            language=None if entry.language is None else name_of(entry.language),
            instruct=entry.instruct,
            speed=entry.speed,
            volume_db=entry.volume_db,
        )
        passages.append(Passage(Written.whole(entry.text, begin), style, entry.pause_ms, Border.SENTENCE))
        begin += len(entry.text)
    return passages


def _decoded(text: str) -> list[_Entry]:
    try:
        entries = _DECODER.decode(text)
    except msgspec.ValidationError as error:
        problem = str(error)
        place = _PLACE.search(problem)
        problem = _PLACE.sub("", problem)
        if place is None or place[1] is None:
            raise InvalidRequestError("text", f"is no dialogue ({problem:.200}); give a list, as {FORM}") from None
        where = f"entry {int(place[1]) + 1}" + (f", {place[2]}" if place[2] else "")
        allowed = ", ".join(_Entry.__struct_fields__)
        raise InvalidRequestError("text", f"{where}: {problem:.200}; allowed in an entry: {allowed}") from None
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidRequestError("text", f"is not valid JSON ({error}); give a list, as {FORM}") from None
    if not entries:
        raise InvalidRequestError("text", f"is a dialogue without entries; give a list, as {FORM}")
    return entries
