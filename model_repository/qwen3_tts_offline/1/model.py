"""Shell of the offline model: Triton's calls go to engine_lib.serving.OfflineService."""

from __future__ import annotations

from typing import Any

from engine_lib.serving.server_guard import ServerGuard

GUARD = ServerGuard(__file__)  # first, because the imports below take seconds

import triton_python_backend_utils as pb_utils

from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.model_config import check_answers
from engine_lib.serving.offline_service import OfflineService


class TritonPythonModel:
    """One instance; a request in, the whole utterance out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; the server reports an exception raised here as its reason."""
        check_answers(args)
        self._service = OfflineService(TritonBackend(pb_utils, args, GUARD), args)

    def execute(self, requests: list[Any]) -> None:
        """Queue each request; the answers are sent later, by other threads."""
        for request in requests:
            self._service.handle(request)

    def finalize(self) -> None:
        """End everything."""
        self._service.shutdown()
