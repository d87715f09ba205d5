"""A checkpoint in training: the engine's own modules read its weights; gradients flow back to them.

The engine folds constants at load (codebooks with their projections, LayerScale, packed qkv) in plain differentiable torch. So
training rebuilds the engine's modules from the live weights in each step. There is no second implementation that could
differ from the one that serves.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

from engine_lib.checkpoint import Checkpoint, Weights
from make_checkpoint import write_configs
from random_checkpoint.configs import Config
from random_checkpoint.tokenizer import write_tokenizer
from voice_in_the_box.sentences import Sentences
from voice_in_the_box.shapes import BPE_VOCAB

TOKENIZER_SEED, TOKENIZER_SENTENCES = 1, 4000

Tensors = Mapping[str, torch.Tensor]


class LiveWeights(Weights):
    """Weights in memory instead of in a file; gradients of the tensors taken flow back to them."""

    def __init__(self, tensors: Tensors) -> None:
        self._tensors = tensors

    def names(self) -> list[str]:
        """See Weights."""
        return sorted(self._tensors)

    def take(self, name: str, shape: Iterable[int], *, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
        """See Weights; a wrong shape is a bug in the recipe."""
        tensor = self._tensors[name]
        assert tuple(tensor.shape) == tuple(shape), (name, tuple(tensor.shape), tuple(shape))
        return tensor.to(device=device, dtype=dtype)


class LiveCheckpoint(Checkpoint):
    """The configs and the tokenizer of a folder, with weights in memory."""

    def __init__(self, path: Path, talker: Tensors, codec: Tensors) -> None:
        super().__init__(path)
        self._talker, self._codec = LiveWeights(talker), LiveWeights(codec)

    def weights(self) -> Weights:
        """See Checkpoint."""
        return self._talker

    def speech_tokenizer_weights(self) -> Weights:
        """See Checkpoint."""
        return self._codec


def write_all_but_weights(folder: Path, configs: Mapping[str, Config]) -> None:
    """Write the checkpoint's configs and its tokenizer."""
    write_configs(folder, configs)
    sentences = iter(Sentences(TOKENIZER_SEED))
    write_tokenizer(folder, BPE_VOCAB, [next(sentences) for _ in range(TOKENIZER_SENTENCES)], BPE_VOCAB)


def write_weights(folder: Path, talker: Tensors, codec: Tensors) -> None:
    """Write both weight files in float16, which stores these small numbers to about three and a half digits."""
    codec = dict(codec)
    for name in [name for name in codec if name.endswith("cluster_usage")]:
        # The sums grow with the batch. The entries themselves, with a usage of 1 each, fit float16.
        total = name.replace("cluster_usage", "embedding_sum")
        codec[total] = codec[total] / codec[name].clamp(min=1e-5)[:, None]
        codec[name] = torch.ones_like(codec[name])
    for tensors, file in ((talker, folder / "model.safetensors"), (codec, folder / "speech_tokenizer" / "model.safetensors")):
        halves = {name: tensor.detach().half().cpu().contiguous() for name, tensor in tensors.items()}
        broken = [name for name, tensor in halves.items() if not tensor.isfinite().all()]
        if broken:
            raise ValueError(f"not finite in float16: {', '.join(broken)}")
        save_file(halves, file, metadata={"format": "pt"})
        file.chmod(0o644)
