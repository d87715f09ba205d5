"""OfflineService: the whole utterance in one response.

Unary gRPC and HTTP /infer need it, because they refuse decoupled models. It is a client of its own server: it calls the ensemble
over gRPC and joins the chunks. (The Python backend's own requests to other models, BLS, cannot be used: frequent calls crash the
process. Tried on 24.10 from one thread and from many.) One thread waits for each request, and the client watch asks once a second
whether its client has gone.
"""

from __future__ import annotations

import base64
import json
import os
import re
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import count
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from tritonclient.grpc import service_pb2

from engine_lib.errors import ConfigError, InvalidRequestError, OverloadedError
from engine_lib.process.freed_memory import return_freed_memory
from engine_lib.serving.backend import Reply, Tensors, TritonBackend
from engine_lib.serving.client_watch import ClientWatch
from engine_lib.serving.errors import RelayedError
from engine_lib.serving.helper_metrics import HelperMetrics
from engine_lib.serving.ordered_sender import OrderedSender
from engine_lib.serving.request_values import timeout_of
from engine_lib.serving.served import GRPC_URL_VARIABLE
from engine_lib.speech.stream_words import compact_json
from qwen3_tts_client.channel import CHANNEL_OPTIONS, NO_PROXY, stream_call

# The talker limits the number of requests, so every one must reach it.
MAX_THREADS = 2048
SHUTDOWN_SECONDS = 4.0
PARAMETERS = {"ensemble": "the name of the model to call", "grpc_url": "HOST:PORT of the server's own gRPC port"}
DATATYPES = {np.dtype(np.float32): "FP32", np.dtype(np.int32): "INT32", np.dtype(np.bool_): "BOOL"}
TRITON_NAMES = {"timeout", "sequence_id", "sequence_start", "sequence_end"}  # read by Triton, or not needed
ENSEMBLE_PREFIX = re.compile(r"^in ensemble '[^']*', ")


class OfflineService:
    """One response for each request to one ensemble."""

    def __init__(self, backend: TritonBackend, args: Mapping[str, str]) -> None:
        """`args`: the arguments of `initialize`; their parameters name the ensemble and the server's gRPC port.

        Raises:
            ConfigError: a parameter is not set, or unknown.
        """
        parameters = _parameters(args)
        return_freed_memory()
        self._backend = backend
        self._ensemble, self._url = parameters["ensemble"], parameters["grpc_url"]
        self._stream_call = stream_call(grpc.insecure_channel(self._url, (*CHANNEL_OPTIONS, NO_PROXY)))
        self._pool = ThreadPoolExecutor(MAX_THREADS, thread_name_prefix=backend.name)
        self._metrics = HelperMetrics(backend)
        self._calls: dict[str, _Call] = {}  # those under way, by number
        self._numbers = count()
        self._asking = OrderedSender(f"{backend.name}-watch", 1, backend.log_failure)
        self._client_watch = ClientWatch(self._asking, self._calls)
        backend.guard.watch(holds_streams=False)

    def handle(self, request: Any) -> None:
        """Give one request to a thread of its own."""
        reply = self._backend.reply(request)
        try:
            message = _message(self._ensemble, self._backend.tensors(request), self._backend.parameters(request), timeout_of(request))
        except Exception as error:
            with self._metrics.answering():
                reply.refuse(error)
        else:
            self._pool.submit(self._answer, reply, message, self._backend.trace_context(request))

    def shutdown(self) -> None:
        """End. Triton calls this when every request has been answered."""
        self._backend.guard.release()
        self._client_watch.stop(SHUTDOWN_SECONDS)
        self._asking.close(SHUTDOWN_SECONDS)
        self._pool.shutdown(wait=False)
        self._metrics.close()

    def _answer(self, reply: Reply, message: service_pb2.ModelInferRequest, trace_context: Mapping[str, str]) -> None:
        with self._metrics.answering():
            try:
                answer = self._speech(reply, message, trace_context)
            except Exception as error:
                reply.refuse(error)
            else:
                reply.send(answer, is_final=True)

    def _speech(self, reply: Reply, message: service_pb2.ModelInferRequest, trace_context: Mapping[str, str]) -> Tensors:
        """Have the request spoken, as part of its own trace; returns the outputs of this model.

        Raises:
            RelayedError: it was refused, or its stream failed.
            OverloadedError: its client has gone.
        """
        audio, encoded, refusal = [], [], ""
        told: list[dict[str, Any]] = []
        last: dict[str, bytes] = {}
        try:
            with self._watched(_Call(self._stream_call(message, metadata=tuple(trace_context.items())), reply)) as responses:
                for response in responses:
                    if response.error_message:  # read on to the end: if a client leaves here, Triton 24.10 keeps its request
                        refusal = refusal or ENSEMBLE_PREFIX.sub("", response.error_message)
                        continue
                    result = response.infer_response
                    last = dict(zip((output.name for output in result.outputs), result.raw_output_contents, strict=True))
                    audio.append(np.frombuffer(last["audio"], np.float32))
                    encoded.append(base64.b64decode(last.get("audio_base64", b"")[4:]))
                    if "metadata" in last:
                        told.append(json.loads(last["metadata"][4:]))
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.CANCELLED:  # by `look_after`; no fault of this server, and nobody reads the answer
                raise OverloadedError("the client has gone") from None
            told_by = f"grpc_url of the model's config.pbtxt, or {GRPC_URL_VARIABLE}, names the server's own gRPC port"
            problem = "the stream broke" if audio else f"no answer of {self._ensemble} at {self._url}; {told_by}"
            raise RelayedError(f"{error.code().name}: {problem}") from None
        if refusal:
            raise RelayedError(refusal)
        if "is_final" not in last:
            raise RelayedError("the stream ended without its last answer")
        if error_text := last["error"][4:].decode():
            raise RelayedError(error_text)
        answer: Tensors = {
            "audio": np.concatenate(audio),
            "sample_rate": np.frombuffer(last["sample_rate"], np.int32),
            "finish_reason": np.array([last["finish_reason"][4:]], np.object_),
            "audio_base64": np.array([base64.b64encode(b"".join(encoded))], np.object_),
        }
        if metadata := compact_json(_of_all(told)):
            answer["metadata"] = np.array([metadata.encode()], np.object_)
        return answer

    @contextmanager
    def _watched(self, call: _Call) -> Iterator[Any]:
        """The responses of `call`, which is cancelled if its client goes."""
        key = str(next(self._numbers))
        self._calls[key] = call
        try:
            yield call.stream
        finally:
            del self._calls[key]
            call.end()


class _Call:
    """One call of the ensemble.

    Attributes:
        due_at: as in Watched; the ensemble minds the deadline.
    """

    due_at: float | None = None

    def __init__(self, stream: Any, reply: Reply) -> None:
        self.stream, self._reply = stream, reply
        self._lock, self._has_ended = threading.Lock(), False

    def look_after(self) -> None:
        """See Watched."""
        with self._lock:  # the server is not asked while or after the request is answered
            if not self._has_ended and self._reply.is_cancelled():
                self.stream.cancel()

    def end(self) -> None:
        """Nothing is asked any more."""
        with self._lock:
            self._has_ended = True


def _parameters(args: Mapping[str, str]) -> dict[str, str]:
    """The parameters of the config by name; the environment's port wins.

    Raises:
        ConfigError: one is not set, or unknown.
    """
    given = {name: value["string_value"] for name, value in json.loads(args["model_config"]).get("parameters", {}).items()}
    if url := os.environ.get(GRPC_URL_VARIABLE):
        given["grpc_url"] = url
    for name in given:
        if name not in PARAMETERS and not name.isupper():  # those are the Python backend's own
            raise ConfigError(f"{name}: is no parameter of this model; those are {', '.join(PARAMETERS)}")
    for name, meaning in PARAMETERS.items():
        if not given.get(name):
            raise ConfigError(f"{name}: is not set; give {meaning} in the parameters of config.pbtxt")
    return given


def _of_all(told: list[dict[str, Any]]) -> dict[str, Any]:
    """From the metadata of all chunks of a stream that of the whole: its lines, each once, and its words."""
    lines = {one["line"]: {name: one[name] for name in ("line", "speaker") if name in one} for one in told if "line" in one}
    words = [word for one in told for word in one.get("words", [])]
    cut_lines = told[-1].get("cut_lines", []) if told else []
    whole = {"lines": list(lines.values()), "cut_lines": cut_lines, "words": words}
    return {name: values for name, values in whole.items() if values}


def _message(model: str, tensors: Tensors, parameters: str, timeout: int) -> service_pb2.ModelInferRequest:
    """The same request, addressed to `model`.

    Raises:
        InvalidRequestError: a parameter has a value that a gRPC request cannot carry, or wants what this model cannot do.
    """
    message = service_pb2.ModelInferRequest(model_name=model)
    for name, tensor in tensors.items():
        if tensor.dtype == np.object_:
            content = b"".join(len(value).to_bytes(4, "little") + value for value in tensor.ravel())
        else:
            content = tensor.tobytes()
        message.inputs.add(name=name, datatype=DATATYPES.get(tensor.dtype, "BYTES"), shape=tensor.shape)
        message.raw_input_contents.append(content)
    for name, value in ({"sparse_answers": True} | json.loads(parameters or "{}")).items():
        # Triton's own, which /generate lets through with any value, and a gRPC request does not.
        if name in TRITON_NAMES or name.startswith("triton_"):
            continue
        _check_whole(model, name, value)
        if name == "priority" and (type(value) is not int or value < 0):
            raise InvalidRequestError(name, f"{value!r:.100} is not allowed; give a whole number from 0")
        kind = {bool: "bool_param", int: "int64_param", float: "double_param"}.get(type(value), "string_param")
        try:
            setattr(message.parameters[name], kind, value)
        except (TypeError, ValueError):
            allowed = "give a string, true or false, or a number of 64 bits"
            raise InvalidRequestError(name, f"{value!r:.100} is not allowed; {allowed}") from None
    if timeout:
        message.parameters["timeout"].int64_param = timeout
    return message


def _check_whole(model: str, name: str, value: Any) -> None:
    """Refuse a text in pieces: its stream would wait for words that no further request to this model can bring."""
    if (name == "session_action" and value) or (name == "text_end" and value is False):
        advice = f"call {model} for a text that comes in pieces, or leave it out"
        raise InvalidRequestError(name, f"{value!r:.100} is not allowed here, because this model answers once; {advice}")
