"""A checkpoint folder in the published layout: its configs, its safetensors weights, its tokenizer.

Weights are taken one by one with the shape the model expects, so a missing or misshaped one is named at load.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from tokenizers import Tokenizer

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.checkpoint_files import CODEC, Fields, checkpoint_folder, why_missing, why_unreadable
from engine_lib.errors import CheckpointError, InvalidRequestError
from engine_lib.sampling import SamplingParams
from engine_lib.speech.alignment_file import Alignment
from engine_lib.text_tokenizer import read_tokenizer

if TYPE_CHECKING:
    import torch  # types only: models without an engine import this module, and must not load torch


INCOMPLETE = ("not fully covered", "header too small", "invalid header length")  # words of safetensors for a file that ends too early
SINGLE_FILE, INDEX_FILE = "model.safetensors", "model.safetensors.index.json"  # all weights, or the names of the files that have them
SPECIAL = ("<|im_start|>", "<|im_end|>")  # tokens around each text
OTHER_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".gguf", ".onnx")  # suffixes
QUANTISED = "a quantised checkpoint is not supported; give one in float32, float16 or bfloat16"
CONVERTED = ("qweight", "scales")  # what AWQ, GPTQ and MLX store beside or instead of a weight
# What a model is saved in: by a trainer on several GPUs, torch.compile, transformers. The official package takes off the last alone,
# and starts what it then does not find at random.
WRAPPERS = ("module.", "_orig_mod.", "model.")


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
        return Weights(self.path / CODEC)

    def speaker_embeddings(self) -> dict[str, npt.NDArray[np.float32]]:
        """[hidden_size] of each built-in speaker: its row in the table of codebook 0; none if the folder has no weights yet.

        Raises:
            CheckpointError: the weight is missing or has another shape.
        """
        talker = self.config.talker
        files = (self.path / name for name in (SINGLE_FILE, INDEX_FILE))
        if self.config.kind != "custom_voice" or not any(map(os.path.lexists, files)):
            return {}
        rows = self.weights().rows(
            "talker.model.codec_embedding.weight", (talker.vocab_size, talker.shape.hidden_size), talker.speaker_ids.values()
        )
        return dict(zip(talker.speaker_ids, rows, strict=True))

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
    def alignment(self) -> Alignment | None:
        """The talker's heads that follow the text; None if the folder has no alignment.json.

        Raises:
            CheckpointError: the file cannot be used.
        """
        shape = self.config.talker.shape
        return Alignment.read(self.path, layers=shape.num_hidden_layers, heads=shape.num_attention_heads)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The byte-level BPE tokenizer of the folder; engine_lib/text_tokenizer.py.

        Raises:
            CheckpointError: a file is missing or cannot be read.
        """
        tokenizer = read_tokenizer(self.path)
        for token in SPECIAL:  # without them it is spoken what stands around the text, too
            if tokenizer.token_to_id(token) is None:
                raise CheckpointError(
                    f"{self.path}: the tokenizer has no token {token}; copy tokenizer_config.json from the original checkpoint"
                )
        rows, highest = self.config.talker.text_vocab_size, max(tokenizer.get_vocab().values())
        if highest >= rows:
            raise CheckpointError(f"{self.path}: the tokenizer has an id {highest}; the text table of config.json has {rows} rows")
        return tokenizer


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
        single, index = folder / SINGLE_FILE, folder / INDEX_FILE
        if os.path.lexists(single):  # as in the official package, a single file goes before shards
            files = {single}
        elif index.is_file():
            names = Fields(index).get("weight_map", dict).values()
            if not all(isinstance(name, str) and name == os.path.basename(name) for name in names):
                raise CheckpointError(f"{index}: weight_map has a value that is no name of a file in this folder")
            files = {folder / name for name in names}
        else:
            others = sorted(file.name for file in folder.glob("*") if file.suffix in OTHER_WEIGHTS)
            advice = f"; {others[0]} is not read: give the weights as {single.name}, in the layout of transformers" if others else ""
            raise CheckpointError(f"{why_missing(single)}, and there is no {index.name} either{advice}")
        self._folder = folder
        self._stored: dict[str, tuple[Any, str]] = {}  # the file of a weight, and its name there
        for file in sorted(files):
            if not os.path.isfile(file):
                raise CheckpointError(why_missing(file))
            try:
                handle = safe_open(str(file), framework="pt")
            except (OSError, SafetensorError) as error:
                incomplete = any(word in str(error) for word in INCOMPLETE)
                advice = "; the file is incomplete, as after a download that was broken off: download it again" if incomplete else ""
                raise CheckpointError(f"{why_unreadable(file, error)}{advice}") from None
            names = handle.keys()
            self._stored.update({_unwrapped(name): (handle, name) for name in names})

    def names(self) -> list[str]:
        """All tensor names, sorted."""
        return sorted(self._stored)

    def stored(self, name: str) -> torch.Tensor:
        """Tensor `name` as stored.

        Raises:
            CheckpointError: the weight is missing.
        """
        file, stored_name = self._place_of(name)
        tensor: torch.Tensor = file.get_tensor(stored_name)
        return tensor

    def take(self, name: str, shape: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """Tensor `name`, of exactly `shape`, as `dtype` on `device`.

        Raises:
            CheckpointError: the weight is missing, has another shape, is quantised or not finite; the message names it.
        """
        tensor = self.stored(name)
        self._check_dtype(name, tensor)  # before the shape, because codes of several numbers are packed in one
        self._check_shape(name, tensor.shape, shape)
        self._check_values(name, tensor)
        return _own(tensor, dtype, device)

    def take_shard(
        self, name: str, shape: Iterable[int], shard: Shard, *, dim: int, dtype: torch.dtype, device: torch.device
    ) -> torch.Tensor:
        """Like `take`, but returns and reads only a shard along `dim` (0 or 1) of a weight of `shape`."""
        if shard == WHOLE:
            return self.take(name, shape, dtype=dtype, device=device)
        stored = self._slice_of(name)
        self._check_shape(name, stored.get_shape(), shape)
        part = shard.of(stored.get_shape()[dim])
        tensor: torch.Tensor = stored[part] if dim == 0 else stored[:, part]
        self._check_dtype(name, tensor)
        self._check_values(name, tensor)
        return _own(tensor.contiguous(), dtype, device)

    def rows(self, name: str, shape: Iterable[int], rows: Iterable[int]) -> list[npt.NDArray[np.float32]]:
        """These rows of a weight of two dimensions, each [columns] float32 in memory of its own; nothing else of it is read."""
        stored = self._slice_of(name)
        self._check_shape(name, stored.get_shape(), shape)
        return [np.array(stored[row].float().numpy()) for row in rows]  # copies; see `_own`

    def _slice_of(self, name: str) -> Any:
        """Weight `name`, of which only what is indexed is read."""
        file, stored_name = self._place_of(name)
        return file.get_slice(stored_name)

    def _place_of(self, name: str) -> tuple[Any, str]:
        """The file of weight `name`, and its name there."""
        if name not in self._stored:
            raise CheckpointError(f"{self._folder}: weight {name} is missing{self._advice_on_missing(name)}")
        return self._stored[name]

    def _advice_on_missing(self, name: str) -> str:
        if any(name.removesuffix("weight") + suffix in self._stored for suffix in CONVERTED):
            return f"; {QUANTISED}"
        if others := [other for other in self._stored if other.endswith(f".{name}")]:
            return f"; {others[0]} is there: save the model itself, with adapters merged and without what wraps it"
        return ""

    def _check_shape(self, name: str, stored: Iterable[int], expected: Iterable[int]) -> None:
        if tuple(stored) != tuple(expected):
            raise CheckpointError(f"{self._folder}: weight {name} has shape {tuple(stored)}; {tuple(expected)} expected")

    def _check_dtype(self, name: str, stored: torch.Tensor) -> None:
        """Refuse codes of a quantised checkpoint, which mean nothing without their scales."""
        if not stored.is_floating_point() or stored.element_size() == 1:
            raise CheckpointError(f"{self._folder}: weight {name} is {stored.dtype}; {QUANTISED}")

    def _check_values(self, name: str, stored: torch.Tensor) -> None:
        """Refuse the weights of a training that went wrong: they would be heard as silence, noise or an error of each request."""
        if stored.numel() and not all(bound.isfinite() for bound in stored.aminmax()):  # 45 times as fast as isfinite of each
            expected = "training went wrong, in float16 perhaps; give an earlier checkpoint"
            raise CheckpointError(f"{self._folder}: weight {name} holds NaN or infinity; {expected}")


def _unwrapped(name: str) -> str:
    """The name of a weight in the model itself."""
    while wrapper := next((wrapper for wrapper in WRAPPERS if name.startswith(wrapper)), None):
        name = name.removeprefix(wrapper)
    return name


def _own(tensor: torch.Tensor, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """`tensor` as `dtype` on `device`, in memory of its own.

    A stored tensor is the file itself, mapped: to write a new checkpoint over it would change the weights of a running engine, and to
    shorten it would end the process by SIGBUS.
    """
    taken = tensor.to(device=device, dtype=dtype)
    return taken.clone() if taken is tensor else taken
