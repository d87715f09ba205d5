"""Random requests by the OpenAPI schema find no answer with a 5xx."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from engine_lib.server.process import TritonServer
from gateway.conftest import RunningGateway
from patience import PROGRAM_PATIENCE

PROGRAM = [sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run"]
CHOICE = ["--checks", "not_a_server_error", "--phases", "fuzzing", "--max-examples", "12", "--generation-deterministic"]
CHOICE += ["--suppress-health-check", "too_slow"]  # of a busy machine


def test_no_request_that_fits_the_schema_or_nearly_fits_it_is_a_server_error(triton: TritonServer, tmp_path: Path) -> None:
    # Short texts, because every one that is allowed is spoken.
    with RunningGateway([triton], tmp_path / "log", "--max-text-length", "20") as gateway:
        command = [*PROGRAM, f"{gateway.url}/openapi.json", *CHOICE, "--no-color"]
        result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=PROGRAM_PATIENCE)
    assert result.returncode == 0, result.stdout[-3000:] + result.stderr[-1000:]
