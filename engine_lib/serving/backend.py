"""TritonBackend: the few things a service needs of Triton's Python backend, in plain types.

The shell imports `triton_python_backend_utils` and hands the module over. So this package can be imported, and its parts
tested, without a server. Nothing here imports torch: two of the models do without it.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from engine_lib.errors import InvalidRequestError, place_of
from engine_lib.process.latency import LatencyWindow
from engine_lib.serving.errors import RelayedError, status
from engine_lib.serving.metrics import Counter
from engine_lib.serving.secret import ServerSecret
from engine_lib.serving.server_guard import ServerGuard
from engine_lib.serving.tracing import Span, Tracing

SIGNATURE_PARAMETER = "server_signature"  # request parameter of a control request: hexadecimal, of its `signed_order`
MICROSECONDS = 1_000_000  # in a second
LONGEST_TIMEOUT = 10**14  # microseconds; a longer one is none, and no wait overflows

Tensors = dict[str, npt.NDArray[Any]]  # of one request or answer, by name


class TritonBackend:
    """One model's view of its server.

    Attributes:
        name, version: of the model.
        guard: of the model's process.
        log: Triton's logger.
        metric_family: Triton's class of metrics.
        send_times: how long the latest sends took.
        refusals: requests refused with an error, by status code.
        secret: of the server.
        forgeries: control requests and messages refused because no model of this server has signed them.
        tracing: sends spans of the requests that Triton traces; None: it is off.
    """

    def __init__(self, pb_utils: Any, args: Mapping[str, str], guard: ServerGuard) -> None:
        """
        Args:
            pb_utils: the module `triton_python_backend_utils`.
            args: the arguments of `initialize`.
            guard: of this process.

        Raises:
            ConfigError: as in ServerSecret.of_this_server.
        """
        self._pb_utils = pb_utils
        _serialize_faster(pb_utils)
        self.guard = guard
        self.name, self.version = args["model_name"], args["model_version"]
        self.log = pb_utils.Logger
        self.metric_family = pb_utils.MetricFamily
        self.send_times = LatencyWindow()
        self.refusals, self.forgeries = Counter(), Counter()
        self.secret = ServerSecret.of_this_server()
        self.tracing: Tracing | None = None

    def log_failure(self, error: BaseException, request_id: str = "") -> None:
        """Log type and place of an error, without its text, which might quote a user."""
        self.log.log_error(f"{request_name(request_id)}: {place_of(error)}" if request_id else place_of(error))

    def tensors(self, request: Any) -> Tensors:
        """The inputs of `request`. They are views of shared memory: copy those that must outlive the request."""
        return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}

    def parameters(self, request: Any) -> str:
        """The request parameters of `request`, a JSON object; "" for none.

        Raises:
            InvalidRequestError: they are not UTF-8. Over HTTP Triton lets any bytes through.
        """
        try:
            parameters: str = request.parameters()
        except UnicodeDecodeError as error:
            raise InvalidRequestError("parameters", f"a name or a value is not UTF-8 ({error.reason}); give UTF-8 text") from None
        return parameters

    def trace_context(self, request: Any) -> dict[str, str]:
        """The headers (W3C) that make a call part of the trace that Triton makes of `request`; none if it makes none."""
        context: str | None = request.trace().get_context()
        return json.loads(context) if context else {}

    def reply(self, request: Any) -> Reply:
        """The object that answers `request`."""
        return Reply(self, self._pb_utils, request)

    def ping(self) -> bool:
        """Whether the server still takes requests; a stopping one refuses. Blocks on the server.

        The ping is a control request to this model that cancels nothing. `pb_utils.is_model_ready` cannot be used: it corrupts
        the memory it shares with the server (24.10; a few dozen calls crashed either process).
        """
        try:
            self.cancel_stream(self.name, "")
        except (RuntimeError, RelayedError, self._pb_utils.TritonModelException):
            return False
        return True

    def cancel_stream(self, talker: str, stream_key: str) -> None:
        """Send the model `talker` a control request that stops one stream. Blocks on the server.

        Raises:
            RelayedError: the talker refused it.
        """
        self.control(talker, "cancel", np.array([stream_key.encode()], np.object_))

    def end_silence(self, talker: str, stream_key: str, num_good_frames: int) -> None:
        """Send the model `talker` a control request: the audio of a stream is silent behind these frames. Blocks on the server.

        Raises:
            RelayedError: the talker refused it.
        """
        self.control(talker, "silence", np.array([f"{num_good_frames} {stream_key}".encode()], np.object_))

    def apply_backpressure(self, talker: str, seconds: float) -> None:
        """Send the model `talker` a control request: begin no stream for `seconds`. Blocks on the server.

        Raises:
            RelayedError: the talker refused it.
        """
        self.control(talker, "hold", np.array([seconds], np.float32))

    def control(
        self,
        model: str,
        name: str,
        order: npt.NDArray[Any],
        tensors: Mapping[str, npt.NDArray[Any]] | None = None,
        parameters: Mapping[str, Any] | None = None,
        *,
        timeout: int = 0,
    ) -> None:
        """Send a control request (BLS), signed by this server, and wait until it has been obeyed. Blocks on the server.

        Args:
            model: a talker of this server.
            name, order: the input that says what to do, one value.
            tensors, parameters: further inputs, and request parameters.
            timeout: of the request, in microseconds; 0: none.

        Raises:
            RelayedError: the talker refused it.
        """
        inputs = [self._pb_utils.Tensor(field, array) for field, array in {**(tensors or {}), name: order}.items()]
        signature = self.secret.sign(signed_order(model, name, order)).hex()
        request = self._pb_utils.InferenceRequest(
            model_name=model,
            inputs=inputs,
            requested_output_names=[],
            parameters={**(parameters or {}), SIGNATURE_PARAMETER: signature},
            timeout=timeout,
        )
        for response in request.exec(decoupled=True):
            if response.has_error():
                raise RelayedError(response.error().message())


def request_name(request_id: str) -> str:
    """A request in words, for the log. Clients choose the id, so it is quoted and not shown at full length."""
    return f"request {request_id[:100]!r}" if request_id else "a request without id"


def _id_of(request: Any) -> str:
    """The client's own name of a request, which only the log needs: over HTTP Triton lets any bytes through."""
    try:
        request_id: str = request.request_id()
    except UnicodeDecodeError:
        return "(not UTF-8)"
    return request_id


class Reply:
    """Sends the answers to one request. FINAL goes out exactly once, with the last answer or with an error.

    A reply that is held takes the answers of further messages, too: FINAL then goes out with `release` alone. If none come after all,
    `let_go` makes it a reply like any other.

    Attributes:
        request_id: the client's own name of the request, for the log; "" if it gave none.
        is_traced: whether `trace` sends spans.
        is_held: its answers must be sent on one thread.
    """

    def __init__(self, backend: TritonBackend, pb_utils: Any, request: Any) -> None:
        self.request_id = _id_of(request)
        self._backend, self._pb_utils = backend, pb_utils
        self._sender = request.get_response_sender()
        self._trace_context = backend.trace_context(request) if backend.tracing is not None else {}
        self.is_traced = bool(self._trace_context)
        self.is_held = self._is_released = False
        self._is_answered = False  # its last answer has been sent, with or without FINAL

    def hold(self) -> None:
        """From now on nothing ends it but `release` or `let_go`."""
        self.is_held = True

    def release(self) -> None:
        """Send FINAL; what is sent afterwards is lost."""
        if self.is_held:
            self.is_held = False
            self.finish()
            self._is_released = True

    def let_go(self) -> None:
        """Hold it no more: FINAL goes out with its own last answer, or now if that has been sent. On the thread that sends."""
        if self.is_held:
            is_answered, self.is_held = self._is_answered, False
            if is_answered:
                self.finish()

    def trace(self, *spans: Span) -> None:
        """Add spans to the request's trace, if Triton makes one."""
        if self._backend.tracing is not None and self._trace_context:
            self._backend.tracing.record(self._trace_context, spans)

    def send(self, tensors: Mapping[str, npt.NDArray[Any]], *, is_final: bool) -> None:
        """Send one answer. Blocks on the server."""
        if self._is_released:
            return
        self._is_answered |= is_final
        begin = time.perf_counter()
        outputs = [self._pb_utils.Tensor(name, array) for name, array in tensors.items()]
        self._sender.send(self._pb_utils.InferenceResponse(outputs), flags=self._final_flag(is_final and not self.is_held))
        self._backend.send_times.add(time.perf_counter() - begin)

    def finish(self) -> None:
        """Send FINAL alone."""
        self._is_answered = True
        if not (self.is_held or self._is_released):
            self._sender.send(flags=self._final_flag(True))

    def refuse(self, error: Exception) -> None:
        """Send `error` as the only answer, with its status code; an INTERNAL error of this model is logged."""
        code, message = status(error)
        self._backend.refusals.add(1, code)
        if code == "INTERNAL" and not isinstance(error, RelayedError):  # the other model has logged that one
            self._backend.log_failure(error, self.request_id)
        triton_error = self._pb_utils.TritonError(message, getattr(self._pb_utils.TritonError, code))
        self._sender.send(self._pb_utils.InferenceResponse(error=triton_error), flags=self._final_flag(True))

    def is_cancelled(self) -> bool:
        """Whether the client has cancelled or gone. Blocks on the server."""
        return bool(self._sender.is_cancelled())

    def _final_flag(self, is_final: bool) -> int:
        return int(self._pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL) if is_final else 0


def _serialize_faster(pb_utils: Any) -> None:
    """Let Triton make tensors of one string in half of the time: it calls this function of its module for each of them.

    Every answer has three such tensors, most of them empty, and they are made under the GIL. On 24.10 one takes 6 microseconds instead of
    14: an array spares pybind11 the search for the type of the bytes, and one string needs no iterator of numpy's.
    """
    serialize = getattr(pb_utils, "serialize_byte_tensor", None)
    if serialize is None:
        return

    def serialize_byte_tensor(array: npt.NDArray[Any]) -> Any:
        value = array.item() if array.size == 1 else None
        if type(value) is not bytes:
            return serialize(array)
        return np.frombuffer(len(value).to_bytes(4, "little") + value, np.uint8)

    pb_utils.serialize_byte_tensor = serialize_byte_tensor


def signed_order(model: str, name: str, order: npt.NDArray[Any]) -> bytes:
    """The bytes that the sender of a control request signs: that `model` is to do what `order` says, one value of the input `name`."""
    value: bytes = order.flat[0] if order.dtype == np.object_ else order.tobytes()
    return f"{model} {name} ".encode() + value
