"""The official qwen-tts package as a test oracle: the engine must compute the same.

The package is installed without its dependencies (`pip install --no-deps qwen-tts==0.1.1`). Modules that it imports but the
12 Hz models never call (for its 25 Hz tokenizer, demo and command line) are replaced by empty stand-ins, unless installed.
librosa is a real test dependency, because resampling and the mel filters are part of the result.
"""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

_UNUSED = ("torchaudio", "torchaudio.compliance", "torchaudio.compliance.kaldi", "sox", "onnxruntime", "gradio", "einops")


class _Standin(ModuleType):
    """A module in which every attribute exists and fails when called."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)

        def unavailable(*_args: Any, **_kwargs: Any) -> None:
            raise RuntimeError(f"{self.__name__}.{name} is a stand-in: the 12 Hz models must not need it")

        return unavailable


def import_official() -> ModuleType:
    for name in _UNUSED:
        top = name.partition(".")[0]
        if isinstance(sys.modules.get(top), _Standin) or (top not in sys.modules and importlib.util.find_spec(top) is None):
            module = _Standin(name)
            module.__path__ = []  # so that submodules can be imported from it
            # transformers calls find_spec for optional packages; without a spec that call raises
            module.__spec__ = importlib.util.spec_from_loader(name, loader=None)
            sys.modules[name] = module
            parent, _, child = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], child, module)
    with warnings.catch_warnings(), _no_output():
        warnings.simplefilter("ignore")
        import qwen_tts
        import transformers

    for name in [n for n in _UNUSED if isinstance(sys.modules.get(n), _Standin)]:
        # Removed again, because other libraries would believe that the packages are installed.
        del sys.modules[name]
    transformers.logging.set_verbosity_error()
    transformers.masking_utils._vmap_for_bhqkv = broadcast_for_bhqkv
    return qwen_tts


def broadcast_for_bhqkv(mask_function: Callable[..., torch.Tensor], bh_indices: bool = True) -> Callable[..., torch.Tensor]:
    """Like `_vmap_for_bhqkv` of transformers: `mask_function` of all indices, [B, H, Q, KV]; without `bh_indices`, [Q, KV].

    Each of the 16 steps of a frame makes a mask. With torch's vmap that takes two thirds of the package's time.
    """

    def mask(b: torch.Tensor, h: torch.Tensor, q: torch.Tensor, kv: torch.Tensor) -> torch.Tensor:
        if not bh_indices:
            return mask_function(b, h, q[:, None], kv).expand(len(q), len(kv))
        indices = b[:, None, None, None], h[:, None, None], q[:, None], kv
        return mask_function(*indices).expand(len(b), len(h), len(q), len(kv))

    return mask


@contextlib.contextmanager
def _no_output() -> Iterator[None]:
    """Hide prints (the package prints an installation hint for flash-attn)."""
    import io

    with contextlib.redirect_stdout(io.StringIO()):
        yield


@functools.cache
def load_official(path: str | Path, dtype: torch.dtype = torch.float32) -> Any:
    """Return the official `Qwen3TTSModel` of a checkpoint folder, on the CPU, with eager attention; kept until its file of tests ends."""
    package = import_official()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return package.Qwen3TTSModel.from_pretrained(str(path), dtype=dtype, attn_implementation="eager")


def official_decoder(path: str | Path) -> torch.nn.Module:
    """Return the official codec decoder; a call with codes [B, 16, T] decodes them in one piece, which streaming must equal."""
    decoder: torch.nn.Module = load_official(path).model.speech_tokenizer.model.decoder
    return decoder


@torch.inference_mode()
def official_decode(path: str | Path, codes: torch.Tensor) -> torch.Tensor:
    """Decode codes [T, 16] of one utterance in a single pass and return its samples [T * 1920]."""
    wav: torch.Tensor = official_decoder(path)(codes.t().unsqueeze(0))
    return wav[0, 0]


def official_codes(
    model: Any, method: str = "generate_custom_voice", /, torch_seed: int | None = None, decode: bool = True, **kwargs: Any
) -> tuple[list[torch.Tensor], list[npt.NDArray[np.float32]]]:
    """Run one of the official `generate_*` methods and return (codes, wavs).

    `model` is a result of `load_official`, or a checkpoint path; `kwargs` go to the method unchanged. Codes are int64 [frames, 16] for
    each text, taken from the codec's input: for a voice clone in context they start with the reference codes, which the wavs do
    not contain. Without `decode`, which takes most of the time, the wavs are empty.
    """
    if isinstance(model, (str, Path)):
        model = load_official(model)
    tokenizer = model.model.speech_tokenizer
    codes: list[torch.Tensor] = []

    def capturing_decode(encoded: list[dict[str, torch.Tensor]]) -> Any:
        codes.extend(item["audio_codes"].clone() for item in encoded)
        if not decode:
            return [np.empty(0, np.float32) for _ in encoded], tokenizer.get_output_sample_rate()
        return type(tokenizer).decode(tokenizer, encoded)

    tokenizer.decode = capturing_decode
    if torch_seed is not None:
        torch.manual_seed(torch_seed)
    try:
        wavs, _rate = getattr(model, method)(**kwargs)
    finally:
        del tokenizer.decode
    return codes, wavs
