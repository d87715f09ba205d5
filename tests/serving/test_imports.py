"""Processes without an engine import no torch, because it makes their start and their end slow."""

from __future__ import annotations

import subprocess
import sys

import pytest


@pytest.mark.parametrize("module", ["serving.voices_service", "serving.offline_service", "server.process", "server.repository"])
def test_a_process_without_an_engine_imports_no_torch(module: str) -> None:
    code = f"import sys, engine_lib.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
