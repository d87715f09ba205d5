"""VoiceReferences: voices to clone as voice clone prompts, from reference audio in any form a caller may have it, or from the store."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TypeVar

from engine_lib.api.reference_input import FIELD, ReferenceInput, read_reference_input
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.encoder import VoiceEncoder
from engine_lib.voices.reference_audio import checked_reference_audio
from engine_lib.voices.store import VoiceStore

T = TypeVar("T")


class VoiceReferences:
    """The in-process way to the voice encoder of a base checkpoint, and to the voices stored for it."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Load the encoders.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
        """
        self._config, self._store = checkpoint.config, VoiceStore.of(config)
        self._min_seconds, self._max_seconds = config.reference_min_seconds, config.reference_max_seconds
        self._encoder = VoiceEncoder(checkpoint, config)

    def prompts(
        self,
        ref_audio: ReferenceInput | list[ReferenceInput],
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
    ) -> list[VoiceClonePromptItem]:
        """See Qwen3TTS.create_voice_clone_prompt."""
        audios = ref_audio if isinstance(ref_audio, list) else [ref_audio]
        texts = _one_each("ref_text", ref_text, len(audios))
        modes = _one_each("x_vector_only_mode", x_vector_only_mode, len(audios))
        for text, x_vector_only in zip(texts, modes, strict=True):
            if not x_vector_only and not (isinstance(text, str) and text.strip()):
                raise InvalidRequestError("ref_text", "is missing; give the words of each reference, or set x_vector_only_mode")
        recordings = [
            checked_reference_audio(*read_reference_input(audio), min_seconds=self._min_seconds, max_seconds=self._max_seconds, field=FIELD)
            for audio in audios
        ]
        with ExitStack() as stack:
            answers = []
            for recording, text, x_vector_only in zip(recordings, texts, modes, strict=True):
                answer = self._encoder.encode(recording, x_vector_only=bool(x_vector_only), reference_text=text)
                stack.callback(answer.cancel)  # when one fails or is refused, the others are for nobody
                answers.append(answer)
            return [answer.result() for answer in answers]

    def stored(self, name: str) -> VoiceClonePromptItem:
        """The voice that is stored under `name`.

        Raises:
            InvalidRequestError: there is no store, no such voice, or it does not fit the checkpoint.
        """
        if self._store is None:
            raise InvalidRequestError("voice", "no voices are stored; load the checkpoint with the option voice_store=FOLDER")
        if not isinstance(name, str):
            raise InvalidRequestError("voice", f"is a {type(name).__name__}; give the name of a stored voice")
        return self._store.load(name, self._config)

    def shutdown(self) -> None:
        """Stop the encoder; references that wait end with an error."""
        self._encoder.shutdown()


def _one_each(field: str, value: T | list[T], count: int) -> list[T]:
    """`value` for each of `count` references; as in the official package, a list of one is not spread."""
    values = value if isinstance(value, list) else [value] * count
    if len(values) != count:
        raise InvalidRequestError(field, f"has {len(values)} entries for {count} references; give one value, or a list of {count}")
    return values
