"""A server serves one version of a model: the latest, which ensemble and control requests reach."""

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


def _loaded_versions(args: Mapping[str, str]) -> list[int]:
    policy = json.loads(args["model_config"]).get("version_policy") or {}
    present = sorted(int(folder.name) for folder in Path(args["model_repository"]).iterdir() if folder.name.isdecimal())
    if "specific" in policy:
        present = sorted(int(version) for version in policy["specific"]["versions"])
    elif "all" not in policy:
        present = present[-int(policy.get("latest", {}).get("num_versions", 1)) :]
    return [*present, int(args["model_version"])]
