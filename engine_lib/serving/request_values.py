"""RequestValues: the fields of one request of Triton's, by name and with their types checked.

Every field may come as an input tensor or as a request parameter of the same name (generate_stream and perf_analyzer can set
only parameters); the tensor wins. Each error names the field as the client wrote it and says what is allowed.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.admission.turn import TURN_NAMES, Turn
from engine_lib.errors import InvalidRequestError, nearest
from engine_lib.serving.backend import LONGEST_TIMEOUT, MICROSECONDS

logger = logging.getLogger(__name__)

# Parameters that Triton and its clients add. `priority` is not among them: Triton keeps it for itself, except on /generate.
TRITON_NAMES = {"sequence_id", "sequence_start", "sequence_end", "timeout", "headers", "binary_data_output", "binary_data_size"}
MAX_REPORTED = 100  # because clients choose the names
_reported: set[str] = set()

MAX_NAME_LENGTH = 256  # of a string with no limit of its own: a voice, a language, the name of a model
MAX_JSON_LENGTH = 16 * 1024
MAX_PARAMETERS_LENGTH = 256 * 1024  # three texts of 4,000 characters take 144,000 at most
MAX_CHARACTER_BYTES = 4  # of UTF-8
MAX_DIGITS = 1000  # of a whole number in JSON; Python itself refuses 4,301 in words for its own programmers
JSON_NAMES = {list: "list", str: "string", bool: "boolean", type(None): "null"}
SESSION = "session"
MIN_SESSION_BYTES = 16  # because no other client may guess the id


class RequestValues:
    """Fields of one request by name: its tensors, and its parameters if there is no tensor.

    Attributes:
        tensors, parameters: unchecked.
    """

    def __init__(self, tensors: Mapping[str, npt.NDArray[Any]], parameters: str) -> None:
        """
        Args:
            parameters: a JSON object; "" for none.

        Raises:
            InvalidRequestError: it is too long.
        """
        if len(parameters) > MAX_PARAMETERS_LENGTH:
            problem = f"are {len(parameters)} characters of JSON; at most {MAX_PARAMETERS_LENGTH} are allowed"
            raise InvalidRequestError("parameters", f"{problem}; give long texts as input tensors")
        self.tensors = tensors
        self.parameters: dict[str, Any] = json.loads(parameters) if parameters else {}

    def report_unknown(self, known: Collection[str]) -> None:
        """Log each request parameter that is not among `known`, once for each name, because a client may have misspelt it.

        It is not refused: the server can be told to pass on HTTP headers as parameters.
        """
        for name in self.parameters:
            if name in known or name in TRITON_NAMES or name.startswith("triton_") or name in _reported or len(_reported) >= MAX_REPORTED:
                continue
            _reported.add(name)
            logger.warning("the request parameter %.100r has no effect%s", name, nearest(name, known))

    def has(self, name: str) -> bool:
        """Whether the request has the field."""
        return name in self.tensors or name in self.parameters

    def string(self, name: str, max_length: int = MAX_NAME_LENGTH, advice: str = "") -> str | None:
        """The field as text of at most `max_length` characters; None if it is absent. `advice`: the end of what a longer one gets."""
        text = self._string(name, max_length)
        if text is not None and len(text) > max_length:
            raise InvalidRequestError(name, f"has {len(text)} characters; at most {max_length} are allowed{advice}")
        return text

    def _string(self, name: str, max_length: int) -> str | None:
        if name not in self.tensors:
            value = self.parameters.get(name)
            if value is not None and not isinstance(value, str):
                raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a string")
            return value
        tensor = self.tensors[name]
        if tensor.shape != (1,) or tensor.dtype != np.object_:
            raise InvalidRequestError(name, f"has shape {list(tensor.shape)} and type {tensor.dtype}; give one string, shape [1]")
        if len(tensor[0]) > MAX_CHARACTER_BYTES * max_length:
            raise InvalidRequestError(name, f"has {len(tensor[0])} bytes; at most {max_length} characters are allowed")
        try:
            text: str = tensor[0].decode("utf-8")
        except UnicodeDecodeError as error:
            raise InvalidRequestError(name, f"is not UTF-8 (byte {error.start}); give UTF-8 text") from None
        return text

    def number(self, name: str) -> int | None:
        """The field as a whole number; None if it is absent."""
        if name not in self.tensors:
            value = self.parameters.get(name)
            if value is not None and type(value) is not int:
                raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a whole number")
            return value
        return int(self._one(name, np.int32))

    def boolean(self, name: str) -> bool | None:
        """The field as true or false; None if it is absent."""
        if name not in self.tensors:
            value = self.parameters.get(name)
            if value is not None and type(value) is not bool:
                raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give true or false")
            return value
        return bool(self._one(name, np.bool_))

    def samples(self, name: str) -> npt.NDArray[np.float32] | None:
        """The field as [samples] float32, in the memory of the request; None if it is absent."""
        tensor = self.tensors.get(name)
        if tensor is None:
            if name in self.parameters:
                raise InvalidRequestError(name, "is given as a request parameter; give it as an input tensor, FP32 [samples]")
            return None
        if tensor.ndim != 1 or tensor.dtype != np.float32:
            raise InvalidRequestError(name, f"has shape {list(tensor.shape)} and type {tensor.dtype}; give FP32 [samples], mono")
        return tensor

    def _one(self, name: str, kind: type[np.generic]) -> Any:
        tensor = self.tensors[name]
        if tensor.shape != (1,) or tensor.dtype != kind:
            raise InvalidRequestError(name, f"has shape {list(tensor.shape)} and type {tensor.dtype}; give one {kind.__name__}, shape [1]")
        return tensor[0]

    def json_object(self, name: str, max_length: int = MAX_JSON_LENGTH) -> dict[str, Any]:
        """The field as a JSON object, in at most `max_length` characters; empty if it is absent or an empty string."""
        text = self.string(name, max_length)
        if not text:
            return {}
        try:
            value = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            raise InvalidRequestError(name, f"is not valid JSON ({error}); give a JSON object") from None
        if not isinstance(value, dict):
            raise InvalidRequestError(name, f"is a JSON {JSON_NAMES.get(type(value), 'number')}; give a JSON object")
        return value


def timeout_of(request: Any) -> int:
    """The microseconds that a request of Triton's was given; 0: as many as it takes.

    Triton reads `timeout` itself, except on /generate, which passes it on as a parameter of any type.

    Raises:
        InvalidRequestError: that parameter is no whole number from 0.
    """
    given = request.timeout()
    if not given and '"timeout"' in (parameters := request.parameters()):
        given = RequestValues({}, parameters).number("timeout") or 0
        if given < 0:
            raise InvalidRequestError("timeout", f"{given} is not allowed; give a whole number of microseconds from 0 (no limit)")
    return given if 0 < given < LONGEST_TIMEOUT else 0


def deadline_of(request: Any, arrived_at: float) -> float | None:
    """time.monotonic() at which the time that a request of Triton's was given has passed; None: never.

    Raises:
        InvalidRequestError: as in `timeout_of`.
    """
    timeout = timeout_of(request)
    return arrived_at + timeout / MICROSECONDS if timeout else None


def turn_of(values: RequestValues) -> Turn:
    """How a request waits.

    Raises:
        InvalidRequestError: a value is not allowed.
    """
    return Turn.of(*(values.parameters.get(name) for name in TURN_NAMES))


def session_key(values: RequestValues) -> str | None:
    """The digest by which a session is kept; None if the request has none. To look it up takes a time that tells nothing about an id.

    Raises:
        InvalidRequestError: the id is too short or too long.
    """
    session = values.string(SESSION)
    if not session:
        return None
    length = len(session.encode("utf-8", "replace"))
    if length < MIN_SESSION_BYTES:
        raise InvalidRequestError(SESSION, f"has {length} bytes; give at least {MIN_SESSION_BYTES} random ones, as a UUID of version 4")
    return hashlib.blake2b(session.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def _refuse_constant(constant: str) -> None:
    raise ValueError(f"{constant} is not a JSON number")


def _whole_number(digits: str) -> int:
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"a number has {len(digits)} digits, and at most {MAX_DIGITS} are allowed")
    return int(digits)


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant, parse_int=_whole_number)
