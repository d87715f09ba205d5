"""The checkpoints of one server. With this list each model can direct a client to the right one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from engine_lib.checkpoint_config import CheckpointConfig

SERVED_PARAMETER = "served_checkpoints"
ENSEMBLE, TALKER, CODEC, VOICES = "qwen3_tts", "talker", "codec_decoder", "voices"
GRPC_URL_VARIABLE = "QWEN3_TTS_GRPC_URL"  # HOST:PORT at which a model reaches its own server
OFFLINE_SUFFIX = "_offline"  # of an ensemble's name, for the model that answers with the whole utterance


@dataclass(frozen=True)
class ServedCheckpoint:
    """One checkpoint of a server.

    Attributes:
        kind: custom_voice, base or voice_design.
        ensemble: the model that clients call.
        talker: the model that holds its talker.
        model_path: its folder.
    """

    kind: str
    ensemble: str
    talker: str
    model_path: str


def served_checkpoints(args: Mapping[str, str], own: CheckpointConfig, model_path: str) -> list[ServedCheckpoint]:
    """The checkpoints of the server that runs this model, in the order `lay_out` got them; the repository in git serves one.

    Args:
        args: the arguments of `initialize`; `engine_lib.server.repository` writes the parameter.
        own, model_path: the checkpoint of this model.
    """
    parameters: Mapping[str, Any] = json.loads(args["model_config"]).get("parameters", {})
    if SERVED_PARAMETER not in parameters:
        return [ServedCheckpoint(own.kind, ENSEMBLE, TALKER, model_path)]
    return [ServedCheckpoint(**values) for values in json.loads(parameters[SERVED_PARAMETER]["string_value"])]


def served_parameter(served: Sequence[ServedCheckpoint]) -> str:
    """The value of the parameter that `served_checkpoints` reads."""
    return json.dumps([asdict(checkpoint) for checkpoint in served], ensure_ascii=False)


def where_to_go(served: Sequence[ServedCheckpoint], kind: str) -> str:
    """Advice to a client that needs a checkpoint of `kind`."""
    ensembles = [checkpoint.ensemble for checkpoint in served if checkpoint.kind == kind]
    if ensembles:
        return f"call model {' or '.join(ensembles)}, which is of kind {kind}"
    return f"this server serves no checkpoint of kind {kind}; call one that does"
