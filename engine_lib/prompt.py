"""From text, voice, language and instruction to the rows of the prefill and the text fed after it.

A row is one talker input: the embedding of at most one text id plus the embeddings of at most one code per codebook. So a
prompt is integers: cheap to make, to compare and to recompute after a preemption, whatever device the talker runs on. The
talker has no embedding of a cloned voice: SPEAKER_EMBEDDING_ID marks its row until the row is sent to the device.
The row order is that of `Qwen3TTSForConditionalGeneration.generate` in qwen-tts 0.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from engine_lib.checkpoint import Checkpoint
from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.errors import InvalidRequestError, NotFoundError, nearest
from engine_lib.speech.blend import Blend, is_blend, of_part
from engine_lib.speech.checks import is_blank
from engine_lib.streamed_text import SafeBorders, StreamedText, TextRows, check_text, empty

# Codes of some rows: of codebook 0 [rows], of all codebooks [rows, num_code_groups], or none.
Codes = Sequence[int] | npt.NDArray[np.int32]

NO_ID = -1  # a row without text, or without a code in that codebook
SPEAKER_EMBEDDING_ID = -2  # in codebook 0: the `speaker_embedding` of the prompt

ROLE, TAIL = "<|im_start|>assistant\n", "<|im_end|>\n<|im_start|>assistant\n"  # around the text
# Token counts of these, and of "<|im_end|>\n" after a reference text.
ROLE_LENGTH = 3
TAIL_LENGTH = 5
REFERENCE_TAIL_LENGTH = 2


@dataclass(frozen=True, eq=False)
class ClonedVoice:
    """The facts about a cloned voice that its prompt needs, checked against the checkpoint.

    Attributes:
        speaker_embedding: [hidden_size] float32.
        reference_codes, reference_text: [frames, num_code_groups] int16 and its words, of a voice cloned in context; else both None.
    """

    speaker_embedding: npt.NDArray[np.float32]
    reference_codes: npt.NDArray[np.int16] | None = None
    reference_text: str | None = None


class VoiceToClone(Protocol):
    """A voice to clone, not checked yet. VoiceClonePromptItem is one."""

    def for_prompt(self, config: CheckpointConfig) -> ClonedVoice:
        """Check the voice and return the facts about it.

        Raises:
            InvalidRequestError: a checkpoint of `config` cannot speak with it.
        """


@dataclass(frozen=True)
class Prompt:
    """The inputs of the talker for one request.

    Attributes:
        text_ids: [rows] int32, NO_ID if a row has no text. Fewer than the rows if they are to come, as in PromptBuilder.open.
        codes: [rows, num_code_groups] int32, NO_ID if a row has no code; column 0 may hold special codec ids and SPEAKER_EMBEDDING_ID.
        trailing_text_ids: [n] int32; entry i joins the codes of frame i in the next input row, tts_pad after the last.
        num_text_tokens: tokens of the text to be spoken, for the frame budget.
        speaker_embedding: [hidden_size] float32, of a cloned voice.
        reference_codes: [frames, num_code_groups] int16, the reference of a voice cloned in context. The codec decodes them
            before the first frame, as the past of the new speech, and returns no audio for them.
        text_start: the row of the first token of the text to be spoken. Row `text_start` + i has token i, in the prompt or behind it.
    """

    text_ids: npt.NDArray[np.int32]
    codes: npt.NDArray[np.int32]
    trailing_text_ids: npt.NDArray[np.int32]
    num_text_tokens: int
    speaker_embedding: npt.NDArray[np.float32] | None = None
    reference_codes: npt.NDArray[np.int16] | None = None
    text_start: int = 0

    def __len__(self) -> int:
        return len(self.codes)


class PromptBuilder:
    """Checks the fields of requests against one checkpoint and lays out their prompts."""

    def __init__(self, checkpoint: Checkpoint, max_text_length: int) -> None:
        """`max_text_length`: longest text or instruction, in characters."""
        self.config = checkpoint.config
        self.max_text_length = max_text_length
        self._tokenizer = checkpoint.tokenizer
        self._speaker_embeddings = checkpoint.speaker_embeddings()  # now, because the file may be another when the first blend comes
        self._borders = SafeBorders(self._tokenizer)
        self._languages = sorted(["auto", *self.config.talker.languages])

    @property
    def speakers(self) -> list[str]:
        """Built-in voices, sorted; empty unless the checkpoint is of kind custom_voice."""
        return sorted(self.config.talker.speaker_ids) if self.config.kind == "custom_voice" else []

    @property
    def languages(self) -> list[str]:
        """`auto` and the languages a request may name, sorted."""
        return list(self._languages)

    @property
    def default_voice(self) -> str | None:
        """The voice if a request names none: the first in the checkpoint."""
        return next(iter(self.config.talker.speaker_ids), None) if self.config.kind == "custom_voice" else None

    def check(self, *, text: str | None, language: str | None = None, instruct: str | None = None) -> None:
        """Check these fields as `build` does, while the voice is still being encoded; `text` is None if it is to come.

        Raises:
            InvalidRequestError: a field has a value this checkpoint does not allow.
        """
        if text is not None:
            self._check_text("text", text)
        self._language_id(language, None)
        self._instruct_ids(instruct)

    def build(
        self,
        *,
        text: str,
        voice: str | None = None,
        language: str | None = None,
        instruct: str | None = None,
        non_streaming_mode: bool | None = None,
        voice_prompt: VoiceToClone | None = None,
    ) -> Prompt:
        """Lay out the prompt of one request.

        Args:
            text: the words to speak.
            voice: a built-in speaker, any case, or a blend of them (engine_lib/speech/blend.py), which speaks the dialect of the speaker
                with the largest share; None takes `default_voice`, "" leaves the speaker row out.
            language: one of `languages`, any case; None is auto.
            instruct: the manner of speaking; ignored by 0.6B CustomVoice checkpoints, as in the official package.
            non_streaming_mode: True puts the whole text into the prompt, False feeds one row of it with each frame; None is
                False for checkpoints of kind base and True for the others.
            voice_prompt: the voice to clone, for checkpoints of kind base.

        Raises:
            InvalidRequestError: a field has a value this checkpoint does not allow.
        """
        self._check_text("text", text)
        ids = self._tokenize(f"{ROLE}{text}{TAIL}")
        role, spoken = ids[:ROLE_LENGTH], ids[ROLE_LENGTH:-TAIL_LENGTH]
        rows, cloned = self._begin(role, voice, language, instruct, voice_prompt)
        if non_streaming_mode is None:
            non_streaming_mode = self.config.kind != "base"
        add_text = self._add_whole_text if non_streaming_mode else self._add_first_text
        text_start = len(rows.text_ids) + len(self._reference_ids(cloned))
        trailing = add_text(rows, spoken, cloned)
        return replace(rows.prompt(trailing, len(spoken), cloned), text_start=text_start)

    def token_spans(self, text: str, is_first: bool = True) -> list[tuple[int, int]]:
        """What each token of a text to be spoken says: the code points from .. to .. of `text`. Tokens may share one, as its bytes.

        Args:
            text: the text, or a part of it that StreamedText gives out.
            is_first: it is the beginning of the text.
        """
        before, num_before = (ROLE, ROLE_LENGTH) if is_first else ("", 0)
        offsets = self._tokenizer.encode(f"{before}{text}{TAIL}").offsets[num_before:-TAIL_LENGTH]
        return [(max(start - len(before), 0), max(end - len(before), 0)) for start, end in offsets]

    def open(
        self,
        *,
        voice: str | None = None,
        language: str | None = None,
        instruct: str | None = None,
        voice_prompt: VoiceToClone | None = None,
    ) -> tuple[Prompt, TextRows]:
        """Lay out the prompt of a request with text to come: as `build` does with `non_streaming_mode` False, for any text.

        Args, raises:
            As in `build`.

        Returns:
            The prompt without the text of its rows, and the object that makes that text, and the trailing one, of pieces.
        """
        rows, cloned = self._begin([NO_ID] * ROLE_LENGTH, voice, language, instruct, voice_prompt)
        head, frames = [*rows.text_ids], self._bos_and_reference(cloned)
        rows.add([NO_ID] * len(frames), frames)
        reference = self._reference_ids(cloned)
        prompt = replace(rows.prompt([], 0, cloned), text_ids=np.empty(0, np.int32), text_start=len(head) + len(reference))
        text = StreamedText(self._borders, self._tokenize, before=ROLE, after=TAIL)
        role = slice(head.index(NO_ID), head.index(NO_ID) + ROLE_LENGTH)
        end = self.config.tts_eos_token_id
        return prompt, TextRows(text, [*head, *reference], role, end=end, max_length=self.max_text_length)

    def _begin(
        self, role: list[int], voice: str | None, language: str | None, instruct: str | None, voice_prompt: VoiceToClone | None
    ) -> tuple[_Rows, ClonedVoice | None]:
        """The rows before the text, and the voice to clone."""
        cloned = self._checked_clone(voice_prompt)
        if (blend := self._blend(voice)) is not None:
            voice, cloned = blend.main, ClonedVoice(blend.mix([self._speaker_embeddings[name] for name in blend.names]))
        else:
            voice = self._checked_voice(voice)
        language_id = self._language_id(language, voice)
        rows = _Rows(self.config.talker.num_code_groups)
        rows.add(self._instruct_ids(instruct))
        rows.add(role)
        speaker = SPEAKER_EMBEDDING_ID if cloned else self.config.talker.speaker_ids[voice] if voice else None
        self._add_codec_tags(rows, language_id, speaker)
        return rows, cloned

    def _add_codec_tags(self, rows: _Rows, language_id: int | None, speaker: int | None) -> None:
        """Add tts_pad.. + tts_bos over [think.., language, .., speaker, pad]; the codec's bos belongs to a row of the text."""
        talker = self.config.talker
        if language_id is None:
            tags = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
        else:
            tags = [talker.codec_think_id, talker.codec_think_bos_id, language_id, talker.codec_think_eos_id]
        if speaker is not None:
            tags.append(speaker)
        tags.append(talker.codec_pad_id)
        rows.add([self.config.tts_pad_token_id] * (len(tags) - 1) + [self.config.tts_bos_token_id], tags)

    def _add_whole_text(self, rows: _Rows, spoken: list[int], cloned: ClonedVoice | None) -> list[int]:
        """Add all text and tts_eos over pads, then the codec's bos and the reference over tts_pad. Returns no text to be fed."""
        text = [*self._reference_ids(cloned), *spoken, self.config.tts_eos_token_id]
        frames = self._bos_and_reference(cloned)
        rows.add(text, [self.config.talker.codec_pad_id] * len(text))
        rows.add([self.config.tts_pad_token_id] * len(frames), frames)
        return []

    def _add_first_text(self, rows: _Rows, spoken: list[int], cloned: ClonedVoice | None) -> list[int]:
        """Add the codec's bos and the reference, over rows of text as far as they go. Returns the text left to be fed."""
        text = [*self._reference_ids(cloned), *spoken, self.config.tts_eos_token_id]
        frames = self._bos_and_reference(cloned)
        padding = [self.config.tts_pad_token_id] * (len(frames) - len(text))
        rows.add([*text[: len(frames)], *padding], frames)
        return text[len(frames) :]

    def _reference_ids(self, cloned: ClonedVoice | None) -> list[int]:
        """Ids of the reference text of a voice cloned in context."""
        if cloned is None or cloned.reference_text is None:
            return []
        return self._tokenize(f"<|im_start|>assistant\n{cloned.reference_text}<|im_end|>\n")[ROLE_LENGTH:-REFERENCE_TAIL_LENGTH]

    def _bos_and_reference(self, cloned: ClonedVoice | None) -> Codes:
        """The codec's bos, then the codes of a voice cloned in context; in a form that `_Rows.add` takes."""
        talker = self.config.talker
        if cloned is None or cloned.reference_codes is None:
            return [talker.codec_bos_id]
        bos = np.full((1, talker.num_code_groups), NO_ID, np.int32)
        bos[0, 0] = talker.codec_bos_id
        return np.concatenate([bos, cloned.reference_codes.astype(np.int32)])

    def _checked_clone(self, voice_prompt: VoiceToClone | None) -> ClonedVoice | None:
        if self.config.kind != "base":
            if voice_prompt is not None:
                raise InvalidRequestError("voice_prompt", f"a {self.config.kind} checkpoint clones no voice; use one of kind base")
            return None
        if voice_prompt is None:
            raise InvalidRequestError("reference_audio", "is missing; a base checkpoint speaks with a voice it clones, so give one")
        cloned = voice_prompt.for_prompt(self.config)
        if cloned.reference_text is not None:
            self._check_text("ref_text", cloned.reference_text)
        return cloned

    def _checked_voice(self, voice: str | None) -> str | None:
        if self.config.kind != "custom_voice":
            if voice:
                raise InvalidRequestError("voice", f"a {self.config.kind} checkpoint has no built-in voices; leave voice out")
            return None
        if voice is None:
            return self.default_voice
        if voice and voice.lower() not in self.config.talker.speaker_ids:
            allowed = ", ".join(self.speakers) + nearest(voice[:100].lower(), self.speakers)
            raise NotFoundError("voice", f"{voice[:100]!r} is unknown; allowed: {allowed}")
        return voice.lower()

    def _blend(self, voice: str | None) -> Blend | None:
        """The blend of built-in speakers that `voice` asks for; a speaker of that very name goes first."""
        if self.config.kind != "custom_voice" or not voice or not is_blend(voice) or voice.lower() in self.config.talker.speaker_ids:
            return None
        blend = Blend.parse(voice)
        try:
            for name in blend.names:
                self._checked_voice(name)
        except NotFoundError as error:
            raise of_part(error) from None
        return blend

    def _language_id(self, language: str | None, voice: str | None) -> int | None:
        name = (language or "auto").lower()
        if name not in self._languages:
            allowed = ", ".join(self.languages) + nearest(name[:100], self.languages)
            raise InvalidRequestError("language", f"{name[:100]!r} is unknown; allowed: {allowed}")
        dialect = self.config.talker.speaker_dialects.get(voice) if voice else None
        if dialect and name in ("auto", "chinese"):
            name = dialect
        return None if name == "auto" else self.config.talker.language_ids[name]

    def _instruct_ids(self, instruct: str | None) -> list[int]:
        # The official package tests `size in "0b6"`; only custom voice checkpoints of that size ignore instructions.
        if not instruct or (self.config.kind == "custom_voice" and self.config.size in "0b6"):
            return []
        if self.config.kind == "base":
            raise InvalidRequestError("instruct", "a base checkpoint takes no instruction; leave it out, or use one of another kind")
        self._check_text("instruct", instruct)
        return self._tokenize(f"<|im_start|>user\n{instruct}<|im_end|>\n")

    def _check_text(self, field: str, text: str) -> None:
        check_text(field, text, self.max_text_length)
        if is_blank(text):
            raise empty(field)

    def _tokenize(self, text: str) -> list[int]:
        # The fast tokenizer itself: the wrapper of transformers doubles the time and adds nothing a request needs.
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids


class _Rows:
    """Rows under construction: lists, because most prompts are short and making an array costs more than its rows."""

    def __init__(self, num_code_groups: int) -> None:
        self._num_code_groups = num_code_groups
        self.text_ids: list[int] = []
        self._first_codes: list[int] = []
        self._frames: list[tuple[int, npt.NDArray[np.int32]]] = []  # first row, and the codes of all codebooks from there on

    def add(self, text_ids: Sequence[int], codes: Codes = ()) -> None:
        """Append rows of `text_ids` without codes, with codes of codebook 0 [rows], or of all codebooks [rows, num_code_groups]."""
        if isinstance(codes, np.ndarray):
            self._frames.append((len(self.text_ids), codes))
            codes = ()
        self.text_ids.extend(text_ids)
        self._first_codes.extend(codes or [NO_ID] * len(text_ids))

    def prompt(self, trailing: Sequence[int], num_text_tokens: int, cloned: ClonedVoice | None) -> Prompt:
        """The prompt of all rows so far."""
        embedding, reference = (cloned.speaker_embedding, cloned.reference_codes) if cloned else (None, None)
        text_ids, trailing_ids = np.array(self.text_ids, np.int32), np.array(trailing, np.int32)
        codes = np.full((len(text_ids), self._num_code_groups), NO_ID, np.int32)
        codes[:, 0] = self._first_codes
        for start, frames in self._frames:
            codes[start : start + len(frames)] = frames
        return Prompt(text_ids, codes, trailing_ids, num_text_tokens, embedding, reference)
