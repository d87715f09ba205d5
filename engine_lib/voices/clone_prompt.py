"""VoiceClonePromptItem: a voice to clone, for base checkpoints. Its fields are those of qwen-tts.

An item is made once from reference audio and used for any number of texts.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.prompt import ClonedVoice
from engine_lib.speech.checks import is_blank


@dataclass(frozen=True, eq=False)
class VoiceClonePromptItem:
    """One voice, cloned by its speaker embedding (x-vector) only, or in context with its reference audio and text.

    Attributes:
        ref_code: [frames, num_code_groups] int64, the codec frames of the reference audio; None for x-vector only.
        ref_spk_embedding: [hidden_size] float32, as wide as an input row of the talker.
        x_vector_only_mode, icl_mode: how the voice is cloned; exactly one is True.
        ref_text: the words of the reference audio; not used if x_vector_only_mode.
    """

    ref_code: torch.Tensor | None
    ref_spk_embedding: torch.Tensor
    x_vector_only_mode: bool
    icl_mode: bool
    ref_text: str | None = None

    @cached_property
    def content_key(self) -> str:
        """SHA-256, in hex, of all fields: equal for equal values on any device and of any dtype."""
        digest = hashlib.sha256()
        codes = b"" if self.ref_code is None else self.ref_code.detach().to("cpu", torch.int64).contiguous().numpy().tobytes()
        embedding = self.ref_spk_embedding.detach().to("cpu", torch.float32).contiguous().numpy().tobytes()
        text = b"" if self.ref_text is None else self.ref_text.encode("utf-8", "surrogatepass")
        shape = () if self.ref_code is None else tuple(self.ref_code.shape)
        facts = (self.ref_code is None, shape, self.ref_text is None, bool(self.x_vector_only_mode), bool(self.icl_mode))
        for part in (repr(facts).encode(), codes, embedding, text):
            digest.update(len(part).to_bytes(8, "little") + part)
        return digest.hexdigest()

    def checked(self, config: CheckpointConfig) -> VoiceClonePromptItem:
        """This item with its tensors on the CPU, as int64 and float32.

        Raises:
            InvalidRequestError: a field has a type, shape or range that a checkpoint of `config` does not take.
        """
        for name in ("x_vector_only_mode", "icl_mode"):
            if not isinstance(getattr(self, name), (bool, np.bool_)):
                raise InvalidRequestError(name, f"is a {type(getattr(self, name)).__name__}; give True or False")
        if self.x_vector_only_mode == self.icl_mode:
            raise InvalidRequestError("icl_mode", f"and x_vector_only_mode are both {self.icl_mode}; exactly one must be True")
        embedding = _checked_embedding(self.ref_spk_embedding, config.talker.shape.hidden_size)
        if self.ref_text is not None and not isinstance(self.ref_text, str):
            raise InvalidRequestError("ref_text", f"is a {type(self.ref_text).__name__}; give a string")
        if self.x_vector_only_mode:
            if self.ref_code is not None:
                raise InvalidRequestError("ref_code", "is given with x_vector_only_mode, which does not use it; give None")
            return VoiceClonePromptItem(None, embedding, True, False, self.ref_text)
        if not self.ref_text or is_blank(self.ref_text):
            raise InvalidRequestError("ref_text", "is empty; give the words of the reference audio, or use x_vector_only_mode")
        return VoiceClonePromptItem(_checked_codes(self.ref_code, config), embedding, False, True, self.ref_text)

    def for_prompt(self, config: CheckpointConfig) -> ClonedVoice:
        """The facts that PromptBuilder needs, in numpy arrays.

        Raises:
            InvalidRequestError: as `checked`.
        """
        voice = self.checked(config)
        codes = None if voice.ref_code is None else voice.ref_code.numpy().astype(np.int16)
        return ClonedVoice(voice.ref_spk_embedding.numpy(), codes, voice.ref_text if voice.icl_mode else None)


def _checked_embedding(embedding: object, width: int) -> torch.Tensor:
    """`embedding` as [width] float32 on the CPU."""
    field = "ref_spk_embedding"
    if not isinstance(embedding, torch.Tensor):
        raise InvalidRequestError(field, f"is a {type(embedding).__name__}; give a torch.Tensor")
    if tuple(embedding.shape) != (width,) or not embedding.is_floating_point():
        expected = f"this checkpoint takes floating point numbers of shape ({width},)"
        raise InvalidRequestError(field, f"is {embedding.dtype} of shape {tuple(embedding.shape)}; {expected}")
    embedding = embedding.detach().to("cpu", torch.float32)
    if not embedding.isfinite().all():
        raise InvalidRequestError(field, "holds a value that is not a finite number; make the prompt again from its audio")
    return embedding


def _checked_codes(codes: object, config: CheckpointConfig) -> torch.Tensor:
    """`codes` as [frames, num_code_groups] int64 on the CPU."""
    field, groups, size = "ref_code", config.talker.num_code_groups, config.codec.codebook_size
    if not isinstance(codes, torch.Tensor):
        raise InvalidRequestError(field, f"is a {type(codes).__name__}; cloning in context needs a torch.Tensor [frames, {groups}]")
    if codes.ndim != 2 or codes.shape[1] != groups or not len(codes) or codes.is_floating_point() or codes.is_complex():
        expected = f"integers of shape (frames, {groups}), at least one frame, expected"
        raise InvalidRequestError(field, f"is {codes.dtype} of shape {tuple(codes.shape)}; {expected}")
    codes = codes.detach().to("cpu", torch.int64)
    if not 0 <= codes.min() <= codes.max() < size:
        raise InvalidRequestError(field, f"holds values {int(codes.min())} to {int(codes.max())}; only 0 to {size - 1} are codes")
    return codes
