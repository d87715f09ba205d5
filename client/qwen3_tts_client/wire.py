"""Tensors in Triton's protobuf messages, written and read with the classes that tritonclient ships."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from qwen3_tts_client.errors import InvalidRequest

# Seconds; more are no limit. gRPC and Triton count in integers that a much larger number overflows.
LONGEST_TIMEOUT = 1e8
MICROSECONDS = 1_000_000  # in a second


def checked_timeout(timeout: float | None) -> float | None:
    """`timeout` in seconds; None if it is no limit: None, infinity, or more than LONGEST_TIMEOUT.

    Raises:
        InvalidRequest: it is not a number.
    """
    if timeout is None:
        return None
    is_number = isinstance(timeout, (int, float, np.integer, np.floating)) and not isinstance(timeout, bool)
    if not is_number or timeout != timeout:
        raise InvalidRequest(f"timeout: {timeout!r:.100} is not allowed; give seconds, or None for no limit", field="timeout")
    return None if timeout > LONGEST_TIMEOUT else float(timeout)


def utf8(name: str, value: str) -> bytes:
    """`value` as the wire has it.

    Raises:
        InvalidRequest: it is no text, or cannot be encoded.
    """
    if not isinstance(value, str):
        raise InvalidRequest(f"{name}: {type(value).__name__} is not allowed; give a str", field=name)
    try:
        return value.encode("utf-8")
    except UnicodeEncodeError:
        raise InvalidRequest(f"{name}: is not valid Unicode (a lone surrogate); give text that UTF-8 can hold", field=name) from None


def add_input(request: service_pb2.ModelInferRequest, name: str, datatype: str, values: npt.NDArray[Any]) -> None:
    """Append an input of Triton's `datatype`."""
    request.inputs.add(name=name, datatype=datatype, shape=values.shape)
    request.raw_input_contents.append(values.tobytes())


def add_parameter(request: service_pb2.ModelInferRequest, name: str, value: str) -> None:
    """Set a request parameter.

    Raises:
        InvalidRequest: the value cannot be encoded as UTF-8.
    """
    utf8(name, value)
    request.parameters[name].string_param = value


def add_timeout(request: service_pb2.ModelInferRequest, timeout: float | None) -> None:
    """Let the server end the request after `timeout` seconds, from `checked_timeout`; None: never."""
    if timeout is not None:
        request.parameters["timeout"].int64_param = max(1, round(timeout * MICROSECONDS))


def add_string(request: service_pb2.ModelInferRequest, name: str, value: str) -> None:
    """Append a BYTES input of shape [1]: on the wire, 4 bytes of length and the UTF-8 text.

    Raises:
        InvalidRequest: the value cannot be encoded as UTF-8.
    """
    encoded = utf8(name, value)
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
        add_input(request, "reference_sample_rate", "INT32", np.array([_checked_rate(sample_rate)], np.int32))
    if x_vector_only is not None:
        if not isinstance(x_vector_only, (bool, np.bool_)):
            message = f"x_vector_only: {x_vector_only!r:.100} is not allowed; give True or False"
            raise InvalidRequest(message, field="x_vector_only")
        add_input(request, "x_vector_only", "BOOL", np.array([x_vector_only], np.bool_))


def read_string(raw: bytes) -> str:
    """The text of a BYTES output of shape [1]."""
    return raw[4:].decode("utf-8")


def read_int(raw: bytes) -> int:
    """The value of an INT32 output of shape [1]."""
    return int.from_bytes(raw, "little", signed=True)


def _checked_rate(sample_rate: object) -> int:
    whole = isinstance(sample_rate, (int, np.integer)) and not isinstance(sample_rate, bool)
    if isinstance(sample_rate, (float, np.floating)) and float(sample_rate).is_integer():  # as some libraries give it
        whole, sample_rate = True, int(sample_rate)
    if not whole or not 0 < sample_rate < 2**31:  # type: ignore[operator]
        message = f"reference_sample_rate: {sample_rate!r:.100} is not allowed; give a whole number of Hz"
        raise InvalidRequest(message, field="reference_sample_rate")
    return int(sample_rate)  # type: ignore[call-overload]


def _mono_float32(audio: npt.NDArray[Any]) -> npt.NDArray[np.float32]:
    audio = np.asarray(audio)
    if audio.ndim != 1 or audio.dtype.kind != "f":
        raise InvalidRequest(
            f"reference_audio: {audio.dtype} of shape {audio.shape} is not allowed; give floats of shape [samples] (mono, -1 to 1)",
            field="reference_audio",
        )
    return audio.astype("<f4")
