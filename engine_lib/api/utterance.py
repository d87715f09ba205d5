"""Utterances: the arguments of one call, as a prompt and sampling parameters for each text.

As in `qwen_tts.Qwen3TTSModel`, an argument is left out, given once or given for each text. All are checked before a text is queued.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np

from engine_lib.admission.turn import DEFAULT_TURN, TURN_NAMES, Turn
from engine_lib.api import official
from engine_lib.api.columns import broadcast, check_string, entries, plain
from engine_lib.api.incoming_text import IncomingText
from engine_lib.api.reference_input import ReferenceInput
from engine_lib.api.references import VoiceClonePrompt, VoiceReferences, voice_prompt_items
from engine_lib.checkpoint import Checkpoint
from engine_lib.config import EngineConfig
from engine_lib.delivery import AUDIO_NAMES, Delivery
from engine_lib.errors import InvalidRequestError
from engine_lib.prompt import Prompt, PromptBuilder
from engine_lib.sampling import SamplingParams
from engine_lib.speech.audio.settings import NEUTRAL, AudioSettings
from engine_lib.speech.compiler import TextCompiler
from engine_lib.speech.lexicon import NO_LEXICON, Lexicon
from engine_lib.speech.script import Script
from engine_lib.speech.text_options import DEFAULT_TEXT, TEXT_NAMES, TextOptions
from engine_lib.voices.voice_key import voice_key

OFFICIAL_MAX_NEW_TOKENS = 2048  # if neither the caller nor generation_config.json sets it
CALLS = {"custom_voice": "custom_voice", "voice_design": "voice_design", "base": "voice_clone"}  # kind of checkpoint -> its calls
SEED_BITS = 63
NAMES_HERE = {"voice": "speaker", "voice_prompt": "voice_clone_prompt"}  # field of the prompt builder -> argument here


@dataclass(frozen=True)
class TextPieces:
    """One text that comes in pieces."""

    pieces: Iterable[str]


@dataclass(frozen=True)
class Utterance:
    """One text, ready to be spoken.

    Attributes:
        turn: how it waits to start.
        audio: what is done to its samples.
        text: of a prompt without text.
        script: the lines to speak; None: the prompt has all of the text.
        lines: those of the script, each as an utterance; the first one gives the fields above.
        speaker: of lines of the script that name none; "" if it has no name.
        whole_text: of any other.
        on_runaway: None: the engine's option.
        limit: what else than the caller limits its frames, for a warning if that cuts the speech; "" if it is the caller's own number.
    """

    prompt: Prompt
    sampling: SamplingParams
    limit: str = ""
    turn: Turn = DEFAULT_TURN
    text: IncomingText | None = None
    audio: AudioSettings = NEUTRAL
    script: Script | None = None
    lines: tuple[Utterance, ...] = ()
    speaker: str = ""
    whole_text: str = ""
    on_runaway: str | None = None


@dataclass(frozen=True)
class _Call:
    """What the texts of one call have in common.

    Attributes:
        reading: how they are read.
        sampling: the arguments of SamplingParams that the caller gave, and `max_new_tokens`.
        audio: what is done to their samples.
        non_streaming_mode: None: as the prompt builder chooses.
    """

    reading: TextOptions
    sampling: Mapping[str, Any]
    audio: Delivery
    non_streaming_mode: bool | None


class UtteranceBuilder:
    """Builds utterances for one checkpoint, with the method for its kind; the other methods refuse it."""

    def __init__(self, checkpoint: Checkpoint, config: EngineConfig, max_frames_behind: Callable[[Prompt], int]) -> None:
        """Load the encoders of voices, if the checkpoint is of kind base.

        Args:
            max_frames_behind: the most frames that the engine can hold after a prompt.

        Raises:
            CheckpointError, ConfigError: the checkpoint or an option does not fit.
        """
        self.kind = checkpoint.config.kind
        self.prompts = PromptBuilder(checkpoint, config.max_text_length)
        self._texts = TextCompiler.of(config, checkpoint.config.piece_length)
        self._references = VoiceReferences(checkpoint, config) if self.kind == "base" else None
        self._max_model_len = config.max_model_len
        self._max_frames_behind = max_frames_behind
        self._eos = checkpoint.config.talker.codec_eos_token_id
        self._sampling_defaults = checkpoint.sampling_defaults()
        self._delivery = Delivery.default(config)
        self._default_max_new_tokens = checkpoint.config.generation_defaults.get("max_new_tokens") or OFFICIAL_MAX_NEW_TOKENS

    def custom_voice(
        self,
        text: str | list[str] | TextPieces,
        speaker: str | list[str],
        language: str | list[str] | None = None,
        instruct: str | list[str] | None = None,
        non_streaming_mode: bool | None = True,
        **generation: Any,
    ) -> list[Utterance]:
        """See Qwen3TTS.generate_custom_voice."""
        self._check_kind("custom_voice")
        speakers = ["" if name is None else name for name in entries(speaker)]
        return self._build(text, non_streaming_mode, generation, voice=speakers, language=language, instruct=instruct)

    def voice_design(
        self,
        text: str | list[str] | TextPieces,
        instruct: str | list[str],
        language: str | list[str] | None = None,
        non_streaming_mode: bool | None = True,
        **generation: Any,
    ) -> list[Utterance]:
        """See Qwen3TTS.generate_voice_design."""
        self._check_kind("voice_design")
        return self._build(text, non_streaming_mode, generation, language=language, instruct=instruct)

    def voice_clone(
        self,
        text: str | list[str] | TextPieces,
        language: str | list[str] | None = None,
        ref_audio: ReferenceInput | list[ReferenceInput] | None = None,
        ref_text: str | list[str | None] | None = None,
        x_vector_only_mode: bool | list[bool] = False,
        voice_clone_prompt: VoiceClonePrompt | None = None,
        non_streaming_mode: bool | None = False,
        voice: str | list[str] | None = None,
        **generation: Any,
    ) -> list[Utterance]:
        """See Qwen3TTS.generate_voice_clone."""
        self._check_kind("base")
        names: list[str] = []
        if voice is not None:
            if not (voice_clone_prompt is None and ref_audio is None):
                raise InvalidRequestError("voice", "is given with ref_audio or voice_clone_prompt; give one of them")
            names = broadcast("voice", voice, len(entries(text)))
            for name in names:
                check_string("voice", name)
            items = [self.references.stored(name) for name in names]
        elif voice_clone_prompt is not None:
            items = voice_prompt_items(voice_clone_prompt)
        elif ref_audio is not None:
            items = broadcast("ref_audio", self.references.prompts(ref_audio, ref_text, x_vector_only_mode), len(entries(text)))
        else:
            raise InvalidRequestError("ref_audio", "is missing, and so are voice_clone_prompt and voice; give one of them")
        return self._build(text, non_streaming_mode, generation, names, language=language, voice_prompt=items)

    @property
    def references(self) -> VoiceReferences:
        """The voices to clone.

        Raises:
            InvalidRequestError: the checkpoint is not of kind base.
        """
        if self._references is None:
            raise self._wrong_kind("base")
        return self._references

    def shutdown(self) -> None:
        """Stop the encoders of voices."""
        if self._references is not None:
            self._references.shutdown()

    def _check_kind(self, kind: str) -> None:
        if self.kind != kind:
            raise self._wrong_kind(kind)

    def _wrong_kind(self, kind: str) -> InvalidRequestError:
        fits, wanted = CALLS[self.kind], CALLS[kind]
        return InvalidRequestError(
            "checkpoint", f"is of kind {self.kind}; use generate_{fits} or stream_{fits}, or load one of kind {kind} for {wanted} calls"
        )

    def _build(
        self,
        text: str | list[str] | TextPieces,
        non_streaming_mode: bool | None,
        generation: dict[str, Any],
        stored: Sequence[str] = (),
        **fields: Any,
    ) -> list[Utterance]:
        """
        Args:
            stored: the stored voice of each text; empty for other voices.
            fields: arguments of PromptBuilder.build; one value, a list of one, or a list of one for each text.
        """
        texts: list[str | TextPieces] = entries(text)
        if not texts:
            raise InvalidRequestError("text", "is an empty list; give at least one text")
        columns = {name: broadcast(NAMES_HERE.get(name, name), value, len(texts)) for name, value in fields.items()}
        for name in fields.keys() & {"voice", "language", "instruct"}:
            for value in columns[name]:
                check_string(NAMES_HERE.get(name, name), value)
        generation = {name: plain(value) for name, value in generation.items()}
        reading = DEFAULT_TEXT.updated({name: generation.pop(name) for name in TEXT_NAMES if name in generation})
        turn = Turn.of(*(generation.pop(name, None) for name in TURN_NAMES))
        audio = self._delivery.updated({name: generation.pop(name, None) for name in AUDIO_NAMES})
        on_runaway = generation.pop("on_runaway", None)
        arguments = official.sampling_arguments(generation, self.kind, self._eos)
        # Refused here by their own names: below, a field of the prompt builder gets the name that it has in the call.
        self._sampling_defaults.updated({name: value for name, value in arguments.items() if name != "max_new_tokens"})
        if non_streaming_mode is not None:
            non_streaming_mode = official.flag("non_streaming_mode", non_streaming_mode)
        call = _Call(reading, arguments, audio, non_streaming_mode)
        utterances = []
        for i, one in enumerate(texts):
            row = {name: column[i] for name, column in columns.items()}
            with _names_of_the_call():
                if isinstance(one, TextPieces):
                    utterance = self._of_pieces(one, call, row)
                else:
                    utterance = self._of_text(one, call, row, stored[i] if stored else None)
            utterances.append(replace(utterance, turn=turn, on_runaway=on_runaway))
        return utterances

    def _of_pieces(self, text: TextPieces, call: _Call, row: Mapping[str, Any]) -> Utterance:
        """`row`: arguments of PromptBuilder.open."""
        call.reading.check_open()
        if call.non_streaming_mode:
            raise InvalidRequestError("non_streaming_mode", "True takes the whole text at once; leave it out for a text in pieces")
        prompt, rows = self.prompts.open(**row)
        incoming = IncomingText(text.pieces, rows, self.prompts.max_text_length)
        return replace(self._utterance(prompt, call.sampling, _settings(call.audio, row)), text=incoming)

    def _of_text(self, text: str, call: _Call, row: Mapping[str, Any], stored: str | None) -> Utterance:
        """
        Args:
            row: arguments of PromptBuilder.build.
            stored: the stored voice of the text, if it has one.
        """
        spoken = self._texts.compile(text, call.reading, row.get("language"), partial(self._lexicon_of, stored))
        if isinstance(spoken, Script):
            return self._of_script(spoken, call, row)
        prompt = self.prompts.build(text=spoken, non_streaming_mode=call.non_streaming_mode, **row)
        return replace(self._utterance(prompt, call.sampling, _settings(call.audio, row)), whole_text=spoken)

    def _lexicon_of(self, stored: str | None, own: str | None) -> Lexicon:
        """The lexicon of a line with a voice of its `own`, or else of the `stored` voice of the text, if it has one."""
        return NO_LEXICON if self._references is None else self._references.lexicon(own or stored)

    def _of_script(self, script: Script, call: _Call, row: Mapping[str, Any]) -> Utterance:
        """`row`: arguments of PromptBuilder.build for lines that have none of their own. All lines have the same seed."""
        sampling = call.sampling
        if self._sampling_defaults.updated({"seed": sampling.get("seed")}).seed is None:
            sampling = {**sampling, "seed": secrets.randbits(SEED_BITS)}
        lines = []
        for line in script.lines:
            with script.errors_of(line):
                own: dict[str, Any] = {name: getattr(line, name) for name in ("voice", "language", "instruct")}
                if self.kind == "base" and line.voice is not None:
                    own |= {"voice": None, "voice_prompt": self.references.stored(line.voice)}
                fields = {**row, **{name: value for name, value in own.items() if value is not None}}
                prompt = self.prompts.build(text=line.text, non_streaming_mode=call.non_streaming_mode, **fields)
                settings = _settings(call.audio, fields).of_line(line.speed, line.volume_db)
                lines.append(self._utterance(prompt, sampling, settings))
        return replace(lines[0], script=script, lines=tuple(lines), speaker=row.get("voice") or "")

    def _utterance(self, prompt: Prompt, generation: Mapping[str, Any], audio: AudioSettings) -> Utterance:
        """With the caller's arguments over generation_config.json; `max_new_tokens` counts as in the official package.

        Raises:
            InvalidRequestError: a value is not allowed, or the prompt leaves no room to speak its text.
        """
        arguments = dict(generation)
        asked = arguments.pop("max_new_tokens", None)
        sampling = self._sampling_defaults.updated(arguments)
        if sampling.max_frames is not None:
            return Utterance(prompt, sampling, audio=audio)
        if asked is not None and (isinstance(asked, bool) or not isinstance(asked, (int, np.integer)) or asked < 2):
            raise InvalidRequestError("max_new_tokens", f"{asked!r} is not allowed; N gives N - 1 frames, so give a whole number from 2")
        frames, room = int(asked or self._default_max_new_tokens) - 1, self._max_frames_behind(prompt)
        # No one speaks a token in less than a frame.
        if room < min(frames, prompt.num_text_tokens):
            needed = f"speak it in pieces, or load the checkpoint with a max_model_len above {self._max_model_len}"
            tokens = prompt.num_text_tokens
            raise InvalidRequestError("text", f"has {tokens} tokens, and its prompt leaves room for {max(room, 0)} frames; {needed}")
        limit = ""
        if room < frames:
            limit = f"max_model_len ({self._max_model_len} rows of prompt and frames) has no room for more; load with a larger one"
        elif asked is None:
            limit = f"max_new_tokens is {frames + 1} by default; give a larger one"
        return Utterance(prompt, sampling.updated({"max_frames": min(frames, room)}), limit, audio=audio)


@contextmanager
def _names_of_the_call() -> Iterator[None]:
    """An error in the body that names a field of the prompt builder names the argument of the call instead."""
    try:
        yield
    except InvalidRequestError as error:
        if error.field not in NAMES_HERE:
            raise
        raise type(error)(NAMES_HERE[error.field], str(error).removeprefix(f"{error.field}: ")) from None


def _settings(delivery: Delivery, row: Mapping[str, Any]) -> AudioSettings:
    """What is done to the samples of a prompt that has these arguments."""
    if delivery.audio.loudness is None:
        return delivery.audio
    return delivery.of_voice(voice_key(row.get("voice"), row.get("instruct"), row.get("voice_prompt"))).audio
