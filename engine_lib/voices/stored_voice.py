"""The two files of a stored voice, read and written: facts as JSON, tensors as safetensors.

The content of the store is not trusted: reading checks all names, types, shapes and values. An error names the file and the problem;
it quotes no text of the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import numpy as np
import numpy.typing as npt
import safetensors
from safetensors.numpy import save

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.errors import InvalidRequestError
from engine_lib.speech.checks import is_unicode
from engine_lib.speech.lexicon import Lexicon

if TYPE_CHECKING:
    from engine_lib.voices.clone_prompt import VoiceClonePromptItem

FORMAT_VERSION = 1
FACTS_SUFFIX, TENSORS_SUFFIX = ".json", ".safetensors"
MAX_NUMBER = 2**31
# Declared type of a field -> types that JSON may give.
FIELD_TYPES: dict[Any, tuple[type, ...]] = {
    str: (str,),
    str | None: (str, type(None)),
    bool: (bool,),
    int: (int,),
    float: (int, float),
    dict[str, str] | None: (dict, type(None)),
}
# Fields that a voice may lack. Its file lacks them, too, so that an older server reads it.
OPTIONAL = ("blend", "lexicon")

Arrays = dict[str, npt.NDArray[Any]]


class RefusedError(Exception):
    """A file of the store cannot be used; the message says why."""


@dataclass(frozen=True, kw_only=True)
class StoredVoice:
    """The facts about one voice.

    Attributes:
        name: its name in requests.
        created: date and time, UTC, ISO 8601.
        consent: the speaker's agreement, in the words of the person who added the voice.
        reference_text: the words of the reference; None if only its timbre is used and no text was given.
        reference_seconds, reference_sample_rate: of the reference audio as it was given.
        x_vector_only: True if only the timbre is cloned, False if new speech continues the reference, in context.
        made_by: name of the checkpoint that encoded it.
        enc_dim: width of its speaker embedding.
        num_code_groups: codebooks of its reference codes; 0 if there are none.
        sha256: of NAME.safetensors.
        blend: the voices that it was mixed of and their shares, as in `anna:0.7+ben:0.3`; such a voice has no recording of its own, so
            its seconds and sample rate are 0. None if it was made from a recording.
        lexicon: words and their spellings, for words that this voice says wrong; None: none.
    """

    name: str
    created: str
    consent: str
    reference_text: str | None
    reference_seconds: float
    reference_sample_rate: int
    x_vector_only: bool
    made_by: str
    enc_dim: int
    num_code_groups: int
    sha256: str
    blend: str | None = None
    lexicon: dict[str, str] | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """All fields that it has, by name."""
        return {name: value for name, value in asdict(self).items() if name not in OPTIONAL or value is not None}

    def pack(self) -> bytes:
        """The content of NAME.json."""
        return json.dumps({"format_version": FORMAT_VERSION, **self.facts}, ensure_ascii=False, indent=1).encode()

    @classmethod
    def unpack(cls, name: str, content: bytes) -> StoredVoice:
        """Read the content of NAME.json.

        Raises:
            RefusedError: it cannot be a result of `pack` for a voice of this name.
        """
        file = name + FACTS_SUFFIX
        try:
            values = json.loads(content)
        except (ValueError, RecursionError):
            raise RefusedError(f"{file} is not valid JSON") from None
        if not isinstance(values, dict) or values.pop("format_version", None) != FORMAT_VERSION:
            raise RefusedError(f"{file} is not an object of format_version {FORMAT_VERSION}")
        expected = [spec.name for spec in fields(cls)]
        for field in OPTIONAL:
            values.setdefault(field, None)
        if set(values) != set(expected):
            raise RefusedError(f"{file} has other fields than {', '.join(expected)}")
        types = get_type_hints(cls)
        for field, value in values.items():
            if not _is_allowed(value, FIELD_TYPES[types[field]]):
                raise RefusedError(f"{file}: {field} has another type or range than it can have")
        if values["name"] != name:
            raise RefusedError(f"{file} is that of a voice of another name")
        try:
            lexicon = checked_lexicon(values["lexicon"])
        except InvalidRequestError:
            raise RefusedError(f"{file}: its lexicon is not one that a voice can have") from None
        values["lexicon"] = lexicon
        return cls(**values)

    def arrays(self, content: bytes) -> Arrays:
        """Read the content of NAME.safetensors: exactly the tensors, types and shapes that these facts require.

        Raises:
            RefusedError: it contains anything else, or numbers that are not finite.
        """
        file = self.name + TENSORS_SUFFIX
        try:
            tensors: Mapping[str, Mapping[str, Any]] = dict(safetensors.deserialize(content))
        except safetensors.SafetensorError:
            raise RefusedError(f"{file} is not a safetensors file, or is cut short") from None
        expected: dict[str, tuple[str, type[np.generic], list[int]]] = {"ref_spk_embedding": ("F32", np.float32, [self.enc_dim])}
        if not self.x_vector_only:
            frames = next(iter(tensors["ref_code"]["shape"]), 0) if "ref_code" in tensors else 0
            expected["ref_code"] = ("I16", np.int16, [frames, self.num_code_groups])
        found = {name: (tensor["dtype"], tensor["shape"]) for name, tensor in tensors.items()}
        if found != {name: (dtype, shape) for name, (dtype, _, shape) in expected.items()}:
            raise RefusedError(f"{file} has other tensors, types or shapes than its .json says")
        arrays: Arrays = {name: np.frombuffer(tensors[name]["data"], kind).reshape(shape) for name, (_, kind, shape) in expected.items()}
        if not all(array.size and np.isfinite(array).all() for array in arrays.values()):
            raise RefusedError(f"{file} has an empty tensor or values that are not finite numbers")
        return arrays

    def item(self, arrays: Arrays, config: CheckpointConfig) -> VoiceClonePromptItem:
        """The voice clone prompt of `arrays`.

        Raises:
            InvalidRequestError: a checkpoint of `config` cannot speak with it.
        """
        import torch  # here because it loads slowly, and a process that only lists voices does not need it

        from engine_lib.voices.clone_prompt import VoiceClonePromptItem

        codes = torch.from_numpy(arrays["ref_code"].astype(np.int64)) if "ref_code" in arrays else None
        embedding = torch.from_numpy(arrays["ref_spk_embedding"].copy())
        item = VoiceClonePromptItem(codes, embedding, self.x_vector_only, not self.x_vector_only, self.reference_text)
        try:
            return item.checked(config)
        except InvalidRequestError as error:
            made = f"it was made by {self.made_by[:100]!r} and does not fit this checkpoint"
            raise InvalidRequestError("voice", f"{self.name!r} cannot be used: {made} ({error}); add it again with this one") from None


def checked_lexicon(value: object) -> dict[str, str] | None:
    """The words and spellings of a voice that is stored with `value`; None for none.

    Raises:
        InvalidRequestError: it is no lexicon; the field is `lexicon`.
    """
    return None if value is None or value == {} else dict(Lexicon.of(value).spellings)


def pack_tensors(embedding: npt.NDArray[np.float32], codes: npt.NDArray[np.int64] | None = None) -> bytes:
    """The content of NAME.safetensors, of the fields of a VoiceClonePromptItem."""
    # Contiguous, because safetensors writes the memory of an array and ignores its strides.
    arrays: Arrays = {"ref_spk_embedding": np.ascontiguousarray(embedding, np.float32)}
    if codes is not None:
        arrays["ref_code"] = np.ascontiguousarray(codes, np.int16)
    return save(arrays)


def is_of_a_voice(file: Path) -> bool:
    """Whether `file` begins as `pack_tensors` does, and is not another program's, such as the weights of a model."""
    try:
        if not stat.S_ISREG(os.lstat(file).st_mode):
            return False
        with file.open("rb") as opened:
            return opened.read(64)[8:].startswith(b'{"ref_spk_embedding":')  # behind the length of the header
    except OSError:
        return False


def digest(tensors: bytes) -> str:
    """The `sha256` of a voice with these tensors."""
    return hashlib.sha256(tensors).hexdigest()


def _is_allowed(value: object, kinds: tuple[type, ...]) -> bool:
    """Whether `value` has one of `kinds` and is a bool, a number in 0..MAX_NUMBER, a text that UTF-8 can encode, or None."""
    if type(value) not in kinds:
        return False
    if isinstance(value, str):
        return is_unicode(value)
    return not isinstance(value, int | float) or 0 <= value < MAX_NUMBER
