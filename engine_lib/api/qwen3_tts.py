"""Qwen3TTS: the model inside a Python process; replaces `qwen_tts.Qwen3TTSModel` and streams too.

Every text of every call joins one continuous batch; calls may come from any number of threads.

    tts = Qwen3TTS.from_pretrained("Qwen3-TTS-12Hz-1.7B-CustomVoice")
    wavs, sample_rate = tts.generate_custom_voice("Hello.", speaker="ryan", language="english")
    for chunk in tts.stream_custom_voice("Hello.", speaker="ryan"):
        play(chunk.audio)

Each kind of checkpoint has its own calls: `*_custom_voice`, `*_voice_design`, and `*_voice_clone` for kind base.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from engine_lib.api import official
from engine_lib.api.codes import Codes, codes_given, start_codes
from engine_lib.api.columns import broadcast, plain
from engine_lib.api.engines import Engines, check_process
from engine_lib.api.in_turn import in_turn
from engine_lib.api.reference_input import ReferenceInput
from engine_lib.api.references import VoiceClonePrompt, voice_prompt_items
from engine_lib.api.speech_stream import SpeechChunk, SpeechStream, Spoken
from engine_lib.api.utterance import CALLS, TextPieces, Utterance, UtteranceBuilder
from engine_lib.checkpoint import Checkpoint
from engine_lib.codec.engine import CodecEngine
from engine_lib.config import LARGEST, EngineConfig
from engine_lib.delivery import Delivery, Timestamps
from engine_lib.errors import EngineDeadError, InvalidRequestError
from engine_lib.speech.audio.chain import AudioChain
from engine_lib.speech.audio.loudness import VoiceLoudness
from engine_lib.speech.stream_words import SpokenWords
from engine_lib.talker.engine import TalkerEngine
from engine_lib.talker.request import FinishReason
from engine_lib.voices.clone_prompt import VoiceClonePromptItem

__all__ = ["Qwen3TTS", "SpeechChunk", "SpeechStream", "VoiceClonePromptItem"]

Audio = npt.NDArray[np.float32]

WHOLE_UTTERANCE_CHUNK = (16,)  # the caller gets all audio at the end, so chunks are large, which is cheaper


class Qwen3TTS(official.Official):
    """One checkpoint, loaded. Use it as a context manager, or call `close`; one that is dropped closes itself."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig) -> None:
        """Load everything the kind of checkpoint needs and start its threads. Most callers use `from_pretrained`."""
        if config.num_threads:
            torch.set_num_threads(config.num_threads)
        check_process()
        self.checkpoint, self.config = checkpoint, config
        # Of one call: as many as speak, and as many as may wait behind them; a quarter of these places is for other calls.
        self._most_open = config.max_num_seqs + min(config.max_num_seqs, config.max_waiting_requests * 3 // 4)
        self._talker = TalkerEngine(checkpoint, config)
        try:
            # Here no stream is lost: the talker ends each. One that waits for text, or was preempted, keeps its slot as long as that takes.
            patient = replace(config, codec_idle_timeout=LARGEST)
            talker = self._talker  # the codec must not refer to self: then a dropped one would never be freed
            self._codec = CodecEngine(checkpoint, patient, lambda seconds: talker.apply_backpressure(time.monotonic() + seconds))
            self._utterances = UtteranceBuilder(checkpoint, config, self._talker.max_frames_behind)
        except BaseException:
            self._talker.shutdown()  # its other ranks are processes
            raise
        self._delivery = Delivery.default(config)
        self._voice_loudness = VoiceLoudness()
        self._talker.start()
        self._codec.start()
        self._engines = Engines((self._talker, self._codec, self._utterances))

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | Path,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "auto",
        enforce_eager: bool = False,
        tensor_parallel_size: int = 1,
        *,
        device_map: str | int | torch.device | Mapping[str, Any] | None = None,
        torch_dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> Qwen3TTS:
        """Load a checkpoint folder.

        Args:
            pretrained_model_name_or_path: folder in the published layout; nothing is downloaded.
            device: auto, cpu, cuda or cuda:N.
            dtype: float32 or bfloat16 (or the torch.dtype); auto is bfloat16 on GPU, float32 on CPU. float16 is taken as auto.
            enforce_eager: launch kernels one by one instead of replaying CUDA graphs.
            tensor_parallel_size: GPUs that share the talker.
            device_map, torch_dtype: transformers' names for `device` and `dtype`.
            options: any other option of EngineConfig. Keywords of transformers' from_pretrained, such as trust_remote_code, have no
                effect and are taken with one warning. So is attn_implementation, without a warning, because all of its values compute
                the same; the engine's own choice is the option `attention_backend`.

        Raises:
            CheckpointError, ConfigError: the folder or an option does not fit.
        """
        engine_options = official.engine_options(options) | {
            "model_path": str(pretrained_model_name_or_path),
            "device": str(device) if device_map is None else official.device_name(device_map),
            "dtype": official.dtype_name(dtype if torch_dtype is None else torch_dtype),
            "enforce_eager": enforce_eager,
            "tensor_parallel_size": tensor_parallel_size,
        }
        return cls(Checkpoint(pretrained_model_name_or_path), EngineConfig.from_options(engine_options))

    @property
    def sample_rate(self) -> int:
        """Samples per second of all audio, if a call asks for no other `sample_rate`."""
        return self._codec.sample_rate

    def get_supported_speakers(self) -> list[str]:
        """Built-in voices, sorted."""
        return sorted(self.checkpoint.config.talker.speaker_ids)

    def get_supported_languages(self) -> list[str]:
        """`auto` and the languages a request may name, sorted."""
        return self._utterances.prompts.languages

    # whole utterances

    def generate_custom_voice(
        self,
        text: str | list[str],
        speaker: str | list[str],
        language: str | list[str] | None = None,
        instruct: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        **generation: Any,
    ) -> tuple[Spoken[Audio], int]:
        """Speak each text with a built-in voice; lists go through the batch together.

        Args:
            text, speaker, language, instruct: one value, or one for each text. As in the official package, an empty speaker is
                no speaker, and 0.6B checkpoints ignore `instruct`.
            non_streaming_mode: put the whole text into the prompt instead of feeding it while audio comes out.
            generation: the sampling arguments of SamplingParams and `max_new_tokens`; one that is left out or None comes
                from generation_config.json. `max_new_tokens=N` gives at most N - 1 frames, and no more than `max_model_len` has room for.
                Other arguments of transformers' generate() have no effect, as in the official package, and give one warning. Two more
                order the texts of several calls that wait: `request_priority`, "interactive" or "batch", which waits for the first, and
                `client`, a name; clients take turns. Others shape the audio (docs/speech/audio.md): `speed`, `sample_rate`, `volume_db`,
                `trim_silence`, `loudness`, `fade_ms`; and others say how the texts are read (docs/speech/text.md): `text_format`,
                `long_form`, `lexicon`, `normalize_text`, `sentence_pause_ms`, `paragraph_pause_ms`. `on_runaway`, "stop", "retry" or
                "off", is about speech that does not end: see the option of that name.

        Returns:
            (waveforms [samples] float32 in the order of the texts, sample rate). The list of waveforms also has `finish_reasons`: of each,
            stop, length, or runaway if it did not end. Speech that was cut by another limit than the caller's own gives a warning.

        Raises:
            InvalidRequestError (a ValueError): an argument is not allowed, list lengths differ, or the checkpoint is of another kind.
            OverloadedError: too many texts of other calls are waiting, and there is no place for one of this call.
        """
        return self._speak(self._utterances.custom_voice(text, speaker, language, instruct, non_streaming_mode, **generation))

    def generate_voice_design(
        self,
        text: str | list[str],
        instruct: str | list[str],
        language: str | list[str] | None = None,
        non_streaming_mode: bool = True,
        **generation: Any,
    ) -> tuple[Spoken[Audio], int]:
        """Speak each text with a voice that `instruct` describes; an empty one leaves the voice to the model.

        Arguments, results and errors are those of `generate_custom_voice`.
        """
        return self._speak(self._utterances.voice_design(text, instruct, language, non_streaming_mode, **generation))

    def generate_voice_clone(
        self,
        text: str | list[str],
        language: str | list[str] | None = None,
        ref_audio: ReferenceInput | list[ReferenceInput] | None = None,
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
        voice_clone_prompt: VoiceClonePrompt | None = None,
        non_streaming_mode: bool = False,
        voice: str | list[str] | None = None,
        **generation: Any,
    ) -> tuple[Spoken[Audio], int]:
        """Speak each text with a voice cloned from reference audio. The audio starts where the reference ends.

        Args:
            ref_audio, ref_text, x_vector_only_mode: as in `create_voice_clone_prompt`; one reference for all texts, or one for each.
            voice_clone_prompt: from `create_voice_clone_prompt`; as in the official package, these three are ignored beside it.
            voice: the name of a voice in the folder of the option `voice_store`, or a blend such as `anna:0.7+ben:0.3`, instead of all
                these; one, or one for each text.
            others: as in `generate_custom_voice`; but the text is fed while audio comes out unless `non_streaming_mode` is True.

        Returns, raises:
            As `generate_custom_voice`.
        """
        prompt = (ref_audio, ref_text, x_vector_only_mode, voice_clone_prompt)
        return self._speak(self._utterances.voice_clone(text, language, *prompt, non_streaming_mode, voice, **generation))

    def create_voice_clone_prompt(
        self,
        ref_audio: ReferenceInput | list[ReferenceInput],
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
    ) -> list[VoiceClonePromptItem]:
        """Make voice prompts, which can be used for any number of texts.

        Args:
            ref_audio: one reference or a list. Each is the path of an audio file, (samples [n] or [n, channels], sample rate), or
                the bytes of an audio file in base64 (a data URL or the bare text); `reference_min_seconds` to `reference_max_seconds` long.
            ref_text: the words of each reference; one for all, or a list. Needed unless `x_vector_only_mode`.
            x_vector_only_mode: clone the timbre alone instead of continuing the reference; one for all, or a list.

        Returns:
            One item for each reference.

        Raises:
            InvalidRequestError (a ValueError): a reference or its text cannot be used, or the checkpoint is not of kind base.
            OverloadedError: too many references are waiting.
        """
        self._check()
        return self._utterances.references.prompts(ref_audio, ref_text, x_vector_only_mode)

    # streams

    def stream_custom_voice(
        self,
        text: str | Iterable[str],
        speaker: str,
        language: str | None = None,
        instruct: str | None = None,
        non_streaming_mode: bool | None = None,
        chunk_frames: Sequence[int] | None = None,
        timestamps: str | None = None,
        **generation: Any,
    ) -> SpeechStream:
        """Speak one text; each chunk comes when it is computed. Leaving the loop cancels the rest.

        Args:
            text: the text; or an iterator of its pieces, such as the words of a language model, which are spoken as they come. Another
                thread reads it. The codes are those of the whole text with `non_streaming_mode` False.
            non_streaming_mode: None is that of the `generate_` method for a whole text, and False for pieces.
            chunk_frames: frames (80 ms each) in the first, second, .. chunk, 1 to 64, the last repeats; None is the engine's option.
            timestamps: "word": chunks have `words` with their times, if the checkpoint has an alignment.json.
            others: as in `generate_custom_voice`.

        Raises:
            InvalidRequestError, OverloadedError: as there, when it is called.
            Qwen3TTSError: from the stream, if it fails.
        """
        delivery = self._stream_delivery(chunk_frames, timestamps)
        [utterance] = self._utterances.custom_voice(_one_text(text), speaker, language, instruct, non_streaming_mode, **generation)
        return self._start(utterance, delivery)

    def stream_voice_design(
        self,
        text: str | Iterable[str],
        instruct: str,
        language: str | None = None,
        non_streaming_mode: bool | None = None,
        chunk_frames: Sequence[int] | None = None,
        timestamps: str | None = None,
        **generation: Any,
    ) -> SpeechStream:
        """`generate_voice_design` as a stream; see `stream_custom_voice`."""
        delivery = self._stream_delivery(chunk_frames, timestamps)
        [utterance] = self._utterances.voice_design(_one_text(text), instruct, language, non_streaming_mode, **generation)
        return self._start(utterance, delivery)

    def stream_voice_clone(
        self,
        text: str | Iterable[str],
        language: str | None = None,
        ref_audio: ReferenceInput | None = None,
        ref_text: str | None = None,
        x_vector_only_mode: bool = False,
        voice_clone_prompt: VoiceClonePrompt | None = None,
        non_streaming_mode: bool | None = None,
        chunk_frames: Sequence[int] | None = None,
        voice: str | None = None,
        timestamps: str | None = None,
        **generation: Any,
    ) -> SpeechStream:
        """`generate_voice_clone` as a stream; see `stream_custom_voice`."""
        prompt = (ref_audio, ref_text, x_vector_only_mode, voice_clone_prompt)
        delivery = self._stream_delivery(chunk_frames, timestamps)
        [utterance] = self._utterances.voice_clone(_one_text(text), language, *prompt, non_streaming_mode, voice, **generation)
        return self._start(utterance, delivery)

    # talker or codec alone

    def generate_codes(self, *arguments: Any, **keywords: Any) -> Spoken[Codes]:
        """Run the talker alone: codec frames [frames, num_code_groups] int16 of each text.

        Takes the arguments of the `generate_` method for this kind of checkpoint.
        """
        self._check()
        utterances: list[Utterance] = getattr(self._utterances, CALLS[self._utterances.kind])(*arguments, **keywords)
        if any(utterance.script is not None for utterance in utterances):
            raise InvalidRequestError("text", "becomes several lines, and generate_codes speaks one; leave the text fields out")
        with ExitStack() as stack:
            delivery = replace(self._delivery, chunk_frames=WHOLE_UTTERANCE_CHUNK)
            started = in_turn(stack, partial(start_codes, self._talker, delivery=delivery), utterances, self._most_open)
            codes, reasons = zip(*(each.result() for each in started), strict=True)
        _warn_of_cuts(utterances, reasons, stacklevel=3)
        return Spoken(codes, reasons)

    def decode(self, codes: Codes | list[Codes], voice_clone_prompt: VoiceClonePrompt | None = None) -> tuple[list[Audio], int]:
        """Run the codec alone: waveforms of codec frames [frames, num_code_groups], and the sample rate.

        Args:
            voice_clone_prompt: the voices the codes were generated with, one for all or one each. Speech cloned in context
                continues its reference, so its start sounds right only if the codec has decoded the reference before it.
        """
        self._check()
        pieces = codes_given(codes)
        references: list[Codes | None] = [None] * len(pieces)
        if voice_clone_prompt is not None:
            items: list[VoiceClonePromptItem] = broadcast("voice_clone_prompt", voice_prompt_items(voice_clone_prompt), len(pieces))
            voices = [item.checked(self.checkpoint.config) for item in items]
            references = [None if voice.ref_code is None else voice.ref_code.numpy() for voice in voices]
        return [self._codec.decode(*piece) for piece in zip(pieces, references, strict=True)], self.sample_rate

    def close(self) -> None:
        """Stop all engines; open streams end with an error. It happens at the end of the program, too."""
        self._engines.close()

    def __enter__(self) -> Qwen3TTS:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _check(self) -> None:
        """Raise EngineDeadError if the engines of this process do not run: in a forked process a request would wait for ever."""
        if self._engines.is_closed:
            raise EngineDeadError("this Qwen3TTS is closed; load the checkpoint again")
        if self._engines.is_forked:
            raise EngineDeadError("this Qwen3TTS was loaded before the process was forked; load it in each process, started by spawn")

    def _speak(self, utterances: list[Utterance]) -> tuple[Spoken[Audio], int]:
        """Queue all utterances, of many some at a time, and wait for the audio of each."""
        delivery = replace(self._delivery, chunk_frames=WHOLE_UTTERANCE_CHUNK)
        with ExitStack() as stack:  # if one fails or is refused, the others are cancelled
            waves, reasons = [], []
            for stream in in_turn(stack, partial(self._start, delivery=delivery), utterances, self._most_open):
                waves.append(np.concatenate([chunk.audio for chunk in stream]))
                reasons.append(stream.finish_reason)
        _warn_of_cuts(utterances, reasons, stacklevel=4)
        return Spoken(waves, reasons), stream.sample_rate

    def _stream_delivery(self, chunk_frames: Iterable[int] | None, timestamps: str | None) -> Delivery:
        frames = [plain(each) for each in chunk_frames] if isinstance(chunk_frames, Iterable) else chunk_frames
        return self._delivery.updated({"chunk_frames": frames, "timestamps": timestamps})

    def _start(self, utterance: Utterance, delivery: Delivery) -> SpeechStream:
        """Queue one utterance; the stream gives its audio."""
        self._check()
        delivery = delivery.updated({"on_runaway": utterance.on_runaway})
        is_neutral = all(each.audio.is_neutral for each in utterance.lines or (utterance,))
        audio = None if is_neutral else AudioChain(utterance.audio, self.sample_rate, self._voice_loudness)
        new_words, alignment = None, self.checkpoint.alignment
        if delivery.timestamps is Timestamps.WORD and alignment is not None:
            frame_seconds = self._codec.samples_per_frame / self.sample_rate
            new_words = partial(SpokenWords, alignment, frame_seconds, self._utterances.prompts.token_spans)
        return SpeechStream.start(self._talker, self._codec, utterance, delivery, audio, new_words, owner=self)


def _one_text(text: object) -> str | TextPieces:
    """The text of a stream."""
    if isinstance(text, str):
        return text
    if isinstance(text, Iterable) and not isinstance(text, (bytes, bytearray, list, tuple, Mapping, Set)):
        return TextPieces(text)
    raise InvalidRequestError("text", f"is a {type(text).__name__}; a stream speaks one string, or an iterator of its pieces")


def _warn_of_cuts(utterances: Sequence[Utterance], finish_reasons: Sequence[str], stacklevel: int) -> None:
    """Warn of texts that were not spoken to their end, if not the caller has set the limit."""
    for number, (utterance, reason) in enumerate(zip(utterances, finish_reasons, strict=True), 1):
        if reason == FinishReason.LENGTH.value and utterance.limit:
            which = f"text {number} of {len(utterances)}" if len(utterances) > 1 else "the text"
            cut = f"the speech of {which} was cut after {utterance.sampling.max_frames} frames"
            warnings.warn(f"{cut}: {utterance.limit}, or speak the text in pieces", stacklevel=stacklevel)
