"""The models of a server as a client finds them: names, inputs, and whether they stream."""

from __future__ import annotations

import json
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

NUMPY_KINDS = {"TYPE_FP32": "FP32", "TYPE_INT16": "INT16", "TYPE_INT32": "INT32", "TYPE_UINT8": "UINT8", "TYPE_BOOL": "BOOL"}


@dataclass(frozen=True)
class Input:
    """One input.

    Attributes:
        datatype: as in a request: BYTES, FP32, ...
        dims: -1 for any.
    """

    name: str
    datatype: str
    dims: tuple[int, ...]
    is_optional: bool


@dataclass(frozen=True)
class Model:
    """One model. `streams`: it is decoupled, so only streams and generate_stream may call it."""

    name: str
    inputs: tuple[Input, ...]
    streams: bool


def read_models(http: str) -> list[Model]:
    """All models of the server at `http`, HOST:PORT."""
    names = [entry["name"] for entry in _json(f"http://{http}/v2/repository/index", b"{}")]
    return [_model(_json(f"http://{http}/v2/models/{name}/config")) for name in sorted(names)]


def _model(config: Mapping[str, Any]) -> Model:
    inputs = [
        Input(
            name=given["name"],
            datatype=NUMPY_KINDS.get(given["data_type"], "BYTES"),
            dims=tuple(int(size) for size in given["dims"]),
            is_optional=bool(given.get("optional")),
        )
        for given in config["input"]
    ]
    streams = bool(config.get("model_transaction_policy", {}).get("decoupled")) or config.get("platform") == "ensemble"
    return Model(config["name"], tuple(inputs), streams and not config["name"].endswith("_offline"))


def _json(url: str, body: bytes | None = None) -> Any:
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=30) as response:
        return json.load(response)
