"""EngineConfig: every option of the talker and the codec, typed and checked, from one place.

A value comes from `config.pbtxt` parameters or keyword arguments; the environment variable `QWEN3_TTS_<NAME>` overrides it.
A bad value or an unknown name raises ConfigError with the name, the value and the allowed values.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import Field, dataclass, field, fields
from typing import Any, get_type_hints

from engine_lib.errors import ConfigError, nearest

logger = logging.getLogger(__name__)

ENVIRONMENT_PREFIX = "QWEN3_TTS_"
# Variables with that prefix that are no options.
SERVERS_VARIABLES = ("DRAIN_DIRECTORY", "GRPC_URL", "SERVER_SECRET", "SERVER_SECRET_FILE")
CLIENTS_VARIABLES = ("TLS_CA", "TLS_CERTIFICATE", "TLS_KEY", "TOKEN", "URL")
TENSOR_PARALLEL_SIZES = (1, 2, 4, 8)
LARGEST = 2**31 - 1  # of an option without a maximum: no counter, size or wait in seconds overflows


def option(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    choices: tuple[str, ...] | tuple[int, ...] | None = None,
    group: str | None = None,
) -> Any:
    """A dataclass field that carries its own documentation and range.

    Args:
        group: heading in docs/options.md of this option and of those after it; None: it belongs to the group before.
    """
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "choices": choices, "group": group}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """Options of one engine process. `scripts/serve.py --help` and docs/options.md are printed from these fields."""

    model_path: str = option("", "Checkpoint folder in the published layout.", group="Checkpoint, devices and processes")
    device: str = option("auto", "auto (the first GPU, else CPU), cpu, cuda or cuda:N.")
    dtype: str = option("auto", "Weights of the talker; auto: bfloat16 on GPU, float32 on CPU.", choices=("auto", "float32", "bfloat16"))
    talker_weights: str = option(
        "checkpoint",
        "Weights in the layers of talker and code predictor: those of the checkpoint, or rounded at load to fp8 (e4m3, a scale an output "
        "channel), of which a GPU reads half as many bytes. fp8 changes what is said: measure it with your checkpoint first.",
        choices=("checkpoint", "fp8"),
    )
    enforce_eager: bool = option(False, "Launch every kernel from Python instead of replaying captured CUDA graphs.")
    tensor_parallel_size: int = option(
        1, "GPUs that share one talker, from `device` on; must divide the checkpoint's KV heads.", choices=TENSOR_PARALLEL_SIZES
    )
    tensor_parallel_backend: str = option(
        "auto",
        "Backend of the ranks' all_reduce; auto: nccl on GPUs, gloo on CPU. gloo goes through the host, without graphs, and lets ranks "
        "share a GPU.",
        choices=("auto", "nccl", "gloo"),
    )
    talker_isolation: str = option(
        "auto",
        "Where the engine of a served talker runs: process, without other Python threads that delay it, or thread, in the model's process; "
        "auto: process on GPU, thread on CPU.",
        choices=("auto", "process", "thread"),
    )
    num_threads: int = option(0, "CPU threads of torch in this process; 0 leaves torch's default.", minimum=0, maximum=4096)

    max_num_seqs: int = option(64, "Streams decoded together; further requests wait.", minimum=1, maximum=1024, group="Talker")
    max_num_batched_tokens: int = option(512, "Prompt rows prefilled in one step; longer prompts are split.", minimum=1)
    prompts_in_steps_from: int = option(
        1,
        "Streams from which on a step takes the rows of new prompts with it, so that both read the weights once; "
        "0: prompts always run beside steps.",
        minimum=0,
    )
    max_model_len: int = option(4096, "Longest prompt plus frames of one request, in rows.", minimum=16, maximum=1 << 20)
    kv_block_size: int = option(16, "Rows in one block of the paged KV cache.", minimum=1, maximum=256)
    num_kv_blocks: int = option(
        0, "Blocks in the KV cache; 0: from gpu_memory_utilization, or max_num_seqs x max_model_len on CPU.", minimum=0
    )
    enable_prefix_caching: bool = option(
        True, "Share the KV blocks of prompts with the same beginning (instruct, voice); if off, every prompt is computed in full."
    )
    gpu_memory_utilization: float = option(
        0.6, "Share of the GPU's memory the talker may use, weights included.", minimum=0.05, maximum=0.98
    )
    attention_backend: str = option(
        "auto",
        "Attention kernels of the talker; auto: triton if available, else torch. flash-attn needs kv_block_size 256 and bfloat16.",
        choices=("auto", "torch", "triton", "flash-attn"),
    )
    talker_stream_priority: int = option(
        0, "CUDA priority of the talker's kernels: 0, or a negative number for a higher one.", minimum=-5, maximum=0
    )

    max_waiting_requests: int = option(
        256,
        "Requests that may wait to start; one more is refused. One client, and batch requests, leave a quarter to others.",
        minimum=0,
        group="Requests",
    )
    max_text_length: int = option(4000, "Longest text, instruction or reference text, in characters.", minimum=1)
    max_script_length: int = option(
        100_000,
        "Longest text of a request with long_form, or with a text_format other than plain, in characters; some two hours of speech.",
        minimum=1,
        maximum=10_000_000,
    )
    piece_length: int = option(
        0,
        "Characters in a piece of a text with long_form, at most; one of Chinese, Japanese or Korean counts as three. 0: what "
        "generation_config.json of the checkpoint says in piece_length, else 300.",
        minimum=0,
        maximum=4000,
    )
    lexicon_file: str = option("", "JSON file of words and their spellings, {word: spelling}, for all requests; empty: none.")
    text_idle_seconds: float = option(
        20.0,
        "Seconds that a stream waits for more of a text that comes in pieces, once it has spoken what there is; then it ends with an "
        "error.",
        minimum=0.1,
    )
    on_runaway: str = option(
        "auto",
        "What becomes of a stream that does not end, but stays silent or repeats itself: stop ends it behind its last good frame (finish "
        "reason runaway); retry speaks on from there with the next seed, twice at most, then stops; off does nothing. auto: stop in a "
        "server, off in a Python process.",
        choices=("auto", "stop", "retry", "off"),
    )
    drain_seconds: float = option(
        3.0,
        "Seconds in which running streams may end by themselves when the server is asked to stop; then they end with an error. The exit "
        "timeout of serve.py and the grace period of the container must be longer.",
        minimum=0,
        maximum=3600,
    )
    stall_seconds: float = option(
        30.0, "A model whose engine has work and has taken no step for this long says that it is not ready; 0: never.", minimum=0
    )

    trace_url: str = option(
        "",
        "Collector (OTLP over HTTP, such as http://collector:4318/v1/traces) of the spans that talker and codec add to Triton's trace of a "
        "request; empty: that of OTEL_EXPORTER_OTLP_ENDPOINT, or none. serve.py --trace sets it, and Triton's own part.",
    )

    chunk_frames: tuple[int, ...] = option(
        (1, 2, 4, 8), "Frames in the first, second, ... chunk of a stream; the last one repeats.", minimum=1, maximum=64, group="Chunks"
    )
    chunk_policy: str = option(
        "fixed",
        "Chunk sizes after chunk_frames: fixed repeats its last entry; adaptive depends on the audio the client has left.",
        choices=("fixed", "adaptive"),
    )
    adaptive_chunk_frames: int = option(32, "Largest chunk of the adaptive policy.", minimum=1, maximum=64)
    adaptive_chunk_streams: int = option(
        16, "Streams that must run for the adaptive policy to exceed the last entry of chunk_frames.", minimum=1
    )

    reference_min_seconds: float = option(1.0, "Shortest recording of a voice to clone.", minimum=0.1, maximum=60, group="Voices")
    reference_max_seconds: float = option(30.0, "Longest recording of a voice to clone.", minimum=1, maximum=120)
    voice_cache_size: int = option(256, "Cloned voices kept in memory, so that a recording used again is not encoded again.", minimum=0)
    voice_store: str = option(
        "", "Folder of stored voices, shared by all servers that name it; created if missing. Empty: no voices are stored."
    )
    voice_store_max_voices: int = option(1000, "Voices the folder may hold; one more is refused.", minimum=1)
    voice_store_max_bytes: int = option(1 << 20, "Size of each of a stored voice's two files; a larger one is refused.", minimum=1024)

    codec_device: str = option("", "Device of the codec; empty: the same as `device`.", group="Codec")
    codec_dtype: str = option(
        "auto", "Weights of the codec decoder; auto: bfloat16 on GPU, float32 on CPU.", choices=("auto", "float32", "bfloat16")
    )
    codec_slots: int = option(64, "Streams the codec decodes at a time; at least the talker's max_num_seqs.", minimum=1, maximum=4096)
    codec_max_batch_size: int = option(
        32,
        "Size of the codec's steps: room for 8 frames of each of so many streams, at most 256 frames on a GPU and 32 on a CPU.",
        minimum=1,
        maximum=256,
    )
    codec_isolation: str = option(
        "auto",
        "Where the engine of a served codec runs: process, without other Python threads that delay it, or thread, in the model's process; "
        "auto: process on GPU, thread on CPU.",
        choices=("auto", "process", "thread"),
    )
    codes_channel: str = option(
        "auto",
        "When codes go from talker to codec past Triton, through a socket between their processes, which spares both much of their work; "
        "auto: with eight or more streams.",
        choices=("auto", "always", "never"),
    )
    codec_stream_priority: int = option(
        -1, "CUDA priority of the codec's kernels; high, because a listener waits for each first chunk.", minimum=-5, maximum=0
    )
    codec_gpu_share: int = option(
        50,
        "Percent of its GPU's multiprocessors that the codec uses if MPS lets it compute beside the talker. The talker's many short "
        "kernels then need not wait for the codec's; 100: all.",
        minimum=1,
        maximum=100,
    )
    codec_max_wait_ms: float = option(
        10.0, "Longest wait of a chunk for others to be decoded with it, if its listener has audio left.", minimum=0, maximum=50
    )
    codec_reference_cache: int = option(
        64, "Decoded clone references that the codec keeps on its device, so that a voice used again starts sooner.", minimum=0
    )
    codec_idle_timeout: float = option(30.0, "Seconds without a sign of a stream after which its codec slot is freed.", minimum=0.1)

    def __post_init__(self) -> None:
        types = get_type_hints(type(self))
        for spec in fields(self):
            object.__setattr__(self, spec.name, _checked(spec, types[spec.name], getattr(self, spec.name)))
        for name in ("model_path", "voice_store", "lexicon_file"):
            try:
                os.fsencode(getattr(self, name))
            except UnicodeEncodeError:
                raise ConfigError(
                    f"{name}: {getattr(self, name)!a} is not ASCII, and this Python has ASCII for the names of files, as those of Triton's "
                    f"models do; give a symbolic link with an ASCII name, or start the server with scripts/serve.py, which makes one"
                ) from None
        if self.trace_url and not self.trace_url.startswith(("http://", "https://")):
            raise ConfigError(f"trace_url: {self.trace_url!r} is not allowed; give a URL that begins with http:// or https://")
        if self.reference_min_seconds > self.reference_max_seconds:
            raise ConfigError(
                f"reference_min_seconds: {self.reference_min_seconds:g} is more than reference_max_seconds ({self.reference_max_seconds:g})"
            )
        if self.codec_slots < self.max_num_seqs:
            raise ConfigError(
                f"codec_slots: {self.codec_slots} is less than max_num_seqs ({self.max_num_seqs}); every running stream needs a codec slot"
            )

    def prompts_join(self, streams: int) -> bool:
        """Whether a step of `streams` takes new prompts with it."""
        return 0 < self.prompts_in_steps_from <= streams

    @classmethod
    def from_options(cls, options: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> EngineConfig:
        """Build a config from named options (strings or typed values), overridden by QWEN3_TTS_<NAME>.

        Args:
            options: option name to value, as in config.pbtxt parameters.
            environment: defaults to os.environ; then a variable that sets no option is logged.

        Raises:
            ConfigError: an unknown name, or a value that is not allowed.
        """
        if environment is None:
            environment = os.environ
            for problem in unknown_variables(environment):
                logger.warning("%s", problem)
        unknown = sorted(set(options) - set(OPTION_NAMES))
        if unknown:
            raise ConfigError(f"unknown option {', '.join(unknown)}; allowed: {', '.join(OPTION_NAMES)}{nearest(unknown[0], OPTION_NAMES)}")
        values = dict(options)
        for name in OPTION_NAMES:
            override = environment.get(ENVIRONMENT_PREFIX + name.upper())
            if override is not None:
                values[name] = override
        return cls(**values)


OPTION_NAMES = tuple(spec.name for spec in fields(EngineConfig))


def unknown_variables(environment: Mapping[str, str]) -> list[str]:
    """A sentence for each variable QWEN3_TTS_<NAME> that has no effect, with the name it may stand for."""
    known = (*map(str.upper, OPTION_NAMES), *SERVERS_VARIABLES, *CLIENTS_VARIABLES)
    prefix = ENVIRONMENT_PREFIX
    given = sorted(name.removeprefix(prefix) for name in environment if name.startswith(prefix))
    return [f"the environment variable {prefix}{name} has no effect{nearest(name, known, prefix)}" for name in given if name not in known]


def _checked(spec: Field[Any], kind: Any, value: Any) -> Any:
    """`value` converted to the field's type and checked against its range."""
    choices, minimum, maximum = (spec.metadata[key] for key in ("choices", "minimum", "maximum"))
    highest = LARGEST if maximum is None else maximum
    try:
        value = _converted(kind, value)
    except (TypeError, ValueError, OverflowError):
        advice = spec.metadata["help"] if minimum is None else f"give {minimum} to {highest}"
        raise ConfigError(f"{spec.name}: {value!r:.100} is not {_kind_name(kind)}; {advice}") from None
    if choices is not None and value not in choices:
        raise ConfigError(f"{spec.name}: {value!r:.100} is not allowed; choose one of {', '.join(map(str, choices))}")
    if isinstance(value, str) and "\0" in value:
        raise ConfigError(f"{spec.name}: {value!r:.100} holds a NUL character; leave it out")
    for number in value if isinstance(value, tuple) else (value,):
        if minimum is not None and not minimum <= number <= highest:
            raise ConfigError(f"{spec.name}: {value!r:.100} is outside {minimum} to {highest}")
    return value


def _converted(kind: Any, value: Any) -> Any:
    if kind is bool:
        if isinstance(value, bool):
            return value
        return {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}[
            _lowercase_or_error(value)
        ]
    if kind is int:
        if isinstance(value, bool | float):
            raise TypeError
        return int(value)
    if kind is float:
        return float(value)
    if kind is str:
        if not isinstance(value, str | os.PathLike):
            raise TypeError
        return os.fspath(value)
    parts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
    if not parts:
        raise ValueError
    return tuple(_converted(int, part) for part in parts)


def _lowercase_or_error(value: Any) -> str:
    text = str(value).strip().lower()
    if text not in {"1", "true", "yes", "on", "0", "false", "no", "off"}:
        raise ValueError
    return text


def _kind_name(kind: Any) -> str:
    return {bool: "true or false", int: "a whole number", float: "a number", str: "a string"}.get(kind, "whole numbers separated by commas")
