"""Shell of the voices: Triton's calls go to engine_lib.serving.VoicesService."""

from __future__ import annotations

from typing import Any

from engine_lib.serving.server_guard import ServerGuard

GUARD = ServerGuard(__file__)  # first, because the imports below take seconds

import triton_python_backend_utils as pb_utils

from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.model_config import check_answers
from engine_lib.serving.options import engine_config
from engine_lib.serving.voices_service import VoicesService


class TritonPythonModel:
    """One instance; one JSON answer for each request."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; the server reports an exception raised here as its reason."""
        check_answers(args)
        self._service = VoicesService(TritonBackend(pb_utils, args, GUARD), engine_config(args), args)

    def execute(self, requests: list[Any]) -> None:
        """Answer each request."""
        for request in requests:
            self._service.handle(request)

    def finalize(self) -> None:
        """End everything."""
        self._service.shutdown()
