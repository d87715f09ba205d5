"""Lays out a model repository for one server with any number of checkpoints.

Each checkpoint gets a talker and an ensemble of its own; one codec_decoder and one voices serve them all. The first checkpoint keeps
the plain names (talker, qwen3_tts, ..); the others get their kind as suffix (talker_base, qwen3_tts_base, ..). The options of every
model, those of the environment included, are written into its config.pbtxt, so that two talkers can have different ones.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from pathlib import Path

from engine_lib.checkpoint_config import CheckpointConfig
from engine_lib.checkpoint_files import checkpoint_folder
from engine_lib.config import ENVIRONMENT_PREFIX, OPTION_NAMES, EngineConfig
from engine_lib.errors import CheckpointError, ConfigError
from engine_lib.server.ascii_names import ascii_name
from engine_lib.serving.served import CODEC, ENSEMBLE, OFFLINE_SUFFIX, SERVED_PARAMETER, TALKER, ServedCheckpoint, served_parameter

SUFFIXES = {"custom_voice": "_custom", "base": "_base", "voice_design": "_design"}
PARAMETER = re.compile(r'key:\s*"(\w+)"\s*value:?\s*\{\s*string_value:\s*"([^"]*)"')
STEP = re.compile(r'model_name:\s*"([^"]+)"')
# The environment would override config.pbtxt in every model alike; its options have been written there instead.
NO_VARIABLES: dict[str, str | None] = {ENVIRONMENT_PREFIX + name.upper(): None for name in OPTION_NAMES}
# Up to 24.10 a server does not load a model with this.
FIRST_RESPONSE_HISTOGRAM = """
model_metrics {
  metric_control: [
    {
      metric_identifier: { family: "nv_inference_first_response_histogram_ms" }
      histogram_options: { buckets: [ 5, 10, 20, 30, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000, 10000 ] }
    }
  ]
}
"""
MAX_CODEC_SLOTS = next(spec.metadata["maximum"] for spec in fields(EngineConfig) if spec.name == "codec_slots")


@dataclass(frozen=True)
class Options:
    """An operator's options, name to value.

    Attributes:
        environment: of the process; its variables QWEN3_TTS_<NAME> are options.
        every: for every model; overrides the environment.
        of_model: for single models, by the model's name; overrides `every`.
    """

    environment: Mapping[str, str] = field(default_factory=dict)
    every: Mapping[str, str] = field(default_factory=dict)
    of_model: Mapping[str, Mapping[str, str]] = field(default_factory=dict)

    def of(self, model: str) -> dict[str, str]:
        """The options set for `model`."""
        variables = {name: self.environment.get(ENVIRONMENT_PREFIX + name.upper()) for name in OPTION_NAMES}
        by_environment = {name: value for name, value in variables.items() if value is not None}
        return by_environment | dict(self.every) | dict(self.of_model.get(model, {}))


def lay_out(
    template: Path, folder: Path, model_paths: Sequence[Path], options: Options, *, first_response_histogram: bool = False
) -> list[ServedCheckpoint]:
    """Write a repository into `folder`; its server must start with the changes of NO_VARIABLES to its environment.

    Args:
        template: the repository of one checkpoint, as in git.
        folder: must not exist. Links to folders with names that are not ASCII go beside it.
        model_paths: checkpoint folders, at least one.
        first_response_histogram: give the ensembles the buckets of Triton's histogram; for servers from 24.11 on.

    Raises:
        ConfigError: an option is not allowed, or the codec would have too few slots.
        CheckpointError: a folder is no checkpoint, or its codec differs from the first one's.
    """
    model_paths = [checkpoint_folder(path).resolve() for path in model_paths]
    served = _named(model_paths)
    for path in model_paths[1:]:
        check_same_codec(model_paths[0], path)
    shutil.copytree(template, folder)
    for checkpoint in served[1:]:
        _copy_models(folder, checkpoint)
    for checkpoint in served if first_response_histogram else ():
        with Path(folder, checkpoint.ensemble, "config.pbtxt").open("a", encoding="utf-8") as file:
            file.write(FIRST_RESPONSE_HISTOGRAM)
    models = {name: _Model(folder / name, options.of(name)) for name in _models_with_options(folder)}
    for name in options.of_model:
        if name not in models:
            raise ConfigError(f"{name!r} is no model with options; those are {', '.join(models)}")
    links = folder.with_name("folders")
    in_server = [replace(checkpoint, model_path=ascii_name(checkpoint.model_path, links)) for checkpoint in served]
    talkers = {checkpoint.talker: checkpoint for checkpoint in in_server}
    slots = _codec_slots(models[CODEC], {talker: int(models[talker].get("max_num_seqs")) for talker in talkers})
    for name, model in models.items():
        model_path = talkers.get(name, in_server[0]).model_path
        derived = {"model_path": model_path, "codec_slots": str(slots), **_ascii_store(model, links), **_ascii_lexicon(model, links)}
        if name in talkers and not model.is_chosen("gpu_memory_utilization"):
            derived["gpu_memory_utilization"] = str(round(float(model.get("gpu_memory_utilization")) / len(served), 3))
        model.write(**derived, **{SERVED_PARAMETER: served_parameter(in_server)})
    return served


def models_to_load(repository: Path, arguments: Sequence[str]) -> list[str]:
    """The models that a tritonserver with these arguments loads at its start, sorted: all, or those of --load-model.

    With an ensemble its steps are loaded too.
    """
    everything = sorted(file.parent.name for file in repository.glob("*/config.pbtxt"))
    words = [word for argument in arguments for word in argument.split("=", 1)]
    values = list(pairwise(words))
    chosen = {value for name, value in values if name == "--load-model"}
    if ("--model-control-mode", "explicit") not in values or "*" in chosen:
        return everything
    steps = {name: STEP.findall((repository / name / "config.pbtxt").read_text(encoding="utf-8")) for name in everything}
    return sorted(chosen.union(*(steps.get(name, []) for name in chosen)))


def check_same_codec(first: Path, other: Path) -> None:
    """Check that the codecs of two checkpoints are equal.

    Raises:
        CheckpointError: they differ; the message names the first difference.
    """
    import torch  # here, because it is slow to import and only several checkpoints need it

    from engine_lib.checkpoint import Checkpoint

    one, two = Checkpoint(first), Checkpoint(other)
    advice = f"than the codec of {first}; one server has one codec, so serve this checkpoint with a server of its own"
    if one.config.codec != two.config.codec:
        raise CheckpointError(f"{other}: its codec has another configuration {advice}")
    ours, theirs = one.speech_tokenizer_weights(), two.speech_tokenizer_weights()
    names = [name for name in ours.names() if name.startswith("decoder.")]
    if names != [name for name in theirs.names() if name.startswith("decoder.")]:
        raise CheckpointError(f"{other}: its codec has other weights {advice}")
    for name in names:
        if not torch.equal(ours.stored(name), theirs.stored(name)):
            raise CheckpointError(f"{other}: weight {name} of its codec has other values {advice}")


def _named(model_paths: Iterable[Path]) -> list[ServedCheckpoint]:
    """Names for the models of each checkpoint, by its kind; a second one of a kind gets a number."""
    served: list[ServedCheckpoint] = []
    for path in model_paths:
        kind = CheckpointConfig.read(path).kind
        same = sum(checkpoint.kind == kind for checkpoint in served)
        suffix = "" if not served else SUFFIXES[kind] + (f"_{same + 1}" if same else "")
        served.append(ServedCheckpoint(kind, ENSEMBLE + suffix, TALKER + suffix, str(path)))
    return served


def _copy_models(folder: Path, checkpoint: ServedCheckpoint) -> None:
    """Copy the models of the first checkpoint under the names of this one."""
    names = {TALKER: checkpoint.talker, ENSEMBLE: checkpoint.ensemble, ENSEMBLE + OFFLINE_SUFFIX: checkpoint.ensemble + OFFLINE_SUFFIX}
    for name, new in names.items():
        shutil.copytree(folder / name, folder / new)
        file = folder / new / "config.pbtxt"
        text = file.read_text(encoding="utf-8")
        for old, replacement in names.items():
            text = text.replace(f'"{old}"', f'"{replacement}"')
        file.write_text(text, encoding="utf-8")


def _models_with_options(folder: Path) -> list[str]:
    files = sorted(folder.glob("*/config.pbtxt"))
    return [file.parent.name for file in files if 'key: "model_path"' in file.read_text(encoding="utf-8")]


def _ascii_store(model: _Model, links: Path) -> dict[str, str]:
    """The option voice_store under an ASCII name, if its own is not; a link needs a folder that is there."""
    store = model.get("voice_store")
    if store.isascii():
        return {}
    folder = Path(os.path.expanduser(store))
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"voice_store: {store!r} cannot be used: {error.strerror}; name a folder this process may read") from None
    return {"voice_store": ascii_name(folder, links)}


def _ascii_lexicon(model: _Model, links: Path) -> dict[str, str]:
    """The option lexicon_file under an ASCII name, if its own is not."""
    file = model.get("lexicon_file")
    return {} if file.isascii() else {"lexicon_file": ascii_name(os.path.expanduser(file), links)}


def _codec_slots(codec: _Model, max_num_seqs: Mapping[str, int]) -> int:
    """Slots of the codec: one for every stream that all talkers may run together, because every running stream takes one."""
    needed, slots = sum(max_num_seqs.values()), int(codec.get("codec_slots"))
    if slots >= needed:
        return slots
    if codec.is_chosen("codec_slots"):
        talkers = " + ".join(f"{number} ({name})" for name, number in max_num_seqs.items())
        raise ConfigError(f"codec_slots: {slots} is less than the sum of max_num_seqs, {talkers}; every running stream needs a codec slot")
    return needed


class _Model:
    """The parameters of one model."""

    def __init__(self, folder: Path, chosen: Mapping[str, str]) -> None:
        """`chosen`: the operator's options; they are checked here, before a server is started."""
        self._file = folder / "config.pbtxt"
        self._chosen = dict(chosen)
        self._written = {name: value for name, value in PARAMETER.findall(self._file.read_text(encoding="utf-8")) if value}
        self._check(codec_slots=str(MAX_CODEC_SLOTS))  # their number is known later

    def get(self, name: str) -> str:
        """The value of an option."""
        default = next(spec.default for spec in fields(EngineConfig) if spec.name == name)
        return str((self._written | self._chosen).get(name, default))

    def is_chosen(self, name: str) -> bool:
        """Whether the operator has set the option."""
        return name in self._chosen

    def write(self, **derived: str) -> None:
        """Add the options, and those `derived` from all checkpoints, to config.pbtxt; the last value of a key counts."""
        self._check(**derived)
        values = self._chosen | derived
        rows = [f"  {{ key: {_quoted(name)} value: {{ string_value: {_quoted(value)} }} }}" for name, value in values.items()]
        with self._file.open("a", encoding="utf-8") as file:
            file.write("parameters [\n" + ",\n".join(rows) + "\n]\n")

    def _check(self, **derived: str) -> None:
        values = self._written | self._chosen | derived
        unknown = [name for name in self._chosen if name not in OPTION_NAMES]
        EngineConfig.from_options({name: value for name, value in values.items() if name in (*OPTION_NAMES, *unknown)}, {})


def _quoted(text: str) -> str:
    """A string of the protobuf text format, which has the escapes of JSON."""
    return json.dumps(text, ensure_ascii=False)
