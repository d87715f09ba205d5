"""Text, voice, language and instruction -> the rows the talker is prefilled with, and the text fed while it speaks.

A row is one talker input: the embedding of at most one text id plus the embeddings of at most one code per codebook. So a
prompt is integers only: cheap to make, to compare and to recompute after a preemption, whatever device the talker runs on.
The row order is that of `Qwen3TTSForConditionalGeneration.generate` in qwen-tts 0.1.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from engine_lib.checkpoint import Checkpoint
from engine_lib.errors import InvalidRequestError

NO_ID = -1  # a row without text, or without a code in that codebook

# Token counts of "<|im_start|>assistant\n" and "<|im_end|>\n<|im_start|>assistant\n", which wrap the text.
ROLE_LENGTH = 3
TAIL_LENGTH = 5


@dataclass(frozen=True)
class Prompt:
    """What one request feeds the talker.

    Attributes:
        text_ids: [rows] int32, NO_ID where a row has no text.
        codes: [rows, num_code_groups] int32, NO_ID where a row has no code; column 0 may hold special codec ids.
        trailing_text_ids: [n] int32; entry i joins the codes of frame i in the next input row, tts_pad after the last.
        num_text_tokens: tokens of the text to be spoken, for the frame budget.
    """

    text_ids: npt.NDArray[np.int32]
    codes: npt.NDArray[np.int32]
    trailing_text_ids: npt.NDArray[np.int32]
    num_text_tokens: int

    def __len__(self) -> int:
        return len(self.text_ids)


class PromptBuilder:
    """Checks the fields of a request against one checkpoint and lays out its prompt."""

    def __init__(self, checkpoint: Checkpoint, max_text_length: int) -> None:
        """`max_text_length`: longest text or instruction, in characters."""
        self.config = checkpoint.config
        self.max_text_length = max_text_length
        self._tokenizer = checkpoint.tokenizer

    @property
    def speakers(self) -> list[str]:
        """Built-in voices, sorted; empty unless the checkpoint is of kind custom_voice."""
        return sorted(self.config.talker.speaker_ids) if self.config.kind == "custom_voice" else []

    @property
    def languages(self) -> list[str]:
        """`auto` and the languages a request may name, sorted. Dialects come with a dialect speaker."""
        return sorted(["auto", *(name for name in self.config.talker.language_ids if "dialect" not in name)])

    @property
    def default_voice(self) -> str | None:
        """The voice of a request that names none: the first the checkpoint lists."""
        return next(iter(self.config.talker.speaker_ids), None) if self.config.kind == "custom_voice" else None

    def build(
        self,
        *,
        text: str,
        voice: str | None = None,
        language: str | None = None,
        instruct: str | None = None,
        non_streaming_mode: bool | None = None,
    ) -> Prompt:
        """Lay out the prompt of one request.

        Args:
            text: what to say.
            voice: a built-in speaker, any case; None takes `default_voice`, "" leaves the speaker row out.
            language: one of `languages`, any case; None is auto.
            instruct: how to say it; ignored by 0.6B CustomVoice checkpoints, as in the official package.
            non_streaming_mode: True puts the whole text into the prompt, False feeds it a row a frame; None is True.

        Raises:
            InvalidRequestError: a field has a value this checkpoint does not allow.
        """
        if self.config.kind == "base":
            raise InvalidRequestError("reference_audio", "a checkpoint of kind base clones a voice; this version does not serve it yet")
        self._check_text("text", text)
        voice = self._checked_voice(voice)
        language_id = self._language_id(language, voice)
        instruct_ids = self._instruct_ids(instruct)
        ids = self._tokenize(f"<|im_start|>assistant\n{text}<|im_end|>\n<|im_start|>assistant\n")
        role, spoken = ids[:ROLE_LENGTH], ids[ROLE_LENGTH:-TAIL_LENGTH]

        rows = _Rows(self.config.talker.num_code_groups)
        rows.add(instruct_ids)
        rows.add(role)
        self._add_codec_tags(rows, language_id, voice)
        talker = self.config.talker
        if non_streaming_mode is None or non_streaming_mode:
            text_and_end = [*spoken, self.config.tts_eos_token_id]
            rows.add(text_and_end, [talker.codec_pad_id] * len(text_and_end))
            rows.add([self.config.tts_pad_token_id], [talker.codec_bos_id])
            trailing: list[int] = []
        else:
            rows.add(spoken[:1], [talker.codec_bos_id])
            trailing = [*spoken[1:], self.config.tts_eos_token_id]
        return rows.prompt(trailing, len(spoken))

    def _add_codec_tags(self, rows: _Rows, language_id: int | None, voice: str | None) -> None:
        """tts_pad.. + tts_bos over [think.., language, .., speaker, pad]; the codec's bos belongs to the text's first row."""
        talker = self.config.talker
        if language_id is None:
            tags = [talker.codec_nothink_id, talker.codec_think_bos_id, talker.codec_think_eos_id]
        else:
            tags = [talker.codec_think_id, talker.codec_think_bos_id, language_id, talker.codec_think_eos_id]
        if voice:
            tags.append(talker.speaker_ids[voice])
        tags.append(talker.codec_pad_id)
        rows.add([self.config.tts_pad_token_id] * (len(tags) - 1) + [self.config.tts_bos_token_id], tags)

    def _checked_voice(self, voice: str | None) -> str | None:
        if self.config.kind != "custom_voice":
            if voice:
                raise InvalidRequestError("voice", f"a {self.config.kind} checkpoint has no built-in voices; leave voice out")
            return None
        if voice is None:
            return self.default_voice
        if voice and voice.lower() not in self.config.talker.speaker_ids:
            raise InvalidRequestError("voice", f"{voice[:100]!r} is unknown; allowed: {', '.join(self.speakers)}")
        return voice.lower()

    def _language_id(self, language: str | None, voice: str | None) -> int | None:
        name = (language or "auto").lower()
        if name not in self.languages:
            raise InvalidRequestError("language", f"{name[:100]!r} is unknown; allowed: {', '.join(self.languages)}")
        dialect = self.config.talker.speaker_dialects.get(voice) if voice else None
        if dialect and name in ("auto", "chinese"):
            name = dialect
        return None if name == "auto" else self.config.talker.language_ids[name]

    def _instruct_ids(self, instruct: str | None) -> list[int]:
        # The official package tests `size in "0b6"`; only custom voice checkpoints of that size ignore instructions.
        if not instruct or (self.config.kind == "custom_voice" and self.config.size in "0b6"):
            return []
        self._check_text("instruct", instruct)
        return self._tokenize(f"<|im_start|>user\n{instruct}<|im_end|>\n")

    def _check_text(self, field: str, text: str) -> None:
        if not text.strip():
            raise InvalidRequestError(field, "is empty; give at least one word")
        if len(text) > self.max_text_length:
            raise InvalidRequestError(field, f"has {len(text)} characters; at most {self.max_text_length} are allowed")
        try:
            text.encode()
        except UnicodeEncodeError:
            raise InvalidRequestError(field, "holds a lone surrogate; give valid Unicode text") from None

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text)["input_ids"])


class _Rows:
    """Rows under construction."""

    def __init__(self, num_code_groups: int) -> None:
        self._num_code_groups = num_code_groups
        self._text_ids: list[int] = []
        self._first_codes: list[int] = []

    def add(self, text_ids: Sequence[int], first_codes: Sequence[int] | None = None) -> None:
        self._text_ids.extend(text_ids)
        self._first_codes.extend([NO_ID] * len(text_ids) if first_codes is None else first_codes)

    def prompt(self, trailing: Sequence[int], num_text_tokens: int) -> Prompt:
        codes = np.full((len(self._text_ids), self._num_code_groups), NO_ID, np.int32)
        codes[:, 0] = self._first_codes
        return Prompt(np.array(self._text_ids, np.int32), codes, np.array(trailing, np.int32), num_text_tokens)
