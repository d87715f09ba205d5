"""A stand-in for tritonserver: the repository's model.py shells in this process, behind gRPC.

See tests/serving/python_backend.py for why there is one, and for what it can show. The ensemble passes the talker's messages to
the codec.
"""

from __future__ import annotations

import importlib.util
import json
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import grpc  # type: ignore[import-untyped]
import numpy as np
from google.protobuf import json_format, text_format  # type: ignore[import-untyped]
from tritonclient.grpc import model_config_pb2, service_pb2, service_pb2_grpc
from tritonclient.utils import deserialize_bytes_tensor, np_to_triton_dtype, serialize_byte_tensor, triton_to_np_dtype

from patience import PATIENCE
from serving.python_backend import STATUS_CODES, Arrays, Call, InferenceResponse, ReceivedRequest, Release, backend_utils, is_reserved

OWN_PARAMETERS = ("timeout", "priority", "sequence_id", "sequence_start", "sequence_end")  # fields of the protocol
THREADS = 16


class NoGuard:
    """In place of ServerGuard, which would end the process of the tests."""

    def __init__(self, model_file: str) -> None:
        self.holds_streams: bool | None = None
        self.is_released = False

    def watch(self, *, holds_streams: bool) -> None:
        self.holds_streams = holds_streams

    def release(self) -> None:
        self.is_released = True


class StandInServer:
    """All models of a repository. As a context manager: loaded inside, unloaded outside.

    Attributes:
        port: of gRPC.
        models: the shells' objects by name.
        utils: what each of them imported as triton_python_backend_utils.
        faults: what models did against the rules of the Python backend; [] is right.
    """

    def __init__(self, repository: Path, release: Release) -> None:
        self.release, self._repository = release, repository
        self.faults: list[str] = []
        self.models: dict[str, Any] = {}
        self.utils: dict[str, Any] = {}
        self._configs = {file.parent.name: _read(file) for file in sorted(repository.glob("*/config.pbtxt"))}
        self._threads: dict[str, ThreadPoolExecutor] = {}  # execute() runs on one thread of each process
        self._grpc = grpc.server(ThreadPoolExecutor(THREADS), options=[("grpc.so_reuseport", 0)])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(_FrontEnd(self), self._grpc)
        self.port: int = self._grpc.add_insecure_port("127.0.0.1:0")

    def __enter__(self) -> StandInServer:
        for name, config in self._configs.items():
            if config.backend == "python":
                self._load(name)
        self._grpc.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._grpc.stop(None).wait(PATIENCE)
        for name, model in self.models.items():
            self._threads[name].submit(model.finalize).result(PATIENCE)
            self._threads[name].shutdown()
        self.models.clear()

    def _load(self, name: str) -> None:
        self._threads[name] = ThreadPoolExecutor(1)
        folder = self._repository / name
        args = {"model_name": name, "model_version": "1", "model_repository": str(folder), "model_instance_kind": "MODEL"}
        args["model_config"] = json.dumps(
            json_format.MessageToDict(self._configs[name], preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
        )
        self.utils[name] = backend_utils(self.release, name, self.submit, self.faults)
        sys.modules["triton_python_backend_utils"] = self.utils[name]
        spec = importlib.util.spec_from_file_location(f"shell_of_{name}", folder / "1" / "model.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        model = module.TritonPythonModel()
        self._threads[name].submit(model.initialize, args).result(PATIENCE)
        self.models[name] = model

    def is_ready(self, name: str) -> bool:
        """Whether Triton would call a loaded model ready; an ensemble is when its steps are."""
        steps = [step.model_name for step in self._configs[name].ensemble_scheduling.step]
        if steps:
            return all(map(self.is_ready, steps))
        asked = getattr(self.models[name], "is_ready", None) if self.release.asks_is_ready else None
        if asked is None:
            return True
        answer = asked()
        if not isinstance(answer, bool):
            self.faults.append(f"is_ready of {name} gives {answer!r}")
        return answer is True

    def submit(self, call: Call) -> None:
        """Start a request to any model."""
        if self._configs[call.model].ensemble_scheduling.step:
            self._submit_to_steps(call)
        else:
            request = ReceivedRequest(call, self.faults)
            self._threads[call.model].submit(self._execute, call.model, request)

    def _execute(self, model: str, request: ReceivedRequest) -> None:
        try:
            answer = self.models[model].execute([request])
        except Exception as error:
            answer = error
        if answer is not None:
            self.faults.append(f"execute of {model} gives {answer!r}")

    def _submit_to_steps(self, call: Call) -> None:
        first, second = self._configs[call.model].ensemble_scheduling.step
        lock, running = threading.Lock(), 1  # requests to the two steps

        def ends(response: InferenceResponse | None, is_final: bool) -> None:
            nonlocal running
            with lock:
                running -= is_final
                if response is not None or running == 0:
                    call.on_response(response, running == 0)

        def on_message(response: InferenceResponse | None, is_final: bool) -> None:
            nonlocal running
            if response is None or response.has_error():
                ends(response, is_final)
                return
            with lock:
                running += 1
            passed_on = {key: response.tensors[name] for name, key in first.output_map.items()}
            tensors = {name: passed_on[key] for name, key in second.input_map.items()}
            self.submit(Call(second.model_name, tensors, ends, call.parameters, call.request_id, is_cancelled=call.is_cancelled))
            ends(None, is_final)

        is_cancelled = call.is_cancelled if self.release.cancels_every_step else threading.Event()
        self.submit(Call(first.model_name, call.tensors, on_message, call.parameters, call.request_id, call.timeout, is_cancelled))


class _FrontEnd(service_pb2_grpc.GRPCInferenceServiceServicer):
    """The gRPC of the server."""

    def __init__(self, server: StandInServer) -> None:
        self._server = server

    def ModelStreamInfer(self, requests: Iterator[Any], context: Any) -> Iterator[Any]:
        """Decoupled: any number of responses to each request."""
        for request in requests:
            for response in self._responses(request, context):
                if isinstance(response, str):
                    yield service_pb2.ModelStreamInferResponse(error_message=response)
                else:
                    yield service_pb2.ModelStreamInferResponse(infer_response=response)

    def ModelInfer(self, request: Any, context: Any) -> Any:
        """One response."""
        [response] = self._responses(request, context)
        if isinstance(response, str):
            context.abort(grpc.StatusCode[response.partition(":")[0].replace("INVALID_ARG", "INVALID_ARGUMENT")], response)
        return response

    def _responses(self, request: Any, context: Any) -> Iterator[Any]:
        """The messages that answer `request`; the text of an error."""
        parameters = {name: getattr(value, value.WhichOneof("parameter_choice")) for name, value in request.parameters.items()}
        timeout = parameters.get("timeout", 0)
        own = {name: value for name, value in parameters.items() if name not in OWN_PARAMETERS}
        if self._server.release.reserves_names and (reserved := [name for name in own if is_reserved(name)]):
            yield f"INVALID_ARG: parameters {reserved} are reserved"
            return
        responses: SimpleQueue[tuple[InferenceResponse | None, bool]] = SimpleQueue()
        call = Call(request.model_name, _tensors(request), lambda *each: responses.put(each), own, request.id, timeout)
        context.add_callback(call.is_cancelled.set)
        self._server.submit(call)
        is_final = False
        while not is_final:
            response, is_final = responses.get(timeout=PATIENCE)
            if response is not None and response.has_error():
                assert 0 <= response.error().code() < len(STATUS_CODES)
                yield response.error().message()
            elif response is not None:
                yield _message(request, response.tensors)


def _tensors(request: Any) -> dict[str, Any]:
    arrays = {}
    for info, raw in zip(request.inputs, request.raw_input_contents, strict=True):
        is_text = info.datatype == "BYTES"
        array = deserialize_bytes_tensor(raw) if is_text else np.frombuffer(raw, triton_to_np_dtype(info.datatype))
        arrays[info.name] = array.reshape(list(info.shape))
    return arrays


def _message(request: Any, tensors: Arrays) -> Any:
    message = service_pb2.ModelInferResponse(model_name=request.model_name, id=request.id)
    for name, array in tensors.items():
        message.outputs.add(name=name, datatype=np_to_triton_dtype(array.dtype), shape=array.shape)
        message.raw_output_contents.append(serialize_byte_tensor(array).item() if array.dtype == np.object_ else array.tobytes())
    return message


def _read(file: Path) -> Any:
    config = text_format.Parse(file.read_text(encoding="utf-8"), model_config_pb2.ModelConfig())
    assert config.backend == "python" or config.platform == "ensemble"
    return config
