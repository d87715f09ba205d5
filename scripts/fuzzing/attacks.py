"""Hostile requests over gRPC and HTTP, made from a seed: the same seed makes the same ones."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2

from fuzzing.models import Input, Model
from fuzzing.values import FIELDS, NAMES, ODD_SHAPE_SHARE, TEXTS, some_array, some_bytes, some_json, some_value

DATATYPES = ("BYTES", "FP32", "INT32", "INT16", "UINT8", "BOOL", "FP64", "")
PARAMETERS = (*FIELDS, "server_signature", "text", "voice", "language", "reference_sample_rate", "timeout", "x")


@dataclass(frozen=True)
class GrpcAttack:
    """A request over gRPC.

    Attributes:
        leaves: the client cancels after the first response.
    """

    request: service_pb2.ModelInferRequest
    streams: bool
    leaves: bool

    @property
    def model(self) -> str:
        """The model that it calls."""
        name: str = self.request.model_name
        return name


@dataclass(frozen=True)
class HttpAttack:
    """A POST."""

    model: str
    path: str
    body: bytes


Attack = GrpcAttack | HttpAttack


class Attacker:
    """Makes hostile requests to a server's models."""

    def __init__(self, models: Sequence[Model], messages: Sequence[tuple[bytes, bytes]], *, cancel_share: float) -> None:
        """
        Args:
            messages: true ones of the talker, (codes, header), to be changed or sent again.
            cancel_share: part of the streams whose client leaves early.
        """
        self._models, self._messages, self._cancel_share = models, messages, cancel_share

    def attack(self, rng: random.Random) -> Attack:
        """The next hostile request."""
        model = rng.choice(self._models)
        return self._http(rng, model) if rng.random() < 0.3 else self._grpc(rng, model)

    def _grpc(self, rng: random.Random, model: Model) -> GrpcAttack:
        request = service_pb2.ModelInferRequest(model_name=model.name, id=rng.choice(("", "1", "x" * 300)))
        if rng.random() < 0.03:
            request.model_name = rng.choice(("", "no_such_model", "../talker"))
        for given in model.inputs:
            if _is_sent(rng, given):
                self._add_input(rng, request, given)
        if model.name.startswith("codec") and rng.random() < 0.5:
            self._add_message(rng, request)
        for _ in range(rng.choice((0, 0, 1, 4))):
            _set_parameter(rng, request.parameters[rng.choice(PARAMETERS)])
        if rng.random() < 0.03 and request.raw_input_contents:
            request.raw_input_contents.pop()
        request.parameters["triton_enable_empty_final_response"].bool_param = True
        streams = model.streams if rng.random() < 0.97 else not model.streams
        return GrpcAttack(request, streams, leaves=model.streams and rng.random() < self._cancel_share)

    def _add_input(self, rng: random.Random, request: service_pb2.ModelInferRequest, given: Input) -> None:
        datatype = given.datatype if rng.random() < 0.995 else rng.choice(DATATYPES)
        name = given.name if rng.random() < 0.995 else rng.choice(("no_such_input", "text", ""))
        if given.datatype == "BYTES":
            value = _string(rng, given.name)
            shape, content = [1], struct.pack("<I", len(value)) + value
            if rng.random() < ODD_SHAPE_SHARE:
                shape = rng.choice(([2], [1, 1], [0], []))
            elif rng.random() < ODD_SHAPE_SHARE:
                content = content[: rng.randrange(len(content))]
        else:
            shape, content = some_array(rng, given.datatype, given.dims)
        request.inputs.add(name=name, datatype=datatype, shape=shape)
        request.raw_input_contents.append(content)

    def _add_message(self, rng: random.Random, request: service_pb2.ModelInferRequest) -> None:
        """Put a true message of the talker in the place of the inputs, mostly with a change."""
        if not self._messages:
            return
        codes, header = rng.choice(self._messages)
        changed = bytearray(header)
        for _ in range(rng.randrange(3)):
            changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
        codes *= rng.choice((1, 1, 2, 60, 6000))
        del request.inputs[:], request.raw_input_contents[:]
        request.inputs.add(name="codes", datatype="INT16", shape=[len(codes) // 32, 16])
        request.inputs.add(name="header", datatype="UINT8", shape=[len(changed)])
        request.raw_input_contents.extend((codes, bytes(changed)))

    def _http(self, rng: random.Random, model: Model) -> HttpAttack:
        verb = "generate_stream" if model.streams else rng.choice(("infer", "generate"))
        if rng.random() < 0.03:
            verb = rng.choice(("infer", "generate", "generate_stream"))
        path = f"/v2/models/{model.name}/{verb}"
        fields = {given.name: _json_value(rng, given) for given in model.inputs if _is_sent(rng, given)}
        if verb == "infer":
            body: Any = {"inputs": [_json_input(rng, given) for given in model.inputs if _is_sent(rng, given)]}
        else:
            body = fields | {rng.choice(PARAMETERS): some_value(rng, 0) for _ in range(rng.choice((0, 0, 2)))}
        content = json.dumps(body).encode("utf-8", "surrogatepass")
        if rng.random() < 0.05:
            content = rng.choice((b"", b"{", b"[]", content[: len(content) // 2], rng.randbytes(50)))
        return HttpAttack(model.name, path, content)


def _is_sent(rng: random.Random, given: Input) -> bool:
    """Required inputs always come: in Triton 24.10 an ensemble that lacks one never answers."""
    if given.name in ("cancel", "hold", "store_voice"):
        return rng.random() < 0.05
    return not given.is_optional or given.name == "text" or rng.random() < 0.12


def _string(rng: random.Random, field: str) -> bytes:
    if rng.random() < 0.2:
        return some_bytes(rng)
    if field == "text":
        return b"Hello." if rng.random() < 0.6 else rng.choice(TEXTS).encode()
    if field == "sampling_parameters":
        return some_json(rng).encode("utf-8", "surrogatepass")
    if field == "action":
        return rng.choice((b"list", b"show", b"add", b"remove", b"rename"))
    return rng.choice(NAMES).encode()


def _json_value(rng: random.Random, given: Input) -> Any:
    if given.datatype == "BYTES" and rng.random() < 0.8:
        return _string(rng, given.name).decode("utf-8", "replace")
    return rng.choice((0, 1, True, 16_000, 0.5, [0.5, -0.5], some_value(rng, 1)))


def _json_input(rng: random.Random, given: Input) -> dict[str, Any]:
    length = max(given.dims[0], 1)
    data = [_json_value(rng, given)] if given.datatype == "BYTES" else [rng.choice((0, 1, -1, 8000)) for _ in range(length)]
    shape = [length] if rng.random() > ODD_SHAPE_SHARE else rng.choice(([2], [0], [-1]))
    return {"name": given.name, "datatype": given.datatype, "shape": shape, "data": data}


def _set_parameter(rng: random.Random, parameter: service_pb2.InferParameter) -> None:
    choice = rng.randrange(4)
    if choice == 0:
        parameter.bool_param = rng.random() < 0.5
    elif choice == 1:
        parameter.int64_param = rng.choice((0, 1, -1, 2**62))
    elif choice == 2:
        parameter.double_param = rng.choice((0.5, float("nan"), 1e300))
    else:
        parameter.string_param = rng.choice((*TEXTS, *NAMES))
