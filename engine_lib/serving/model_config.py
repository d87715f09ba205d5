"""What config.pbtxt of a model must say: of talker and codec one version, one instance, and streams.

Ensemble and control requests reach the latest version alone, and any of its instances. A config may come from an operator, or with a
request to load the model, which would then fail, hang or end the server at the first request.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from engine_lib.errors import ConfigError

OWN_KIND = "KIND_MODEL"
ONE_INSTANCE = f"give [ {{ kind: {OWN_KIND} count: 1 }} ]"


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
    """Refuse a config with which Triton would take one answer for a request, put requests together, or spread a stream.

    Args:
        args: the arguments of `initialize`.

    Raises:
        ConfigError: a field has a value with which no stream can be served.
    """
    config = _checked(args, decoupled=True)
    if "dynamic_batching" in config:
        advice = "the options max_waiting_requests and codec_max_wait_ms and the priority of requests are for this"
        raise ConfigError(f"dynamic_batching: the engine batches streams by itself; leave it out: {advice}")
    _check_one_instance(config.get("instance_group", []))


def check_answers(args: Mapping[str, str]) -> None:
    """Refuse a config with which Triton would want more than one answer for a request, or put requests together.

    Args:
        args: the arguments of `initialize`.

    Raises:
        ConfigError: a field has a value with which no request can be answered.
    """
    config = _checked(args, decoupled=False)
    if (config.get("response_cache") or {}).get("enable"):
        raise ConfigError("response_cache: Triton's key leaves out request parameters, such as the voice, and answers differ; leave it out")


def _checked(args: Mapping[str, str], *, decoupled: bool) -> dict[str, Any]:
    """The config, whose requests come one by one and are answered in a stream (`decoupled`) or once."""
    config: dict[str, Any] = json.loads(args["model_config"])
    if bool((config.get("model_transaction_policy") or {}).get("decoupled")) != decoupled:
        answers, wanted = ("in a stream", "true") if decoupled else ("once", "false")
        raise ConfigError(f"model_transaction_policy: {args['model_name']} answers {answers}; give {{ decoupled: {wanted} }}")
    if int(config.get("max_batch_size", 0)) != 0:
        raise ConfigError(f"max_batch_size: is {config['max_batch_size']}; give 0, because no input has a batch dimension")
    if "sequence_batching" in config:
        raise ConfigError("sequence_batching: its requests would need a sequence id, which no client gives; leave it out")
    return config


def _check_one_instance(groups: list[dict[str, Any]]) -> None:
    """Each instance would be an engine of its own, with all its memory, and would get some of the messages of each stream."""
    count = sum(int(group.get("count", 1)) * max(1, len(group.get("gpus") or [])) for group in groups)
    if count > 1:
        raise ConfigError(
            f"instance_group: has {count} instances, and one serves all streams; {ONE_INSTANCE}, and start more servers for more"
        )
    other = [group["kind"] for group in groups if group.get("kind", OWN_KIND) != OWN_KIND]
    if other:
        raise ConfigError(f"instance_group: its kind is {other[0]}; {ONE_INSTANCE}: the options device and codec_device choose the device")


def _loaded_versions(args: Mapping[str, str]) -> list[int]:
    policy = json.loads(args["model_config"]).get("version_policy") or {}
    present = sorted(int(folder.name) for folder in Path(args["model_repository"]).iterdir() if folder.name.isdecimal())
    if "specific" in policy:
        present = sorted(int(version) for version in policy["specific"]["versions"])
    elif "all" not in policy:
        present = present[-int(policy.get("latest", {}).get("num_versions", 1)) :]
    return [*present, int(args["model_version"])]
