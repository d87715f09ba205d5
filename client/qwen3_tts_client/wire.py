"""Tensors in Triton's protobuf messages, written and read with the classes that tritonclient ships."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from qwen3_tts_client.errors import InvalidRequest


def add_input(request: service_pb2.ModelInferRequest, name: str, datatype: str, values: npt.NDArray[Any]) -> None:
    """Append an input of Triton's `datatype`."""
    request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    request.raw_input_contents.append(values.tobytes())


def add_string(request: service_pb2.ModelInferRequest, name: str, value: str) -> None:
    """Append a BYTES input of shape [1]: on the wire, 4 bytes of length and the UTF-8 text.

    Raises:
        InvalidRequest: the value cannot be encoded as UTF-8.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: {type(value).__name__} is not allowed; give a str", field=name)
    try:
        encoded = value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name}: is not valid Unicode (a lone surrogate); give text that UTF-8 can hold", field=name) from None
    request.inputs.add(name=name, datatype="BYTES", shape=[1])
    request.raw_input_contents.append(len(encoded).to_bytes(4, "little") + encoded)


def add_reference(
    request: service_pb2.ModelInferRequest,
    audio: npt.NDArray[np.floating[Any]] | None,
    sample_rate: int | None,
    text: str | None,
    x_vector_only: bool | None,
) -> None:
    """Append the given inputs of a voice to clone; see RequestOptions.

    Raises:
        InvalidRequest: a value cannot be encoded.
    """
    if text is not None:
        add_string(request, "reference_text", text)
    if audio is not None:
        add_input(request, "reference_audio", "FP32", _mono_float32(audio))
    if sample_rate is not None:
        add_input(request, "reference_sample_rate", "INT32", np.array([sample_rate], np.int32))
    if x_vector_only is not None:
        add_input(request, "x_vector_only", "BOOL", np.array([x_vector_only], np.bool_))


def read_string(raw: bytes) -> str:
    """The text of a BYTES output of shape [1]."""
    return raw[4:].decode("utf-8")


def _mono_float32(audio: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind != "f":
        raise InvalidRequest(
            f"reference_audio: {audio.dtype} of shape {audio.shape} is not allowed; give floats of shape [samples] (mono, -1 to 1)",
            field="reference_audio",
        )
    return audio.astype("<f4")
