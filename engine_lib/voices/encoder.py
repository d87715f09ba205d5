"""VoiceEncoder: recordings to voice prompts on a thread of its own, off the engine thread, batched, remembered by content.

The encoders run in float32 whatever the talker's dtype is: a code is the nearest of 2048 entries, and bfloat16 would move many to
another. On a GPU they have a stream of their own at the lowest priority, so a new voice fills in behind the running streams.
"""

from __future__ import annotations

import hashlib
import logging
import threading
from collections import OrderedDict, deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.devices import on_device, on_stream, own_stream, resolve_device
from engine_lib.errors import CheckpointError, EngineDeadError, InvalidRequestError, OverloadedError, Qwen3TTSError
from engine_lib.voices.clone_prompt import VoiceClonePromptItem
from engine_lib.voices.reference_audio import SAMPLE_RATE

logger = logging.getLogger(__name__)

Audio = npt.NDArray[np.float32]

# On the CPU a batch takes as long as its clips one by one, and alone a clip gets the official codes to the last bit.
MAX_BATCH_CLIPS = {"cuda": 32, "cpu": 1}
MAX_BATCH_SECONDS = 60  # padding included; the first layer of the reference encoder takes about 20 MB a second


@dataclass(frozen=True)
class Voice:
    """What the encoders make of one recording.

    Attributes:
        embedding: [enc_dim] float32, the x-vector.
        codes: [frames, num_code_groups] int64; None where only the x-vector was asked for.
    """

    embedding: torch.Tensor
    codes: torch.Tensor | None


@dataclass(frozen=True)
class VoiceEncoderStats:
    """A snapshot for metrics and tests. Counters count since the start."""

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
        # They need transformers' models, seconds and megabytes of imports that the other kinds of checkpoint do without.
        from engine_lib.voices.reference_encoder import ReferenceEncoder
        from engine_lib.voices.speaker_encoder import SpeakerEncoder

        self._max_waiting = config.max_num_seqs + config.max_waiting_requests  # as many as the talker takes
        self._cache_size = config.voice_cache_size
        self._device = resolve_device(config.device)
        self._max_batch_clips = MAX_BATCH_CLIPS[self._device.type]
        # Float32 means float32: torch would let cuDNN round the operands of convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = False
        with on_device(self._device), torch.inference_mode():
            self._speaker_encoder = SpeakerEncoder(checkpoint.weights(), speaker, device=self._device)
            self._reference_encoder = ReferenceEncoder(checkpoint.speech_tokenizer_weights(), reference, device=self._device)
            self._stream = own_stream(self._device, 0)
            self._warm_up(config.reference_max_seconds)

        self._changed = threading.Condition()
        self._waiting: deque[_Job] = deque()
        self._voices: OrderedDict[bytes, Voice] = OrderedDict()  # the one used last comes last
        self._num_requests = self._num_encoded = self._num_batches = 0
        self._alive = True
        self._thread = threading.Thread(target=self._run, name="voice-encoder", daemon=True)
        self._thread.start()

    # callers

    def encode(self, audio_24k: Audio, *, x_vector_only: bool = False, reference_text: str | None = None) -> Future[VoiceClonePromptItem]:
        """Make the prompt of a voice, as the official package does for this recording alone.

        (In a list of recordings of one rate, the official package pads the shorter ones, which changes the codes of their ends.)

        Args:
            audio_24k: [samples], as `checked_reference_audio` gives it; it must not change until the answer is there.
            x_vector_only: clone by the x-vector alone; the prompt then has no codes.
            reference_text: what is said in the recording; needed unless `x_vector_only`.

        Returns:
            A future of the prompt, its tensors on the CPU and the caller's own. Cancelling it before its turn costs nothing.

        Raises:
            InvalidRequestError: cloning in context without a text.
            OverloadedError: more recordings wait than the engine may hold.
            EngineDeadError: the encoder has been shut down.
            Qwen3TTSError: from the future, where this recording cannot be encoded.
        """
        if not x_vector_only and not (reference_text and reference_text.strip()):
            raise InvalidRequestError("reference_text", "is empty; give the words of the reference audio, or use x_vector_only")
        audio = np.ascontiguousarray(audio_24k, np.float32)
        job = _Job(audio, hashlib.sha256(audio.data).digest(), reference_text, x_vector_only, Future())
        with self._changed:
            if not self._alive:
                raise EngineDeadError("the voice encoder has stopped")
            voice = self._remembered(job)
            if voice is None:
                if len(self._waiting) >= self._max_waiting:
                    raise OverloadedError(f"{len(self._waiting)} reference recordings are waiting; try again later or on another server")
                self._waiting.append(job)
                self._changed.notify()
            self._num_requests += 1
        if voice is not None:
            job.answer.set_result(_prompt_item(job, voice))
        return job.answer

    def shutdown(self, timeout: float = 10.0) -> None:
        """Stop the thread; recordings that wait are answered with EngineDeadError."""
        with self._changed:
            self._alive = False
            self._changed.notify()
        self._thread.join(timeout)

    def stats(self) -> VoiceEncoderStats:
        """What the encoder holds now; safe to call from any thread."""
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
                self._waiting.clear()
            for job in jobs:
                if not job.answer.done() and (job.answer.running() or job.answer.set_running_or_notify_cancel()):
                    job.answer.set_exception(EngineDeadError("the voice encoder has stopped"))

    def _next_batch(self) -> list[_Job]:
        """Wait for jobs and take those that fit in one batch; none once the encoder shall stop."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._alive)
            if not self._alive:
                return []
            jobs: list[_Job] = []
            clips: set[bytes] = set()
            longest = 0
            while self._waiting:
                job = self._waiting[0]
                if job.key not in clips:  # the others cost nothing
                    longest, count = max(longest, len(job.audio)), len(clips) + 1
                    if jobs and (count > self._max_batch_clips or longest * count > MAX_BATCH_SECONDS * SAMPLE_RATE):
                        break
                    clips.add(job.key)
                jobs.append(self._waiting.popleft())
            return jobs

    def _answer(self, jobs: list[_Job]) -> None:
        """Answer those of `jobs` that nobody has cancelled."""
        jobs = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
        for job, voice in zip(jobs, self._voices_of(jobs), strict=True):
            if isinstance(voice, Voice):
                job.answer.set_result(_prompt_item(job, voice))
            else:
                job.answer.set_exception(voice)

    def _voices_of(self, jobs: list[_Job]) -> list[Voice | Qwen3TTSError]:
        """A voice or an error for each of `jobs`; a recording that several of them bring is encoded once."""
        with self._changed:
            known: dict[bytes, Voice | Qwen3TTSError] = {}
            new: dict[bytes, _Job] = {}
            for job in jobs:
                voice = self._remembered(job)  # a recording that was being encoded when this job came
                if voice is not None:
                    known[job.key] = voice
                elif job.key not in new or not job.x_vector_only:
                    new[job.key] = job
        for job, answer in zip(new.values(), self._encoded(list(new.values())), strict=True):
            known[job.key] = answer
            if isinstance(answer, Voice):
                self._remember(job.key, answer)
        return [known[job.key] for job in jobs]

    def _encoded(self, jobs: list[_Job]) -> list[Voice | Qwen3TTSError]:
        """The voices of `jobs`, all different. Where the batch fails each is tried alone, so that only those at fault fail."""
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
        return [voice if voice.embedding.isfinite().all() else broken for voice in voices]

    @torch.inference_mode()
    def _run_encoders(self, clips: Sequence[Audio], with_codes: Sequence[bool]) -> list[Voice]:
        """Encode a batch and bring the results to the host."""
        with on_stream(self._stream):
            here = [torch.from_numpy(clip).to(self._device) for clip in clips]
            embeddings = self._speaker_encoder(here)
            coded = [clip for clip, wanted in zip(here, with_codes, strict=True) if wanted]
            codes = iter(self._reference_encoder(coded) if coded else [])
            return [
                Voice(embedding, next(codes).cpu() if wanted else None)
                for embedding, wanted in zip(embeddings.cpu(), with_codes, strict=True)
            ]

    def _warm_up(self, max_seconds: float) -> None:
        """On a GPU, load every kernel and take the memory of the largest batch now, not when the first voice comes."""
        if self._device.type != "cuda":
            return
        noise = np.random.default_rng(0).uniform(-0.1, 0.1, round(max_seconds * SAMPLE_RATE)).astype(np.float32)
        whole = max(1, int(MAX_BATCH_SECONDS // max_seconds))
        for clips in ([noise] * whole, [noise[: 5 * SAMPLE_RATE]], [noise[: 2 * SAMPLE_RATE], noise[: 3 * SAMPLE_RATE]]):
            self._run_encoders(clips, [True] * len(clips))

    def _remembered(self, job: _Job) -> Voice | None:
        """The voice of `job`, if it is there with all that the job wants. The lock must be held."""
        voice = self._voices.get(job.key)
        if voice is None or (voice.codes is None and not job.x_vector_only):
            return None
        self._voices.move_to_end(job.key)
        return voice

    def _remember(self, key: bytes, voice: Voice) -> None:
        with self._changed:
            self._voices[key] = voice
            self._voices.move_to_end(key)
            while len(self._voices) > self._cache_size:
                self._voices.popitem(last=False)


def _prompt_item(job: _Job, voice: Voice) -> VoiceClonePromptItem:
    """Copies, so that nobody can change what is remembered."""
    codes = None if job.x_vector_only or voice.codes is None else voice.codes.clone()
    return VoiceClonePromptItem(codes, voice.embedding.clone(), job.x_vector_only, not job.x_vector_only, job.reference_text)
