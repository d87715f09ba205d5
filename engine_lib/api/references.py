"""VoiceReferences: voice clone prompts from references of any form, or from the store."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import as_completed
from contextlib import ExitStack
from dataclasses import fields
from typing import Any, TypeVar

from engine_lib.api.columns import check_string, entries, listed
from engine_lib.api.official import flag
from engine_lib.api.reference_input import FIELD, ReferenceInput, read_reference_input
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.speech.checks import is_blank
from engine_lib.speech.lexicon import NO_LEXICON, Lexicon
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.library import VoiceLibrary

T = TypeVar("T")
VoiceClonePrompt = VoiceClonePromptItem | list[VoiceClonePromptItem] | Mapping[str, list[Any]]


class VoiceReferences:
    """The voice library of a base checkpoint, with the arguments and errors of the official package."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Load the encoders.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
        """
        no_store = "no voices are stored; load the checkpoint with the option voice_store=FOLDER"
        self._library = VoiceLibrary(checkpoint, config, no_store=no_store)

    def prompts(
        self,
        ref_audio: ReferenceInput | list[ReferenceInput],
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
    ) -> list[VoiceClonePromptItem]:
        """See Qwen3TTS.create_voice_clone_prompt."""
        audios = ref_audio if isinstance(ref_audio, list) else [ref_audio]
        if not audios:
            raise InvalidRequestError(FIELD, "is an empty list; give at least one reference")
        texts = _one_each("ref_text", ref_text, len(audios))
        modes = [flag("x_vector_only_mode", mode) for mode in _one_each("x_vector_only_mode", x_vector_only_mode, len(audios))]
        for text, x_vector_only in zip(texts, modes, strict=True):
            check_string("ref_text", text)
            if not x_vector_only and (text is None or is_blank(text)):
                raise InvalidRequestError("ref_text", "is missing; give the words of each reference, or set x_vector_only_mode")
        recordings = [read_reference_input(audio) for audio in audios]
        with ExitStack() as stack:
            answers = []
            for recording, text, x_vector_only in zip(recordings, texts, modes, strict=True):
                answer = self._library.encode(*recording, x_vector_only=x_vector_only, reference_text=text, field=FIELD)
                stack.callback(answer.cancel)  # if one is refused, the others are not needed
                answers.append(answer)
            for answer in as_completed(answers):
                answer.result()  # raises the first error without waiting for the others
            return [answer.result() for answer in answers]

    def stored(self, name: str) -> VoiceClonePromptItem:
        """The voice that is stored under `name`.

        Raises:
            InvalidRequestError: there is no store, no such voice, or it does not fit the checkpoint.
        """
        return self._library.load(name)

    def lexicon(self, name: str | None) -> Lexicon:
        """The lexicon of the voice that is stored under `name`; empty if it has none, or there is no such voice."""
        return self._library.lexicon(name) if name else NO_LEXICON

    def shutdown(self) -> None:
        """Stop the encoder; references that wait end with an error."""
        self._library.shutdown()


def voice_prompt_items(voice_clone_prompt: VoiceClonePrompt) -> list[VoiceClonePromptItem]:
    """The items of a `voice_clone_prompt`: an item, a list of them, or the official package's dict of lists.

    Items may be the official package's own.

    Raises:
        InvalidRequestError: it has another form.
    """
    if isinstance(voice_clone_prompt, Mapping):
        names = ("ref_code", "ref_spk_embedding", "x_vector_only_mode", "icl_mode")
        missing = [name for name in names if name not in voice_clone_prompt]
        if missing:
            raise InvalidRequestError("voice_clone_prompt", f"is a dict without {', '.join(missing)}; add them")
        columns = [voice_clone_prompt[name] for name in names]
        for name, column in zip(names, columns, strict=True):
            if not isinstance(column, (list, tuple)):
                raise InvalidRequestError(
                    "voice_clone_prompt", f"has a {type(column).__name__} as {name}; give a list with one entry a text"
                )
        texts = voice_clone_prompt.get("ref_text") or [None] * len(columns[0])
        if len({len(column) for column in (*columns, texts)}) > 1:
            raise InvalidRequestError("voice_clone_prompt", "is a dict of lists of different lengths; give one entry a text")
        return [VoiceClonePromptItem(*row) for row in zip(*columns, texts, strict=True)]
    return [_own_item(item) for item in entries(voice_clone_prompt)]


def _own_item(item: Any) -> VoiceClonePromptItem:
    """`item`, also if it is the official package's class, which has the same fields."""
    if isinstance(item, VoiceClonePromptItem):
        return item
    names = [spec.name for spec in fields(VoiceClonePromptItem)]
    if not all(hasattr(item, name) for name in names):
        raise InvalidRequestError("voice_clone_prompt", f"holds a {type(item).__name__}; give what create_voice_clone_prompt gave")
    return VoiceClonePromptItem(**{name: getattr(item, name) for name in names})


def _one_each(field: str, value: T | list[T], count: int) -> list[T]:
    """`value` for each of `count` references; as in the official package, a list of one is not repeated."""
    held = listed(value)
    values: list[T] = held if isinstance(held, list) else [held] * count
    if len(values) != count:
        raise InvalidRequestError(field, f"has {len(values)} entries for {count} references; give one value, or a list of {count}")
    return values
