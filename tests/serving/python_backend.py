"""A stand-in for the module `triton_python_backend_utils`, as of Triton 24.10 or of 26.11.

It is a stand-in only because no release after 24.10 can be had without NVIDIA's container registry. It knows what release notes,
issues and source say of them, which docs/compatibility.md lists; it shows that the code takes those branches, not that such a
server works. 24.10 itself is tested with the real server (tests/server), and stands here so that both releases run the same tests.

A model that breaks a rule of the Python backend crashes, leaks or hangs there. Here that is written into `faults`.
"""

from __future__ import annotations

import json
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from patience import PATIENCE

FINAL = 1
RESERVED = {"sequence_id", "sequence_start", "sequence_end", "priority", "timeout", "headers", "binary_data_output"}
STATUS_CODES = ("UNKNOWN", "INTERNAL", "NOT_FOUND", "INVALID_ARG", "UNAVAILABLE", "UNSUPPORTED", "ALREADY_EXISTS", "CANCELLED")
Arrays = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class Release:
    """What differs between releases of Triton.

    Attributes:
        knows_numpy_2: since 24.11; an older stub gives tensors without a byte.
        has_response_parameters: since 25.02.
        asks_is_ready: since 26.03: the model is asked whether it is ready, and must answer with a bool.
        cancels_every_step: since 26.05: the first step of an ensemble hears of a client that has gone, too.
        reserves_names: since 26.05: request parameters with names of Triton's own are refused.
        crashes_of_bls_threads: up to 26.06: requests to other models from several threads of one process crash it.
    """

    name: str
    knows_numpy_2: bool
    has_response_parameters: bool
    asks_is_ready: bool
    cancels_every_step: bool
    reserves_names: bool
    crashes_of_bls_threads: bool


TRITON_24_10 = Release("24.10", False, False, False, False, False, True)
TRITON_26_11 = Release("26.11", True, True, True, True, True, False)


def is_reserved(name: str) -> bool:
    """Whether a request parameter of this name is refused since 26.05."""
    return name in RESERVED or name.startswith("triton_")


@dataclass(eq=False)
class Call:
    """One request on its way through the server.

    Attributes:
        model: the one that is called.
        on_response: told of each response, with whether it is the last; the response is None if FINAL came alone.
        is_cancelled: set when its client has gone.
    """

    model: str
    tensors: Arrays
    on_response: Callable[[InferenceResponse | None, bool], None]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    request_id: str = ""
    timeout: int = 0
    is_cancelled: threading.Event = field(default_factory=threading.Event)


class Tensor:
    """A tensor of a request or a response."""

    def __init__(self, name: str, array: npt.NDArray[Any]) -> None:
        assert isinstance(array, np.ndarray), f"{name} is a {type(array).__name__}"
        self._name, self._array = name, np.array(array)

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> npt.NDArray[Any]:
        return self._array


class TritonModelException(Exception):
    """What the Python backend raises."""


class TritonError:
    """An error to send."""

    def __init__(self, message: str, code: int = STATUS_CODES.index("INTERNAL")) -> None:
        self._message, self._code = message, code

    def message(self) -> str:
        return self._message

    def code(self) -> int:
        return self._code


for _code, _name in enumerate(STATUS_CODES):
    setattr(TritonError, _name, _code)


class InferenceResponse:
    """A response, as every release knows it."""

    def __init__(self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None) -> None:
        self.tensors, self._error = {tensor.name(): tensor.as_numpy() for tensor in output_tensors}, error

    def has_error(self) -> bool:
        return self._error is not None

    def error(self) -> TritonError:
        assert self._error is not None
        return self._error


class InferenceResponseWithParameters(InferenceResponse):
    """Since 25.02."""

    def __init__(
        self, output_tensors: Sequence[Tensor] = (), error: TritonError | None = None, parameters: dict[str, Any] | None = None
    ) -> None:
        super().__init__(output_tensors, error)
        assert all(isinstance(value, (bool, int, str)) for value in (parameters or {}).values())


class InferenceTrace:
    """Of a request that Triton does not trace."""

    def get_context(self) -> str | None:
        return None


class ReceivedRequest:
    """A request as `execute` gets it. The numbers in its tensors are gone once it has been answered."""

    def __init__(self, call: Call, faults: list[str]) -> None:
        self._call, self._inputs = call, [Tensor(name, array) for name, array in call.tensors.items()]
        self._sender = ResponseSender(call, self._inputs, faults)

    def request_id(self) -> str:
        return self._call.request_id

    def inputs(self) -> list[Tensor]:
        return self._inputs

    def parameters(self) -> str:
        return json.dumps(dict(self._call.parameters)) if self._call.parameters else ""

    def timeout(self) -> int:
        return self._call.timeout

    def trace(self) -> InferenceTrace:
        return InferenceTrace()

    def get_response_sender(self) -> ResponseSender:
        return self._sender


class ResponseSender:
    """Sends the responses to one request."""

    def __init__(self, call: Call, inputs: list[Tensor], faults: list[str]) -> None:
        self._call, self._inputs, self._faults = call, inputs, faults
        self._has_ended = False

    def send(self, response: InferenceResponse | None = None, flags: int = 0) -> None:
        if self._has_ended or flags not in (0, FINAL) or (response is None and not flags):
            self._faults.append(f"{self._call.model} sends {response} with flags {flags}, FINAL sent before: {self._has_ended}")
            raise TritonModelException("Unable to send response. Response sender has been closed.")
        self._has_ended = bool(flags)
        for tensor in self._inputs if flags else ():
            array = tensor.as_numpy()
            if array.dtype != np.object_:
                array[...] = 1  # its shared memory belongs to another request now
        self._call.on_response(response, self._has_ended)

    def is_cancelled(self) -> bool:
        return self._call.is_cancelled.is_set()


class Metric:
    """A metric; it must be gone before its family is."""

    def __init__(self, family: MetricFamily, labels: dict[str, str]) -> None:
        assert all(isinstance(value, str) for value in labels.values())
        self.labels, self._value = labels, 0.0
        family.metrics.add(self)

    def increment(self, amount: float) -> None:
        assert amount >= 0
        self._value += amount

    def set(self, value: float) -> None:
        self._value = value

    def observe(self, value: float) -> None:
        self._value += value

    def value(self) -> float:
        return self._value


class MetricFamily:
    """The metrics of one name."""

    COUNTER, GAUGE, HISTOGRAM = range(3)
    faults: list[str]  # of the process

    def __init__(self, name: str, description: str, kind: int) -> None:
        assert kind in (self.COUNTER, self.GAUGE, self.HISTOGRAM)
        self.name, self.metrics = name, weakref.WeakSet[Metric]()

    def Metric(self, labels: dict[str, str], buckets: list[float] | None = None) -> Metric:
        assert buckets is None or buckets == sorted(buckets)
        return Metric(self, labels)

    def __del__(self) -> None:
        if len(self.metrics):
            self.faults.append(f"the family {self.name} is gone before its metrics")


class Logger:
    """The server's log; `lines` of all levels together."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.log_error = self.log_warn = self.log_info = self.log_verbose = self.log = self.lines.append


def backend_utils(release: Release, model: str, submit: Callable[[Call], None], faults: list[str]) -> ModuleType:
    """The module as the process of one model imports it.

    Args:
        release: of the server.
        model: the importing one.
        submit: starts a request to another model of the server.
        faults: takes what the model does against the rules.
    """
    assert release.knows_numpy_2 or np.lib.NumpyVersion(np.__version__) < "2.0.0", "every tensor would arrive without a byte"
    threads: set[int] = set()

    class InferenceRequest:
        """A request of this model to another one (BLS)."""

        def __init__(
            self,
            model_name: str,
            inputs: Sequence[Tensor],
            requested_output_names: Sequence[str],
            parameters: dict[str, Any] | None = None,
            timeout: int = 0,
        ) -> None:
            assert isinstance(parameters or {}, dict)
            assert list(requested_output_names) == []
            if release.reserves_names and (reserved := [name for name in parameters or {} if is_reserved(name)]):
                faults.append(f"{model} sends the reserved parameters {reserved}")
                raise TritonModelException(f"parameters {reserved} are reserved")
            self._tensors = {tensor.name(): tensor.as_numpy() for tensor in inputs}
            self._target, self._parameters, self._timeout = model_name, parameters or {}, timeout

        def exec(self, decoupled: bool = False) -> Iterator[InferenceResponse]:
            assert decoupled, f"{self._target} is decoupled"
            threads.add(threading.get_ident())
            if release.crashes_of_bls_threads and len(threads) > 1:
                faults.append(f"{model} calls other models from {len(threads)} threads")
            responses: SimpleQueue[tuple[InferenceResponse | None, bool]] = SimpleQueue()
            submit(Call(self._target, self._tensors, lambda *response: responses.put(response), self._parameters, timeout=self._timeout))
            return self._until_the_last(responses)

        @staticmethod
        def _until_the_last(responses: SimpleQueue[tuple[InferenceResponse | None, bool]]) -> Iterator[InferenceResponse]:
            is_final = False
            while not is_final:
                response, is_final = responses.get(timeout=PATIENCE)
                if response is not None:
                    yield response

    module: Any = ModuleType("triton_python_backend_utils")
    module.Tensor, module.InferenceRequest, module.Logger = Tensor, InferenceRequest, Logger()
    module.InferenceResponse = InferenceResponseWithParameters if release.has_response_parameters else InferenceResponse
    module.TritonError, module.TritonModelException = TritonError, TritonModelException
    module.MetricFamily = type("MetricFamily", (MetricFamily,), {"faults": faults})
    module.TRITONSERVER_RESPONSE_COMPLETE_FINAL = FINAL
    return module
