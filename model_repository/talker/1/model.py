"""Shell of the talker: Triton's calls go to engine_lib.serving.TalkerService."""

from __future__ import annotations

from typing import Any

from engine_lib.serving.server_guard import ServerGuard

GUARD = ServerGuard(__file__)  # first, because the imports below take seconds

import triton_python_backend_utils as pb_utils

from engine_lib.serving.backend import TritonBackend
from engine_lib.serving.model_config import check_only_version, check_streams
from engine_lib.serving.options import engine_config
from engine_lib.serving.talker_service import TalkerService


class TritonPythonModel:
    """One instance; requests in, messages for the codec out."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the model; the server reports an exception raised here as its reason."""
        check_only_version(args)
        check_streams(args)
        self._service = TalkerService(TritonBackend(pb_utils, args, GUARD), engine_config(args), args)

    def execute(self, requests: list[Any]) -> None:
        """Queue or refuse each request; answers are sent later, by other threads."""
        for request in requests:
            self._service.handle(request)

    def is_ready(self) -> bool:
        """Whether a new request would be served. Newer Triton releases ask this."""
        return self._service.is_ready

    def finalize(self) -> None:
        """End everything within a few seconds."""
        self._service.shutdown()
