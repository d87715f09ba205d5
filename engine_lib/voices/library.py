"""VoiceLibrary: the voices that one checkpoint can clone, from the store or from recordings.

The in-process API and the server each have one. Recordings are checked and resampled on a small pool and encoded on the encoder's
thread, so a caller never waits here: it gets one future, which the pool refuses or the encoder answers. In both places recordings
wait as in FairQueue, by size.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.admission.fair_queue import FairQueue
from engine_lib.admission.turn import DEFAULT_TURN, Turn
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.errors import EngineDeadError, InvalidRequestError
from engine_lib.speech.blend import Blend, is_blend, of_part
from engine_lib.speech.lexicon import NO_LEXICON, Lexicon
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.encoder import VoiceEncoder, VoiceEncoderStats
from engine_lib.voices.reference_audio import checked_reference_audio
from engine_lib.voices.store import VoiceStore

RESAMPLING_THREADS = 2


class VoiceLibrary:
    """The store, the checks of recordings and, for a base checkpoint, the encoders. Any thread may call it."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, *, no_store: str) -> None:
        """Open the store and load the encoders.

        Args:
            no_store: text of the error if a stored voice is asked for and the options name no store.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
        """
        self._config, self._no_store = checkpoint.config, no_store
        self._store = VoiceStore.of(config)
        self._min_seconds, self._max_seconds = config.reference_min_seconds, config.reference_max_seconds
        self._encoder = VoiceEncoder(checkpoint, config) if checkpoint.config.kind == "base" else None
        self._lock = threading.Lock()
        self._waiting: FairQueue[Callable[[], None]] = FairQueue(by_size=True)
        self._pool = ThreadPoolExecutor(RESAMPLING_THREADS, thread_name_prefix="reference")

    # stored voices

    @property
    def store(self) -> VoiceStore:
        """The store.

        Raises:
            InvalidRequestError: there is none.
        """
        if self._store is None:
            raise InvalidRequestError("voice", self._no_store)
        return self._store

    def names(self) -> list[str]:
        """Names of the stored voices; empty without a store.

        Raises:
            Qwen3TTSError: the folder is gone.
        """
        return [] if self._store is None else self._store.names()

    def load(self, name: str) -> VoiceClonePromptItem:
        """A stored voice, or a blend of stored voices by their speaker embeddings alone (engine_lib/speech/blend.py).

        Raises:
            InvalidRequestError: there is no store, no such voice, or the voice does not fit the checkpoint.
        """
        store = self.store
        if not is_blend(name):
            return store.load(name, self._config)
        blend, embeddings = Blend.parse(name), []
        for part in blend.names:
            try:
                embeddings.append(store.load(part, self._config).ref_spk_embedding.numpy())
            except InvalidRequestError as error:
                raise of_part(error) from None
        return VoiceClonePromptItem(None, torch.from_numpy(blend.mix(embeddings)), x_vector_only_mode=True, icl_mode=False)

    def lexicon(self, name: str) -> Lexicon:
        """The lexicon of a stored voice. A blend that is not stored has none; of a name that `load` refuses it is empty, too."""
        if self._store is None or is_blend(name):
            return NO_LEXICON
        try:
            return self._store.lexicon(name, self._config)
        except InvalidRequestError:
            return NO_LEXICON

    # recordings

    def encode(
        self,
        samples: npt.ArrayLike,
        sample_rate: int,
        *,
        x_vector_only: bool = False,
        reference_text: str | None = None,
        field: str = "reference_audio",
        turn: Turn = DEFAULT_TURN,
    ) -> Future[VoiceClonePromptItem]:
        """Make the prompt of the voice in a recording.

        Args:
            samples, sample_rate, field: as in `checked_reference_audio`; the samples must not change before the future is done.
            x_vector_only, reference_text, turn: as in VoiceEncoder.encode.

        Returns:
            A future of the prompt, or of an InvalidRequestError, OverloadedError, EngineDeadError or Qwen3TTSError.

        Raises:
            InvalidRequestError: the checkpoint clones no voice.
            EngineDeadError: the library has been shut down.
        """
        encoder = self._open_encoder
        answer: Future[VoiceClonePromptItem] = Future()

        def prepare() -> None:
            if answer.cancelled():
                return
            try:
                audio = checked_reference_audio(
                    samples, sample_rate, min_seconds=self._min_seconds, max_seconds=self._max_seconds, field=field
                )
                encoder.encode(audio, x_vector_only=x_vector_only, reference_text=reference_text, answer=answer, turn=turn)
            except Exception as error:
                if answer.set_running_or_notify_cancel():
                    answer.set_exception(error)

        with self._lock:
            self._waiting.add(prepare, turn, size=np.size(samples))
        try:
            self._pool.submit(self._prepare_next)
        except RuntimeError as error:  # the pool takes nothing after its shutdown
            raise EngineDeadError("the voice encoder has stopped") from error
        return answer

    def _prepare_next(self) -> None:
        with self._lock:
            prepare = self._waiting.take()
        prepare()

    def stats(self) -> VoiceEncoderStats:
        """A snapshot of the encoder.

        Raises:
            InvalidRequestError: the checkpoint clones no voice.
        """
        return self._open_encoder.stats()

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop all threads; recordings that wait get an EngineDeadError."""
        if self._encoder is not None:
            self._encoder.shutdown(timeout)
        self._pool.shutdown(wait=False)

    @property
    def _open_encoder(self) -> VoiceEncoder:
        if self._encoder is None:
            raise InvalidRequestError("reference_audio", f"a {self._config.kind} checkpoint clones no voice; use one of kind base")
        return self._encoder
