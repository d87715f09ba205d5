"""RequestVoices: the voice to clone for a request, from the store or from the recording in it."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace

from engine_lib.admission.turn import Turn
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.serving.metrics import Metrics
from engine_lib.serving.parse import Reference, SpeechRequest
from engine_lib.serving.served import ServedCheckpoint, where_to_go
from engine_lib.speech.blend import Blend, is_blend
from engine_lib.speech.lexicon import NO_LEXICON, Lexicon
from engine_lib.speech.script import Script
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.library import VoiceLibrary
from engine_lib.voices.store import VoiceStore

VOICES_OF = {"custom_voice": "built-in speakers", "base": "stored voices"}  # by the kind of a checkpoint


class RequestVoices:
    """The voice library of one talker, with the fields and errors of the server's requests. Nothing here waits for an encoder."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, served: Sequence[ServedCheckpoint]) -> None:
        """
        Raises:
            CheckpointError, ConfigError: the encoders of a base checkpoint or the store do not load.
        """
        self._config, self._served = checkpoint.config, served
        no_store = "this server stores no voices; start it with the option voice_store=FOLDER"
        self._library = VoiceLibrary(checkpoint, config, no_store=no_store)

    def of_request(self, speech: SpeechRequest) -> Reference | VoiceClonePromptItem | None:
        """The stored voice to clone, or the reference to `encode` first; None if the checkpoint clones no voice.

        Raises:
            InvalidRequestError: the request names a voice this checkpoint cannot speak with, or a base checkpoint gets no voice.
        """
        if self._config.kind != "base":
            self._check_built_in(speech.voice)
            return None
        if speech.reference is not None:
            if speech.voice:
                raise InvalidRequestError("voice", "is given with reference_audio; give one of them")
            return speech.reference
        if not speech.voice:
            advice = "give a recording with reference_sample_rate and reference_text, or in voice the name of a stored voice"
            raise InvalidRequestError("reference_audio", f"is missing, and a base checkpoint has no voice of its own; {advice}")
        return self._stored(speech.voice)

    def of_script(self, speech: SpeechRequest, script: Script) -> dict[str | None, Reference | VoiceClonePromptItem | None]:
        """The voices of all lines by their names, as in `of_request`; that of the request, if a line needs it, by None.

        Raises:
            InvalidRequestError: as in `of_request`.
        """
        voices: dict[str | None, Reference | VoiceClonePromptItem | None] = {}
        for line in script.lines:
            if line.voice not in voices:
                named = speech if line.voice is None else replace(speech, voice=line.voice, reference=None)
                with script.errors_of(line):
                    voices[line.voice] = self.of_request(named)
        return voices

    def lexicon(self, name: str | None) -> Lexicon:
        """The lexicon of the voice that a request or a line names; empty if it has none. `of_request` refuses what is no voice."""
        return self._library.lexicon(name) if name and self._config.kind == "base" else NO_LEXICON

    def encode(self, reference: Reference, turn: Turn) -> Future[VoiceClonePromptItem]:
        """Make the voice of a recording; see VoiceLibrary.encode."""
        text, x_vector_only = reference.text, reference.x_vector_only
        return self._library.encode(reference.audio, reference.sample_rate, x_vector_only=x_vector_only, reference_text=text, turn=turn)

    def store(self) -> VoiceStore:
        """The store.

        Raises:
            InvalidRequestError: the server has none.
        """
        return self._library.store

    def add_metrics(self, metrics: Metrics) -> None:
        """Count recordings, if the checkpoint clones voices."""
        if self._config.kind == "base":
            stats = self._library.stats
            metrics.gauge("waiting_references", "Recordings of voices that wait to be encoded", lambda: stats().waiting)
            metrics.total("references_total", "Recordings of voices that requests brought", lambda: stats().num_requests)
            metrics.total("references_encoded_total", "Recordings that were encoded, the others being known", lambda: stats().num_encoded)

    def shutdown(self, timeout: float) -> None:
        """Stop all threads; recordings that wait are answered with an error."""
        self._library.shutdown(timeout)

    def _stored(self, name: str) -> VoiceClonePromptItem:
        try:
            return self._library.load(name)
        except InvalidRequestError as error:
            if not any(checkpoint.kind == "custom_voice" for checkpoint in self._served):
                raise
            elsewhere = f"for a built-in speaker {where_to_go(self._served, 'custom_voice')}"
            raise type(error)("voice", f"{_text(error)}; {elsewhere}") from None

    def _check_built_in(self, voice: str | None) -> None:
        """Refuse a voice that another kind of checkpoint has, and say which model to call. PromptBuilder refuses unknown speakers."""
        if not voice:
            return
        if self._config.kind == "voice_design":
            others = [f"{other.ensemble} ({VOICES_OF[other.kind]})" for other in self._served if other.kind in VOICES_OF]
            advice = f"leave it out and describe the voice in instruct{', or call model ' if others else ''}{' or '.join(others)}"
            raise InvalidRequestError("voice", f"a voice_design checkpoint has no voices by name; {advice}")
        built_in = self._config.talker.speaker_ids
        if voice.lower() in built_in:
            return
        for name in Blend.parse(voice).names if is_blend(voice) else (voice.lower(),):
            if name not in built_in and name in self._library.names():
                elsewhere = where_to_go(self._served, "base")
                raise InvalidRequestError("voice", f"{name[:100]!r} is a stored voice, and this checkpoint clones no voice; {elsewhere}")


def _text(error: InvalidRequestError) -> str:
    return str(error).removeprefix(f"{error.field}: ")
