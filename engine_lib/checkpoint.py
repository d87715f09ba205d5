"""A checkpoint folder in the published layout: its configs, its safetensors weights, its tokenizer.

Weights are taken one by one with the shape the model expects, so a missing or misshaped one is named at load.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from packaging.version import Version
from safetensors import SafetensorError, safe_open
from tokenizers import Regex
from tokenizers.pre_tokenizers import Split

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.checkpoint_files import checkpoint_folder, is_lfs_pointer, why_unreadable
from engine_lib.errors import CheckpointError, InvalidRequestError
from engine_lib.sampling import SamplingParams

if TYPE_CHECKING:
    import torch  # types only: models without an engine import this module, and must not load torch
    from transformers import PreTrainedTokenizerBase

# A word ends before a capital that follows a small letter; contractions are not split off; slashes stay with line ends.
CASE_SPLIT = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


class Checkpoint:
    """One checkpoint folder.

    Attributes:
        path: the folder.
        config: the content of its JSON files.
    """

    def __init__(self, path: str | Path) -> None:
        """Read the JSON files of `path`.

        Raises:
            CheckpointError: the folder, a file or a field is missing or not supported.
        """
        self.path = checkpoint_folder(path)
        self.config = CheckpointConfig.read(self.path)

    def weights(self) -> Weights:
        """Weights of the talker, the code predictor and, if the kind is `base`, the speaker encoder."""
        return Weights(self.path)

    def speech_tokenizer_weights(self) -> Weights:
        """Weights of the codec (`decoder.*`) and of the reference encoder (`encoder.*`)."""
        return Weights(self.path / "speech_tokenizer")

    def sampling_defaults(self) -> SamplingParams:
        """Sampling of a request without parameters: generation_config.json over the defaults of qwen-tts.

        Raises:
            CheckpointError: the file has a value that no request may have.
        """
        names = {field.name for field in fields(SamplingParams)}
        try:
            return SamplingParams().updated({k: v for k, v in self.config.generation_defaults.items() if k in names})
        except InvalidRequestError as error:
            raise CheckpointError(f"{self.path / 'generation_config.json'}: {error}") from None

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The byte-level BPE tokenizer of the folder (vocab.json, merges.txt, tokenizer_config.json).

        Its ids are those of qwen-tts 0.1.1: transformers 4.57.3 with `fix_mistral_regex`.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        from transformers import Qwen2TokenizerFast  # slow to import, and the codec process never needs it

        self._check_tokenizer_files()
        try:
            tokenizer = Qwen2TokenizerFast.from_pretrained(str(self.path), local_files_only=True, fix_mistral_regex=True)
            if _splits_by_case(tokenizer.vocab_size, json.loads((self.path / "config.json").read_text(encoding="utf-8"))):
                # transformers 5 does not patch these folders; the pattern must not depend on the installed release.
                tokenizer.backend_tokenizer.pre_tokenizer[0] = Split(Regex(CASE_SPLIT), "isolated")
        except Exception as error:
            raise CheckpointError(f"{self.path}: the tokenizer does not load: {error}") from error
        rows, highest = self.config.talker.text_vocab_size, max(tokenizer.get_vocab().values())
        if highest >= rows:
            raise CheckpointError(f"{self.path}: the tokenizer has an id {highest}; the text table of config.json has {rows} rows")
        return tokenizer

    def _check_tokenizer_files(self) -> None:
        needed = ("tokenizer.json",) if (self.path / "tokenizer.json").is_file() else ("vocab.json", "merges.txt")
        for file in (self.path / name for name in needed):
            if not file.is_file():
                raise CheckpointError(f"{file} is missing; the folder is not a complete Qwen3-TTS checkpoint")
            if is_lfs_pointer(file):
                raise CheckpointError(why_unreadable(file, ""))


def _splits_by_case(vocab_size: int, config: Mapping[str, Any]) -> bool:
    """Whether transformers 4.57.3 replaces the pattern of Qwen2 by CASE_SPLIT; it does for published checkpoints."""
    written_by = config.get("transformers_version")
    return vocab_size > 100_000 and (written_by is None or Version("4.57.2") < Version(written_by) < Version("5.0.0"))


@dataclass(frozen=True)
class Shard:
    """Part `index` of `count` equal parts of a weight."""

    index: int
    count: int

    def of(self, size: int) -> slice:
        """The part of `size` rows or columns; `count` divides `size`."""
        part = size // self.count
        return slice(self.index * part, (self.index + 1) * part)


WHOLE = Shard(0, 1)


class Weights:
    """The tensors of `model.safetensors` in one folder, or of the shards that `model.safetensors.index.json` lists."""

    def __init__(self, folder: Path) -> None:
        single, index = folder / "model.safetensors", folder / "model.safetensors.index.json"
        if single.is_file():
            files = {single}
        elif index.is_file():
            try:
                files = {folder / name for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
            except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
                raise CheckpointError(f"{index}: no usable weight_map: {error!r}") from None
        else:
            raise CheckpointError(f"{single} is missing, and there is no {index.name} either")
        self._folder = folder
        self._files = {}
        for file in sorted(files):
            try:
                handle = safe_open(str(file), framework="pt")
            except (OSError, SafetensorError) as error:
                raise CheckpointError(why_unreadable(file, error)) from None
            self._files.update(dict.fromkeys(handle.keys(), handle))

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._files)

    def stored(self, name: str) -> torch.Tensor:
        """Tensor `name` as stored.

        Raises:
            CheckpointError: the weight is missing.
        """
        tensor: torch.Tensor = self._file_of(name).get_tensor(name)
        return tensor

    def take(self, name: str, shape: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Tensor `name`, of exactly `shape`, as `dtype` on `device`.

        Raises:
            CheckpointError: the weight is missing or has another shape; the message names it.
        """
        tensor = self.stored(name)
        self._check_shape(name, tensor.shape, shape)
        return tensor.to(device=device, dtype=dtype)

    def take_shard(
        self, name: str, shape: Iterable[int], shard: Shard, *, dim: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Like `take`, but returns and reads only a shard along `dim` (0 or 1) of a weight of `shape`."""
        if shard == WHOLE:
            return self.take(name, shape, dtype=dtype, device=device)
        stored = self._file_of(name).get_slice(name)
        self._check_shape(name, stored.get_shape(), shape)
        part = shard.of(stored.get_shape()[dim])
        tensor: torch.Tensor = stored[part] if dim == 0 else stored[:, part]
        return tensor.to(device=device, dtype=dtype).contiguous()

    def _file_of(self, name: str) -> Any:
        if name not in self._files:
            raise CheckpointError(f"{self._folder}: weight {name} is missing")
        return self._files[name]

    def _check_shape(self, name: str, stored: Iterable[int], expected: Iterable[int]) -> None:
        if tuple(stored) != tuple(expected):
            raise CheckpointError(f"{self._folder}: weight {name} has shape {tuple(stored)}; {tuple(expected)} expected")
