"""EngineConfig from the `parameters` of a model's config.pbtxt, which Triton passes at load."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace

from engine_lib.config import ENVIRONMENT_PREFIX, OPTION_NAMES, EngineConfig
from engine_lib.errors import ConfigError
from engine_lib.serving.served import SERVED_PARAMETER

MODEL_DIRECTORY = "$$TRITON_MODEL_DIRECTORY"


def engine_config(args: Mapping[str, str], environment: Mapping[str, str] | None = None) -> EngineConfig:
    """Options of one model.

    Parameters, except SERVED_PARAMETER, are options of EngineConfig; an empty one keeps the default. Upper-case ones are the Python
    backend's own (FORCE_CPU_ONLY_INPUT_TENSORS, EXECUTION_ENV_PATH). A model_path may begin with $$TRITON_MODEL_DIRECTORY.

    Args:
        args: the arguments of `initialize`.
        environment: defaults to os.environ; QWEN3_TTS_<NAME> overrides a parameter.

    Raises:
        ConfigError: an unknown option, one in other letters, a value that is not allowed, or no model_path.
    """
    parameters = json.loads(args["model_config"]).get("parameters", {})
    values = {name: parameter["string_value"] for name, parameter in parameters.items()}
    for name in values:
        option = name.lower().removeprefix(ENVIRONMENT_PREFIX.lower())
        if name != option and option in OPTION_NAMES:
            raise ConfigError(f"{name}: is no name of a parameter; write {option}")
    options = {name: value for name, value in values.items() if not name.isupper() and value != "" and name != SERVED_PARAMETER}
    config = EngineConfig.from_options(options, environment)
    if not config.model_path:
        raise ConfigError("model_path: is not set; give the checkpoint folder in QWEN3_TTS_MODEL_PATH or in the parameters of config.pbtxt")
    return replace(config, model_path=config.model_path.replace(MODEL_DIRECTORY, args["model_repository"]))
