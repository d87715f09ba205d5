"""What the config of a model that streams must say: one version, the latest, and a stream of answers.

Ensemble and control requests reach the latest version alone. A config may come from an operator, or with a request to load
the model, which would then end the server at the first stream.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

from engine_lib.errors import ConfigError


def check_only_version(args: Mapping[str, str]) -> None:
    """Refuse to load any version but the latest of those that the model's version_policy loads.

    Args:
        args: the arguments of `initialize`.

    Raises:
        ConfigError: a later version is loaded too.
    """
    own, latest = int(args["model_version"]), max(_loaded_versions(args))
    if own != latest:
        raise ConfigError(
            f"version_policy: loads version {own} of {args['model_name']} beside version {latest}, and a server serves one version of it; "
            f"name the one to serve, as in version_policy: {{ specific: {{ versions: [{own}] }} }}"
        )


def check_streams(args: Mapping[str, str]) -> None:
    """Refuse a config with which Triton would take one answer for a request, or put requests together.

    Args:
        args: the arguments of `initialize`.

    Raises:
        ConfigError: a field has a value with which no stream can be served.
    """
    config = json.loads(args["model_config"])
    if not (config.get("model_transaction_policy") or {}).get("decoupled"):
        raise ConfigError(f"model_transaction_policy: {args['model_name']} answers in a stream; give {{ decoupled: true }}")
    if int(config.get("max_batch_size", 0)) != 0:
        raise ConfigError(f"max_batch_size: is {config['max_batch_size']}; give 0, because the engine batches streams by itself")


def _loaded_versions(args: Mapping[str, str]) -> list[int]:
    policy = json.loads(args["model_config"]).get("version_policy") or {}
    present = sorted(int(folder.name) for folder in Path(args["model_repository"]).iterdir() if folder.name.isdecimal())
    if "specific" in policy:
        present = sorted(int(version) for version in policy["specific"]["versions"])
    elif "all" not in policy:
        present = present[-int(policy.get("latest", {}).get("num_versions", 1)) :]
    return [*present, int(args["model_version"])]
