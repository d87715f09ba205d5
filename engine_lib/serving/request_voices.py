"""RequestVoices: the voice each request to a base checkpoint is spoken with: stored, or cloned from the reference it brings."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.serving.metrics import Metrics
from engine_lib.serving.parse import Reference, SpeechRequest
from engine_lib.serving.served import ServedCheckpoint, where_to_go
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.encoder import VoiceEncoder
from engine_lib.voices.reference_audio import checked_reference_audio
from engine_lib.voices.store import VoiceStore

RESAMPLING_THREADS = 2

Voice = VoiceClonePromptItem


class RequestVoices:
    """Voices of one talker. Encoding runs on threads of its own; nothing here waits for it."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, served: Sequence[ServedCheckpoint]) -> None:
        """
        Raises:
            CheckpointError, ConfigError: the encoders of a base checkpoint or the store do not load.
        """
        self._checkpoint, self._config, self._served = checkpoint, config, served
        self._store = VoiceStore.of(config)
        self._encoder = VoiceEncoder(checkpoint, config) if checkpoint.config.kind == "base" else None
        self._pool = ThreadPoolExecutor(RESAMPLING_THREADS, thread_name_prefix="reference")

    def of_request(self, speech: SpeechRequest) -> Reference | Voice | None:
        """The voice to clone: as it is stored, or the reference to `encode` first; None where the checkpoint clones none.

        Raises:
            InvalidRequestError: the request names a voice this checkpoint cannot speak with, or none where it must.
        """
        if self._checkpoint.config.kind != "base":
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

    def encode(self, reference: Reference) -> Future[Voice]:
        """Make the voice of a recording; everything that takes time runs on other threads.

        Returns:
            A future of the voice, or of an InvalidRequestError, OverloadedError, EngineDeadError or Qwen3TTSError.
        """
        answer: Future[Voice] = Future()
        self._pool.submit(self._encode, reference, answer)
        return answer

    def store(self) -> VoiceStore:
        """The store.

        Raises:
            InvalidRequestError: the server has none.
        """
        if self._store is None:
            raise InvalidRequestError("voice", "this server stores no voices; start it with the option voice_store=FOLDER")
        return self._store

    def add_metrics(self, metrics: Metrics) -> None:
        """Count what is encoded, where anything is."""
        if self._encoder is not None:
            stats = self._encoder.stats
            metrics.gauge("waiting_references", "Recordings of voices that wait to be encoded", lambda: stats().waiting)
            metrics.total("references_total", "Recordings of voices that requests brought", lambda: stats().num_requests)
            metrics.total("references_encoded_total", "Recordings that were encoded, the others being known", lambda: stats().num_encoded)

    def shutdown(self, timeout: float) -> None:
        """End; recordings that wait are answered with an error."""
        if self._encoder is not None:
            self._encoder.shutdown(timeout)
        self._pool.shutdown(wait=False)

    def _encode(self, reference: Reference, answer: Future[Voice]) -> None:
        try:
            if self._encoder is None:
                raise InvalidRequestError("reference_audio", f"is given to a checkpoint that clones no voice; {self._base()}")
            audio = checked_reference_audio(
                reference.audio,
                reference.sample_rate,
                min_seconds=self._config.reference_min_seconds,
                max_seconds=self._config.reference_max_seconds,
            )
            voice = self._encoder.encode(audio, x_vector_only=reference.x_vector_only, reference_text=reference.text)
        except Exception as error:
            answer.set_exception(error)
        else:
            voice.add_done_callback(partial(_pass_on, answer))

    def _stored(self, name: str) -> Voice:
        try:
            return self.store().load(name, self._checkpoint.config)
        except InvalidRequestError as error:
            if not any(checkpoint.kind == "custom_voice" for checkpoint in self._served):
                raise
            elsewhere = f"for a built-in speaker {where_to_go(self._served, 'custom_voice')}"
            raise InvalidRequestError("voice", f"{_text(error)}; {elsewhere}") from None

    def _check_built_in(self, voice: str | None) -> None:
        """Say where to go with a voice that another kind of checkpoint has; whether a speaker exists is PromptBuilder's to say."""
        if not voice:
            return
        if self._checkpoint.config.kind == "voice_design":
            advice = f"describe it in instruct, or for a built-in speaker {where_to_go(self._served, 'custom_voice')}"
            raise InvalidRequestError("voice", f"a voice_design checkpoint has no voices by name; {advice}")
        is_built_in = voice.lower() in self._checkpoint.config.talker.speaker_ids
        if not is_built_in and self._store is not None and voice.lower() in self._store.names():
            raise InvalidRequestError("voice", f"{voice[:100]!r} is a stored voice, and this checkpoint clones no voice; {self._base()}")

    def _base(self) -> str:
        return where_to_go(self._served, "base")


def _pass_on(answer: Future[Voice], voice: Future[Voice]) -> None:
    error = voice.exception()
    if error is None:
        answer.set_result(voice.result())
    else:
        answer.set_exception(error)


def _text(error: InvalidRequestError) -> str:
    return str(error).removeprefix(f"{error.field}: ")
