"""Arguments of the official class that have no effect here: taken, with one warning.

qwen-tts 0.1.1 passes what it does not know on to transformers, which reads it or ignores it. A name that is neither known here nor
there is a slip of the pen, and is refused.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn

import numpy as np
import torch

from engine_lib.errors import ConfigError, InvalidRequestError
from engine_lib.sampling import SamplingParams

SAMPLING_NAMES = {"max_new_tokens", *(spec.name for spec in fields(SamplingParams))}
ATTENTION = (None, "eager", "sdpa", "flash_attention_2", "flash_attention_3")
SHARED_DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
# Keywords of transformers' from_pretrained. Folders are read as they are: nothing is downloaded, quantized or offloaded.
LOAD_KEYWORDS = frozenset(
    [
        "adapter_kwargs",
        "adapter_name",
        "cache_dir",
        "code_revision",
        "config",
        "device_mesh",
        "distributed_config",
        "force_download",
        "from_flax",
        "from_tf",
        "gguf_file",
        "ignore_mismatched_sizes",
        "key_mapping",
        "load_in_4bit",
        "load_in_8bit",
        "local_files_only",
        "low_cpu_mem_usage",
        "max_memory",
        "mirror",
        "offload_buffers",
        "offload_folder",
        "offload_state_dict",
        "proxies",
        "quantization_config",
        "resume_download",
        "revision",
        "token",
        "tp_plan",
        "tp_size",
        "trust_remote_code",
        "use_auth_token",
        "use_kernels",
        "use_safetensors",
        "variant",
        "weights_only",
    ]
)
SWITCHES = frozenset(["do_sample", "subtalker_dosample"])
STREAM_KEYWORDS = frozenset(["chunk_frames", "timestamps"])
# Arguments of transformers' generate() beside the fields of its GenerationConfig.
GENERATE_KEYWORDS = frozenset(
    [
        "assistant_model",
        "attention_mask",
        "custom_generate",
        "generation_config",
        "logits_processor",
        "negative_prompt_attention_mask",
        "negative_prompt_ids",
        "position_ids",
        "prefix_allowed_tokens_fn",
        "stopping_criteria",
        "streamer",
        "synced_gpus",
        "use_model_defaults",
    ]
)
# Arguments of the generate_ methods for other kinds of checkpoint.
CALL_KEYWORDS = frozenset(["instruct", "ref_audio", "ref_text", "speaker", "voice_clone_prompt", "x_vector_only_mode"])

# Attributes of the official object, and what there is instead.
INSTEAD = {
    "model": "its engines are no torch module; get_supported_speakers() and get_supported_languages() are methods of its own",
    "processor": "give texts to its methods as they are",
    "generate_defaults": "the defaults are in generation_config.json; give others with each call",
    "device": "see config.device",
}


class Official:
    """What the official object has and Qwen3TTS has not, or cannot have, is refused with what there is instead."""

    if not TYPE_CHECKING:  # mypy would take any attribute for one that is there

        def __getattr__(self, name: str) -> Any:
            instead = f"; {INSTEAD[name]}" if name in INSTEAD else ""
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{instead}")

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} cannot be copied, pickled or sent to a process: its engines run; load it there")


def engine_options(keywords: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of from_pretrained that are options of this engine; warns of those that have no effect.

    Raises:
        ConfigError: attn_implementation has a value that transformers does not know.
    """
    options = dict(keywords)
    attention = options.pop("attn_implementation", None)
    if attention not in ATTENTION:
        allowed = ", ".join(str(name) for name in ATTENTION)
        raise ConfigError(f"attn_implementation: {attention!r} is not allowed; give {allowed}, or set attention_backend")
    ignored = {name: options.pop(name) for name in LOAD_KEYWORDS & options.keys()}
    _warn_of(ignored, "the checkpoint is read from its folder as it is, with the options of docs/options.md", stacklevel=4)
    return options


def device_name(device_map: str | int | torch.device | Mapping[str, Any]) -> str:
    """The one device of a device map.

    Raises:
        ConfigError: it spreads the model over several.
    """
    devices = {str(device) for device in device_map.values()} if isinstance(device_map, Mapping) else {str(device_map)}
    if len(devices) != 1:
        raise ConfigError(f"device_map: {device_map!r:.200} is not one device; give one, or set tensor_parallel_size")
    device = devices.pop()
    if device in SHARED_DEVICE_MAPS:
        return "auto"
    return f"cuda:{device}" if device.isdecimal() else device


def dtype_name(dtype: str | torch.dtype | None) -> str:
    """The value of the option `dtype`. float16 is none: it becomes auto, with a warning."""
    name = "auto" if dtype is None else str(dtype).removeprefix("torch.")
    if name not in ("float16", "half"):
        return name
    warnings.warn("dtype: float16 is not a dtype of this engine; the model runs in bfloat16 on a GPU, in float32 on the CPU", stacklevel=3)
    return "auto"


def sampling_arguments(generation: Mapping[str, Any], kind: str, eos: int) -> dict[str, Any]:
    """The keywords of a generate_ call that may be sampling parameters; warns of those that have no effect.

    Args:
        generation: the keywords, each a name that the call itself does not take.
        kind: of the checkpoint.
        eos: the code that ends speech.

    Raises:
        InvalidRequestError: eos_token_id is another code.
    """
    arguments = {name: value for name, value in generation.items() if value is not None}
    if arguments.pop("eos_token_id", eos) != eos:
        raise InvalidRequestError("eos_token_id", f"{generation['eos_token_id']!r} is not allowed; speech ends at {eos}, so leave it out")
    others = {name: arguments.pop(name) for name in CALL_KEYWORDS & arguments.keys()}
    _warn_of(others, f"the checkpoint is of kind {kind}, which does not use it; checkpoints of other kinds do", stacklevel=6)
    for name in SWITCHES & arguments.keys():
        arguments[name] = flag(name, arguments[name])
    for name in STREAM_KEYWORDS & arguments.keys():
        raise InvalidRequestError(name, "is taken by the stream_ methods alone; call one of these, or leave it out")
    ignored = {name: arguments.pop(name) for name in _ignored_by_generate(arguments)}
    _warn_of(ignored, "qwen-tts 0.1.1 ignores it as well", stacklevel=6)
    return arguments


def flag(field: str, value: object) -> bool:
    """`value` as a bool.

    Raises:
        InvalidRequestError: it is something else, such as "false", which would count as true.
    """
    if isinstance(value, (int, np.bool_)) and value in (0, 1):
        return bool(value)
    raise InvalidRequestError(field, f"{value!r:.100} is not allowed; give True or False")


def _ignored_by_generate(names: Iterable[str]) -> set[str]:
    """Those of `names` that qwen-tts takes and ignores."""
    unknown = set(names) - SAMPLING_NAMES
    return {name for name in unknown if name in GENERATE_KEYWORDS or name in _generation_config_names()}


@cache
def _generation_config_names() -> frozenset[str]:
    from transformers import GenerationConfig  # slow to import, and few calls need it

    return frozenset(vars(GenerationConfig()))


def _warn_of(arguments: Mapping[str, Any], reason: str, *, stacklevel: int) -> None:
    """One warning that these have no effect, unless all are None or False."""
    names = sorted(name for name, value in arguments.items() if value is not None and value is not False)
    if names:
        warnings.warn(f"{', '.join(names)}: no effect here: {reason}", stacklevel=stacklevel)
