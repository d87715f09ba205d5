"""A reference stream: the same request again and again, which must always sound the same."""

from __future__ import annotations

import json

import grpc  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
from tritonclient.grpc import service_pb2

from qwen3_tts_client.channel import CHANNEL_OPTIONS, stream_call
from qwen3_tts_client.wire import add_string

TEXT = "Good morning! How are you today?"
SAMPLING = {"seed": 7, "max_frames": 12, "chunk_frames": [1, 2, 4]}
TOLERANCE = 1e-4  # codes are equal; samples of another cohort may differ in their last bits


class Reference:
    """Speaks the reference and compares it with the first time.

    Attributes:
        spoken, different: how often it was spoken, and sounded differently or failed.
        problem: the first time it failed.
    """

    def __init__(self, address: str, model: str, voice: str, patience: float) -> None:
        """`voice`: of the checkpoint, or "" for none."""
        self._call = stream_call(grpc.insecure_channel(address, CHANNEL_OPTIONS))
        self._model, self._voice, self._patience = model, voice, patience
        self._expected: npt.NDArray[np.float32] | None = None
        self.spoken = self.different = 0
        self.problem = ""

    def speak(self) -> None:
        """Speak it once more."""
        self.spoken += 1
        try:
            responses = self._responses(self._model)
            if problem := responses[-1]["error"][4:].decode():
                raise RuntimeError(problem)
            audio = np.concatenate([np.frombuffer(raw["audio"], np.float32) for raw in responses])
        except (grpc.RpcError, RuntimeError, ValueError) as error:
            self._differs(f"{type(error).__name__}: {error}")
            return
        if self._expected is None:
            self._expected = audio
        elif audio.shape != self._expected.shape or not np.allclose(audio, self._expected, rtol=0, atol=TOLERANCE):
            self._differs(f"{len(audio)} samples differ from the first {len(self._expected)}")

    def messages(self, talker: str) -> list[tuple[bytes, bytes]]:
        """The (codes, header) of one stream of `talker`, which every client can read."""
        return [(raw["codes"], raw["header"]) for raw in self._responses(talker)]

    def _responses(self, model: str) -> list[dict[str, bytes]]:
        request = service_pb2.ModelInferRequest(model_name=model)
        add_string(request, "text", TEXT)
        add_string(request, "sampling_parameters", json.dumps(SAMPLING))
        if self._voice:
            add_string(request, "voice", self._voice)
        responses = []
        for response in self._call(request, timeout=self._patience):
            if response.error_message:
                raise RuntimeError(response.error_message)
            names = [output.name for output in response.infer_response.outputs]
            if names:
                responses.append(dict(zip(names, response.infer_response.raw_output_contents, strict=True)))
        return responses

    def _differs(self, problem: str) -> None:
        self.different += 1
        self.problem = self.problem or problem
