"""VoiceEncoder: recordings to voice prompts, batched on its own thread, remembered by content.

Recordings wait as in FairQueue, by size: a short one need not wait for all the long ones that came before it.

The encoders run in float32 whatever the talker's dtype is: a code is the nearest of 2048 entries, and bfloat16 would move many to
another. On a GPU they have a stream of their own at the lowest priority, so a new voice only takes time that running streams leave.
"""

from __future__ import annotations

import hashlib
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.admission.fair_queue import FairQueue
from engine_lib.admission.pace import Pace
from engine_lib.admission.turn import DEFAULT_TURN, Turn
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device, on_stream, own_stream, resolve_device
from engine_lib.errors import CheckpointError, EngineDeadError, InvalidRequestError, OverloadedError, Qwen3TTSError
from engine_lib.speech.checks import is_blank
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.reference_audio import SAMPLE_RATE

logger = logging.getLogger(__name__)

Audio = npt.NDArray[np.float32]

# On the CPU a batch takes as long as its clips one by one, and a clip alone gets exactly the official codes.
MAX_BATCH_CLIPS = {"cuda": 32, "cpu": 1}
MAX_BATCH_SECONDS = 60  # padding included; the first layer of the reference encoder takes about 20 MB a second


@dataclass(frozen=True)
class EncodedVoice:
    """The results of the encoders for one recording.

    Attributes:
        speaker_embedding: [enc_dim] float32, also called the x-vector.
        codes: [frames, num_code_groups] int64; None if only the speaker embedding was asked for.
    """

    speaker_embedding: torch.Tensor
    codes: torch.Tensor | None


@dataclass(frozen=True)
class VoiceEncoderStats:
    """A snapshot for metrics and tests. Counters start at the load."""

    waiting: int
    cached: int
    num_requests: int
    num_encoded: int
    num_batches: int


@dataclass(frozen=True, eq=False)
class _Job:
    audio: Audio
    key: bytes
    reference_text: str | None
    x_vector_only: bool
    answer: Future[VoiceClonePromptItem]


class VoiceEncoder:
    """The speaker encoder and the reference encoder of one `base` checkpoint."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Load both encoders on the talker's device and start the thread.

        Raises:
            CheckpointError: the checkpoint is of another kind, or a weight is missing or has another shape.
            ConfigError: the device is not there.
        """
        speaker, reference = checkpoint.config.speaker_encoder, checkpoint.config.reference_encoder
        if speaker is None or reference is None:
            raise CheckpointError(f"{checkpoint.path}: a checkpoint of kind {checkpoint.config.kind} clones no voices; a base one does")
        # Imported here because transformers' models take seconds and megabytes, and other kinds of checkpoint do not need them.
        from engine_lib.voices.reference_encoder import ReferenceEncoder
        from engine_lib.voices.speaker_encoder import SpeakerEncoder

        self._max_waiting = config.max_num_seqs + config.max_waiting_requests  # the talker's own limit
        self._cache_size = config.voice_cache_size
        self._device = resolve_device(config.device)
        self._max_batch_clips = MAX_BATCH_CLIPS[self._device.type]
        # By default cuDNN may round the operands of float32 convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = False
        with on_device(self._device), torch.inference_mode():
            self._speaker_encoder = SpeakerEncoder(checkpoint.weights(), speaker, device=self._device)
            self._reference_encoder = ReferenceEncoder(checkpoint.speech_tokenizer_weights(), reference, device=self._device)
            self._stream = own_stream(self._device, 0)
            self._warm_up(config.reference_max_seconds)

        self._changed = threading.Condition()
        self._waiting: FairQueue[_Job] = FairQueue(by_size=True)
        self._pace = Pace()
        self._voices: OrderedDict[bytes, EncodedVoice] = OrderedDict()  # least recently used first
        self._num_requests = self._num_encoded = self._num_batches = 0
        self._alive = True
        self._thread = threading.Thread(target=self._run, name="voice-encoder", daemon=True)
        self._thread.start()

    # callers

    def encode(
        self,
        audio_24k: Audio,
        *,
        x_vector_only: bool = False,
        reference_text: str | None = None,
        answer: Future[VoiceClonePromptItem] | None = None,
        turn: Turn = DEFAULT_TURN,
    ) -> Future[VoiceClonePromptItem]:
        """Make the prompt of a voice, as the official package does for this recording alone.

        (In a list of recordings of one rate, the official package pads the shorter ones, which changes the codes of their ends.)

        Args:
            audio_24k: [samples], as `checked_reference_audio` returns it; it must not change before the future is done.
            x_vector_only: clone by the speaker embedding alone; the prompt then has no codes.
            reference_text: the words of the recording; needed unless `x_vector_only`.
            answer: the future to use, not running yet; a new one unless given.
            turn: how the recording waits.

        Returns:
            A future of the prompt. Its tensors are on the CPU and belong to the caller. A recording cancelled in time is not encoded.

        Raises:
            InvalidRequestError: cloning in context without a text.
            OverloadedError: more recordings wait than the engine may hold.
            EngineDeadError: the encoder has been shut down.
            Qwen3TTSError: from the future, if this recording cannot be encoded.
        """
        if not x_vector_only and (reference_text is None or is_blank(reference_text)):
            raise InvalidRequestError("reference_text", "is empty; give the words of the reference audio, or use x_vector_only")
        audio = np.ascontiguousarray(audio_24k, np.float32)
        job = _Job(audio, hashlib.sha256(audio.data).digest(), reference_text, x_vector_only, answer or Future())
        with self._changed:
            if not self._alive:
                raise EngineDeadError("the voice encoder has stopped")
            voice = self._remembered(job)
            if voice is None:
                num_waiting, now = len(self._waiting), time.monotonic()
                if num_waiting >= self._max_waiting:
                    problem = f"{num_waiting} reference recordings are waiting; try again later or on another server"
                    raise OverloadedError(problem, self._pace.seconds_for(num_waiting, now))
                self._waiting.add(job, turn, size=len(audio))
                self._pace.waits(now)
                self._changed.notify()
            self._num_requests += 1
        if voice is None:
            job.answer.add_done_callback(lambda answer: self._withdraw(job) if answer.cancelled() else None)
        elif job.answer.set_running_or_notify_cancel():
            job.answer.set_result(_prompt_item(job, voice))
        return job.answer

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the thread; recordings that wait get an EngineDeadError."""
        with self._changed:
            self._alive = False
            self._changed.notify()
        self._thread.join(timeout)

    def stats(self) -> VoiceEncoderStats:
        """A snapshot of the encoder; safe to call from any thread."""
        with self._changed:
            return VoiceEncoderStats(len(self._waiting), len(self._voices), self._num_requests, self._num_encoded, self._num_batches)

    # encoder thread

    def _run(self) -> None:
        jobs: list[_Job] = []
        try:
            with on_device(self._device):
                while jobs := self._next_batch():
                    self._answer(jobs)
        finally:
            with self._changed:
                self._alive = False
                jobs += self._waiting
                self._waiting = FairQueue(by_size=True)
            for job in jobs:
                if not job.answer.done() and (job.answer.running() or job.answer.set_running_or_notify_cancel()):
                    job.answer.set_exception(EngineDeadError("the voice encoder has stopped"))

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs and take those that fit in one batch; none once the encoder is stopped."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._alive)
            if not self._alive:
                return []
            jobs: list[_Job] = []
            clips: set[bytes] = set()
            longest = 0
            while self._waiting:
                job = self._waiting.head
                if job.key not in clips:  # a clip that is in the batch already costs nothing
                    longest, count = max(longest, len(job.audio)), len(clips) + 1
                    if jobs and (count > self._max_batch_clips or longest * count > MAX_BATCH_SECONDS * SAMPLE_RATE):
                        break
                    clips.add(job.key)
                jobs.append(self._waiting.take())
                self._pace.starts(time.monotonic())
            if not self._waiting:
                self._pace.rests()
            return jobs

    def _withdraw(self, job: _Job) -> None:
        """Take out a recording that is no longer wanted."""
        with self._changed:
            self._waiting.discard(job)
            if not self._waiting:
                self._pace.rests()

    def _answer(self, jobs: list[_Job]) -> None:
        """Answer those of `jobs` that have not been cancelled."""
        jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
        for job, voice in zip(jobs, self._voices_of(jobs), strict=True):
            if isinstance(voice, EncodedVoice):
                job.answer.set_result(_prompt_item(job, voice))
            else:
                job.answer.set_exception(voice)

    def _voices_of(self, jobs: list[_Job]) -> list[EncodedVoice | Qwen3TTSError]:
        """A voice or an error for each of `jobs`; a recording that several of them have is encoded once."""
        with self._changed:
            known: dict[bytes, EncodedVoice | Qwen3TTSError] = {}
            new: dict[bytes, _Job] = {}
            for job in jobs:
                voice = self._remembered(job)  # another job had the recording encoded meanwhile
                if voice is not None:
                    known[job.key] = voice
                elif job.key not in new or not job.x_vector_only:
                    new[job.key] = job
        for job, answer in zip(new.values(), self._encoded(list(new.values())), strict=True):
            known[job.key] = answer
            if isinstance(answer, EncodedVoice):
                self._remember(job.key, answer)
        return [known[job.key] for job in jobs]

    def _encoded(self, jobs: list[_Job]) -> list[EncodedVoice | Qwen3TTSError]:
        """The voices of `jobs`, all different. If the batch fails, each is tried alone, so that only the bad ones fail."""
        if not jobs:
            return []
        try:
            voices = self._run_encoders([job.audio for job in jobs], [not job.x_vector_only for job in jobs])
        except Exception as error:
            if len(jobs) > 1:
                return [answer for job in jobs for answer in self._encoded([job])]
            logger.exception("a reference recording of %d samples could not be encoded", len(jobs[0].audio))
            return [Qwen3TTSError(f"reference_audio: could not be encoded: {error}")]
        with self._changed:
            self._num_encoded += len(jobs)
            self._num_batches += 1
        broken = Qwen3TTSError("reference_audio: its x-vector is not finite; check the recording")
        return [voice if voice.speaker_embedding.isfinite().all() else broken for voice in voices]

    @torch.inference_mode()
    def _run_encoders(self, clips: Sequence[Audio], with_codes: Sequence[bool]) -> list[EncodedVoice]:
        """Encode a batch and bring the results to the host."""
        with on_stream(self._stream):
            here = [torch.from_numpy(clip).to(self._device) for clip in clips]
            embeddings = self._speaker_encoder(here)
            coded = [clip for clip, wanted in zip(here, with_codes, strict=True) if wanted]
            codes = iter(self._reference_encoder(coded) if coded else [])
            return [
                EncodedVoice(embedding, next(codes).cpu() if wanted else None)
                for embedding, wanted in zip(embeddings.cpu(), with_codes, strict=True)
            ]

    def _warm_up(self, max_seconds: float) -> None:
        """On a GPU, load every kernel and allocate the memory of the largest batch before the first recording arrives."""
        if self._device.type != "cuda":
            return
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, round(max_seconds * SAMPLE_RATE)).astype(np.float32)
        whole = max(1, int(MAX_BATCH_SECONDS // max_seconds))
        for clips in ([noise] * whole, [noise[: 5 * SAMPLE_RATE]], [noise[: 2 * SAMPLE_RATE], noise[: 3 * SAMPLE_RATE]]):
            self._run_encoders(clips, [True] * len(clips))

    def _remembered(self, job: _Job) -> EncodedVoice | None:
        """The voice of `job`, if it is remembered with all that the job needs. The caller holds the lock."""
        voice = self._voices.get(job.key)
        if voice is None or (voice.codes is None and not job.x_vector_only):
            return None
        self._voices.move_to_end(job.key)
        return voice

    def _remember(self, key: bytes, voice: EncodedVoice) -> None:
        with self._changed:
            self._voices[key] = voice
            self._voices.move_to_end(key)
            while len(self._voices) > self._cache_size:
                self._voices.popitem(last=False)


def _prompt_item(job: _Job, voice: EncodedVoice) -> VoiceClonePromptItem:
    """The prompt of copies, so that a caller cannot change the remembered voice."""
    codes = None if job.x_vector_only or voice.codes is None else voice.codes.clone()
    return VoiceClonePromptItem(codes, voice.speaker_embedding.clone(), job.x_vector_only, not job.x_vector_only, job.reference_text)
