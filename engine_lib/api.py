"""Qwen3TTS: the model inside a Python process, a drop-in for `qwen_tts.Qwen3TTSModel` that also streams.

Every text of every call joins one continuous batch; calls may come from any number of threads.

    tts = Qwen3TTS.from_pretrained("Qwen3-TTS-12Hz-1.7B-CustomVoice")
    wavs, sample_rate = tts.generate_custom_voice("Hello.", speaker="ryan", language="english")
    for chunk in tts.stream_custom_voice("Hello.", speaker="ryan"):
        play(chunk.audio)
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine
from engine_lib.config import EngineConfig
from engine_lib.errors import InvalidRequestError, Qwen3TTSError
from engine_lib.prompt import Prompt, PromptBuilder
from engine_lib.sampling import SamplingParams
from engine_lib.speech_stream import SpeechChunk, SpeechStream
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import CodesChunk, FinishReason, Request, checked_chunk_frames

__all__ = ["Qwen3TTS", "SpeechChunk", "SpeechStream"]

T = TypeVar("T")
Audio = npt.NDArray[np.float32]
Codes = npt.NDArray[np.int16]

OFFICIAL_MAX_NEW_TOKENS = 2048  # where neither the caller nor generation_config.json says
WHOLE_UTTERANCE_CHUNK = (16,)  # nobody listens before the end, so larger chunks are cheaper


class Qwen3TTS:
    """One checkpoint, loaded. Use it as a context manager, or call `close`."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Load talker and codec and start their threads. `from_pretrained` is the usual way in."""
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        self.checkpoint, self.config = checkpoint, config
        self._prompts = PromptBuilder(checkpoint, config.max_text_length)
        self._talker = TalkerEngine(checkpoint, config)
        self._codec = CodecEngine(checkpoint, config)
        self._talker.start()
        self._codec.start()

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        device: str = "auto",
        dtype: str | torch.dtype = "auto",
        enforce_eager: bool = False,
        tensor_parallel_size: int = 1,
        **engine_options: Any,
    ) -> Qwen3TTS:
        """Load a checkpoint folder.

        Args:
            path: folder in the published layout.
            device: auto, cpu, cuda or cuda:N.
            dtype: float32 or bfloat16 (or the torch.dtype); auto is bfloat16 on GPU, float32 on CPU.
            enforce_eager: launch kernels one by one instead of replaying CUDA graphs.
            tensor_parallel_size: GPUs that share the talker.
            engine_options: any other option of EngineConfig.

        Raises:
            CheckpointError, ConfigError: the folder or an option does not fit.
        """
        options = dict(
            engine_options,
            model_path=str(path),
            device=device,
            dtype=str(dtype).removeprefix("torch."),
            enforce_eager=enforce_eager,
            tensor_parallel_size=tensor_parallel_size,
        )
        return cls(Checkpoint(path), EngineConfig.from_options(options))

    @property
    def sample_rate(self) -> int:
        """Samples a second of all audio."""
        return self._codec.sample_rate

    def get_supported_speakers(self) -> list[str]:
        """Built-in voices, sorted."""
        return sorted(self.checkpoint.config.talker.speaker_ids)

    def get_supported_languages(self) -> list[str]:
        """`auto` and the languages a request may name, sorted."""
        return self._prompts.languages

    def generate_custom_voice(
        self,
        text: str | list[str],
        speaker: str | list[str],
        language: str | list[str] | None = None,
        instruct: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        **generation: Any,
    ) -> tuple[list[Audio], int]:
        """Speak each text with a built-in voice; lists go through the batch together.

        Args:
            text, speaker, language, instruct: one value, or one a text. As in the official package, an empty speaker is
                no speaker, and 0.6B checkpoints ignore `instruct`.
            non_streaming_mode: put the whole text into the prompt instead of feeding it while audio comes out.
            generation: the sampling arguments of SamplingParams and `max_new_tokens`; what is left out or None comes
                from generation_config.json. `max_new_tokens=N` gives at most N - 1 frames.

        Returns:
            (waveforms [samples] float32 in the order of the texts, sample rate).

        Raises:
            InvalidRequestError (a ValueError): an argument is not allowed, or list lengths differ.
            OverloadedError: more texts than the engine may hold.
        """
        requests = self._custom_voice(text, speaker, language, instruct, non_streaming_mode, generation)
        with ExitStack() as stack:  # when one fails or is refused, the others are for nobody
            streams = [stack.enter_context(closing(self._start(*request, WHOLE_UTTERANCE_CHUNK))) for request in requests]
            return [np.concatenate([chunk.audio for chunk in stream]) for stream in streams], self.sample_rate

    def stream_custom_voice(
        self,
        text: str,
        speaker: str,
        language: str | None = None,
        instruct: str | None = None,
        non_streaming_mode: bool = True,
        chunk_frames: Sequence[int] | None = None,
        **generation: Any,
    ) -> SpeechStream:
        """Speak one text, chunk by chunk as it is computed; leaving the loop cancels the rest.

        Args:
            chunk_frames: frames (80 ms each) in the first, second, .. chunk, 1 to 64, the last repeats; None is the engine's option.
            others: as in `generate_custom_voice`.

        Raises:
            InvalidRequestError, OverloadedError: as there, at the call.
            Qwen3TTSError: from the iterator, when the stream fails.
        """
        if not isinstance(text, str):
            raise InvalidRequestError("text", f"is a {type(text).__name__}; a stream speaks one string")
        ramp = self.config.chunk_frames if chunk_frames is None else checked_chunk_frames(list(chunk_frames))
        [request] = self._custom_voice(text, speaker, language, instruct, non_streaming_mode, generation)
        return self._start(*request, ramp)

    def generate_codes(
        self,
        text: str | list[str],
        speaker: str | list[str],
        language: str | list[str] | None = None,
        instruct: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        **generation: Any,
    ) -> list[Codes]:
        """The talker's half of `generate_custom_voice`: codec frames [frames, num_code_groups] int16 of each text."""
        requests = self._custom_voice(text, speaker, language, instruct, non_streaming_mode, generation)
        with ExitStack() as stack:
            pending = [self._start_codes(*request, stack) for request in requests]
            return [codes.result() for codes in pending]

    def decode(self, codes: Codes | list[Codes]) -> tuple[list[Audio], int]:
        """The codec's half: waveforms of codec frames [frames, num_code_groups], and the sample rate."""
        return [self._codec.decode(frames) for frames in (codes if isinstance(codes, list) else [codes])], self.sample_rate

    def close(self) -> None:
        """Stop both engines; open streams end with an error."""
        self._talker.shutdown()
        self._codec.shutdown()

    def __enter__(self) -> Qwen3TTS:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _custom_voice(
        self,
        text: str | list[str],
        speaker: str | list[str],
        language: str | list[str] | None,
        instruct: str | list[str] | None,
        non_streaming_mode: bool,
        generation: dict[str, Any],
    ) -> list[tuple[Prompt, SamplingParams]]:
        """The prompt and the sampling of each text; everything is checked before anything is queued."""
        kind = self.checkpoint.config.kind
        if kind != "custom_voice":
            raise InvalidRequestError("speaker", f"a checkpoint of kind {kind} has no built-in voices; this call needs a custom_voice one")
        texts = text if isinstance(text, list) else [text]
        if not texts:
            raise InvalidRequestError("text", "is an empty list; give at least one text")
        fields = zip(
            texts,
            _broadcast("speaker", speaker, len(texts)),
            _broadcast("language", "auto" if language is None else language, len(texts)),
            _broadcast("instruct", "" if instruct is None else instruct, len(texts)),
            strict=True,
        )
        prompts = []
        for one, voice, name, how in fields:
            try:
                prompt = self._prompts.build(
                    text=one, voice=voice or "", language=name, instruct=how, non_streaming_mode=non_streaming_mode
                )
            except InvalidRequestError as error:
                if error.field != "voice":
                    raise
                raise InvalidRequestError("speaker", str(error).removeprefix("voice: ")) from None  # the name it has here
            prompts.append(prompt)
        return [(prompt, self._sampling(prompt, generation)) for prompt in prompts]

    def _sampling(self, prompt: Prompt, generation: dict[str, Any]) -> SamplingParams:
        """generation_config.json, then the caller's arguments; `max_new_tokens` counts as in the official package."""
        arguments = dict(generation)
        max_new_tokens = arguments.pop("max_new_tokens", None)
        sampling = self.checkpoint.sampling_defaults().updated(arguments)
        if sampling.max_frames is not None:
            return sampling
        if max_new_tokens is not None:
            if not isinstance(max_new_tokens, int) or max_new_tokens < 2:
                raise InvalidRequestError(
                    "max_new_tokens", f"{max_new_tokens!r} is not allowed; N gives N - 1 frames, so give a whole number from 2"
                )
            return sampling.updated({"max_frames": max_new_tokens - 1})
        default = self.checkpoint.config.generation_defaults.get("max_new_tokens", OFFICIAL_MAX_NEW_TOKENS)
        return sampling.updated({"max_frames": max(1, min(default - 1, self._talker.max_frames_behind(prompt)))})

    def _start_codes(self, prompt: Prompt, sampling: SamplingParams, stack: ExitStack) -> Future[Codes]:
        """Queue one request and gather its codes; leaving `stack` cancels it."""
        chunks: list[Codes] = []
        codes: Future[Codes] = Future()

        def on_chunk(chunk: CodesChunk) -> None:
            chunks.append(chunk.codes)
            if chunk.finish_reason == FinishReason.ERROR.value:
                codes.set_exception(Qwen3TTSError(chunk.error))
            elif chunk.is_final:
                codes.set_result(np.concatenate(chunks))

        request = Request(uuid.uuid4().hex, prompt, sampling, WHOLE_UTTERANCE_CHUNK, on_chunk)
        self._talker.submit(request)
        stack.callback(self._talker.cancel, request.request_id)  # one that has ended is left alone
        return codes

    def _start(self, prompt: Prompt, sampling: SamplingParams, chunk_frames: tuple[int, ...]) -> SpeechStream:
        """Queue one request; its audio comes out of the stream."""
        return SpeechStream.start(self._talker, self._codec, prompt, sampling, chunk_frames)


def _broadcast(field: str, value: T | list[T], count: int) -> list[T]:
    """`value` for each of `count` texts."""
    values = value if isinstance(value, list) else [value]
    if len(values) == 1:
        values = values * count
    if len(values) != count:
        raise InvalidRequestError(field, f"has {len(values)} entries for {count} texts; give one, or one a text")
    return values
